"""Training steps with their optimizer, made as the main job makes them, and documents compressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from clara.core.compress import compress
from clara.core.config import CHOOSING, OptimizerConfig, Stage, StepConfig
from clara.core.flops import forward, stage_cost, total
from clara.core.optim import adamw
from clara.core.stages import trained_leaves
from clara.core.types import Base, Batch, Documents, Params, TrainState
from clara.shell.benching.shapes import positions, stage_batch, start_params, step_config
from clara.shell.benching.timing import Work
from clara.shell.benching.workbench import Workbench
from clara.shell.job import packed_update
from clara.shell.loop import Update
from clara.shell.ranks import ALONE, Ranks

PORTION = 32
"""Documents that are compressed at a time where memories are only prepared."""

BATCHES = 4
"""Batches of passages that are compressed in turn, to see that memory does not grow with them."""


def make_job_update(
    base: Base, config: StepConfig, params: Params, compiled: bool, ranks: Ranks = ALONE
) -> tuple[Update, TrainState]:
    """Return (update, state) of a stage as `clara.shell.job` makes them, the state evaluated."""
    optimizer = adamw(OptimizerConfig(), total_steps=1000)
    update, _, packed = packed_update(base, config, trained_leaves(config, params), optimizer, ranks)
    state = TrainState(packed, optimizer.init(packed), mx.array(0))
    mx.eval(state)
    return mx.compile(update) if compiled else update, state


def advancing(update: Update, state: TrainState) -> Callable[[Sequence[Batch]], Any]:
    """Return a function that does one step after the other, each from where the one before ended."""
    now = [state]

    def advance(batches: Sequence[Batch]) -> Any:
        now[0], metrics = update(now[0], list(batches))
        return now[0], metrics

    return advance


def step_work(bench: Workbench, stage: Stage, cached: bool = True) -> Work:
    """Return one step of a stage on full rows; cached: a choosing stage reads memories that are kept.

    Of several ranks each has as many rows; the counts are those of all.
    """
    base = bench.base()
    config = step_config(bench.size, bench.options, stage)
    params = start_params(base, config)
    batch = stage_batch(base, bench.size, stage, bench.rows, bench.options.candidates)
    if cached and stage in CHOOSING:
        batch = batch._replace(documents=compress_in_turn(base, config, params, batch.documents))
        mx.eval(batch)
    advance = advancing(*make_job_update(base, config, params, bench.compiled, bench.ranks))
    counts = {"examples": bench.ranks.size * bench.rows, "tokens": bench.ranks.size * positions(batch)}
    return Work(lambda _: advance([batch]), counts, cost=stage_cost(bench.shape(), config, batch))


def make_job_compress(base: Base, config: StepConfig, params: Params) -> Callable[[Documents], mx.array]:
    """Return documents → memories as `clara.shell.memories` computes them."""
    return lambda documents: compress(base, config, params, documents).memory


def compress_in_turn(base: Base, config: StepConfig, params: Params, documents: Documents | mx.array) -> mx.array:
    """Return float[N, M, D]: the memories of documents, a portion at a time."""
    assert isinstance(documents, Documents)
    parts = []
    for first in range(0, documents.tokens.shape[0], PORTION):
        at = slice(first, first + PORTION)
        portion = Documents(documents.tokens[at], documents.lengths[at])
        parts.append(compress(base, config, params, portion).memory)
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def compress_work(bench: Workbench, batches: int = 1) -> Work:
    """Return the compression of batches of full passages, one after the other."""
    base = bench.base()
    config = step_config(bench.size, bench.options, "pretrain")
    params = start_params(base, config)
    documents = stage_batch(base, bench.size, "pretrain", bench.passages, 1).documents
    assert isinstance(documents, Documents)
    once = make_job_compress(base, config, params)

    def call(_: Any) -> mx.array:
        for _ in range(batches):
            memory = once(documents)
            mx.eval(memory)
        return memory

    rows, length = documents.tokens.shape
    each = forward(bench.shape(), rows, length, config.lora.rank)
    counts = {"tokens": batches * documents.tokens.size, "passages": batches * bench.passages}
    return Work(call, counts, cost=total([each] * batches))
