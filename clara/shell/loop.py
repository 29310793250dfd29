"""The training loop as a generator of steps, and held-out evaluation; neither prints nor saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from clara.core.memory import other_documents
from clara.core.step import EvalStep
from clara.core.types import Batch, Params, TrainState
from clara.io.dataset import StepBatch
from clara.io.errors import ClaraError

Update = Callable[[TrainState, list[Batch]], tuple[TrainState, dict[str, mx.array]]]


class Step(NamedTuple):
    """A finished step."""

    number: int
    """Counted from 1."""
    state: TrainState
    metrics: dict[str, float]
    tokens: int
    seconds: float


def training_steps(update: Update, state: TrainState, batches: Iterable[StepBatch]) -> Iterator[Step]:
    """Yield each step once it is computed.

    Raises ClaraError, with the step and its records, where the loss is not finite; the state before it was yielded.
    """
    for batch in batches:
        begun = time.perf_counter()
        state, metrics = update(state, batch.batches)
        mx.eval(state, metrics)
        values = {name: float(value) for name, value in metrics.items()}
        number = int(state.step)
        if not math.isfinite(values["loss"]):
            raise ClaraError(f"step {number}: the loss is {values['loss']}; its records: {', '.join(batch.names)}")
        yield Step(number, state, values, batch.tokens, time.perf_counter() - begun)


def evaluate(eval_step: EvalStep, params: Params, batches: Iterable[Batch]) -> dict[str, float]:
    """Return held-out means: each loss term, and `other_memory`, the next-token loss under another document's memory.

    If `other_memory` is no higher than `next_token`, the generator does not read its memory.
    """
    sums: dict[str, tuple[mx.array, mx.array]] = {}
    for batch in batches:
        terms = dict(eval_step(params, batch))
        if "next_token" in terms:
            other = batch._replace(documents=other_documents(batch.documents))
            terms["other_memory"] = eval_step(params, other)["next_token"]
        sums = tree_map(mx.add, sums, terms) if sums else terms
        mx.eval(sums)
    return {name: float(total / mx.maximum(count, 1)) for name, (total, count) in sums.items()}
