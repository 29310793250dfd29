"""The way of data into a step: tokenised and collated, waited for, and padded to buckets or to one fixed length."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from clara.core.types import Batch, Documents
from clara.io.data_config import DataConfig
from clara.io.dataset import StepBatch, training_batches
from clara.io.errors import ClaraError
from clara.io.examples import make_encoder
from clara.io.feed import Feed
from clara.io.fitting import check_records
from clara.io.records import Record, check_stage, read_records
from clara.shell.benching.shapes import start_params, step_config
from clara.shell.benching.steps import advancing, make_job_update
from clara.shell.benching.timing import Work
from clara.shell.benching.workbench import Workbench
from clara.shell.loop import training_steps

TURNS = 3
"""How often the loop and the updates alone are timed in turn."""


def read_data(source: str) -> list[Record]:
    """Return the records of the data cases. Raises ClaraError, as training does, for bad ones."""
    records = read_records(source)
    check_stage(records, "pretrain")
    return records


def feed_of(bench: Workbench) -> tuple[list[Record], Feed]:
    """Return (records, feed) of stage `pretrain` with the defaults of training, checked once."""
    if "feed" not in bench.kept:
        records = read_data(bench.options.data)
        data = DataConfig(data=bench.options.data, batch_size=bench.rows)
        encoder = make_encoder(bench.tokenizer(), bench.base().layout, bench.size.document, data.max_tokens)
        feed = Feed(encoder, data)
        check_records(records, feed)
        bench.kept["feed"] = records, feed
    return bench.kept["feed"]


def drawn(bench: Workbench) -> list[StepBatch]:
    """Return the first batches of the first epoch, as training draws them."""
    records, feed = feed_of(bench)
    return list(training_batches(records, feed, bench.batches))


def records_work(bench: Workbench) -> Work:
    """Return records tokenised and collated into batches, and nothing done with them."""
    records, feed = feed_of(bench)
    batches = drawn(bench)

    def call(_: Any) -> Any:
        return [each.batches for each in training_batches(records, feed, bench.batches)]

    return Work(call, {"tokens": sum(b.tokens for b in batches), "records": sum(len(b.names) for b in batches)})


def loop_work(bench: Workbench) -> Work:
    """Return the main job's loop over new data, a step ahead of the device; its facts say which share it waited.

    idle_share: what the loop takes beyond the same updates on batches that are ready, the fastest of several turns of
    each, or of one where they take long. waited_share: the time in which the loop had asked for a batch and did not
    have it.
    """
    records, feed = feed_of(bench)
    batches = drawn(bench)
    base, config = bench.base(), step_config(bench.size, bench.options, "pretrain")
    update, state = make_job_update(base, config, start_params(base, config), bench.compiled)
    done = list[tuple[float, float]]()

    def loop(_: Any = None) -> Any:
        waited, begun = [0.0], time.perf_counter()
        given = waiting(training_batches(records, feed, bench.batches), waited)
        deque(training_steps(update, state, given, ahead=lambda _: True), maxlen=0)
        done.append((time.perf_counter() - begun, waited[0]))
        return []

    def alone() -> float:
        advance, begun = advancing(update, state), time.perf_counter()
        for each in batches:
            mx.eval(advance(each.batches))
        return time.perf_counter() - begun

    def facts(seconds: float) -> dict[str, float]:
        # A loop that takes long was timed once, which is enough; the call before it also built kernels.
        del done[:-1]
        ready = [alone()]
        for _ in range(0 if seconds > bench.options.seconds else TURNS - 1):
            loop()
            ready.append(alone())
        whole = min(taken for taken, _ in done)
        waited = statistics.median(part / taken for taken, part in done)
        return {"seconds_ready": min(ready), "idle_share": max(1 - min(ready) / whole, 0.0), "waited_share": waited}

    counts = {"records": sum(len(b.names) for b in batches), "tokens": sum(b.tokens for b in batches)}
    return Work(loop, counts, facts=facts)


def waiting(batches: Iterator[StepBatch], waited: list[float]) -> Iterator[StepBatch]:
    """Yield batches; add the seconds in which they were waited for to waited[0]."""
    while True:
        begun = time.perf_counter()
        batch = next(batches, None)
        waited[0] += time.perf_counter() - begun
        if batch is None:
            return
        yield batch


def padding_work(bench: Workbench, fixed: bool) -> Work:
    """Return one update on each of some batches of an epoch, as they are, or all padded to one length.

    Both learn from the same records. tokens: those that are no padding.
    """
    batches = drawn(bench)
    base, config = bench.base(), step_config(bench.size, bench.options, "pretrain")
    update, state = make_job_update(base, config, start_params(base, config), bench.compiled)
    given = [each.batches for each in batches]
    if fixed:
        given = [[padded(batch, *longest(bench, given)) for batch in each] for each in given]
    mx.eval(given)

    def call(_: Any) -> Any:
        advance = advancing(update, state)
        for each in given:
            mx.eval(advance(each))
        return []

    positions = sum(batch.tokens.size + documents_of(batch).tokens.size for each in given for batch in each)
    counts = {"records": sum(len(b.names) for b in batches), "tokens": sum(b.tokens for b in batches)}
    return Work(call, counts, facts=lambda _: {"positions": positions, "padding": 1 - counts["tokens"] / positions})


def longest(bench: Workbench, given: list[list[Batch]]) -> tuple[int, int, int]:
    """Return widths that hold every batch: of documents as long as they may be, of the longest row and answer here."""
    layout = bench.base().layout
    frame = len(layout.prefix) + len(layout.suffix) + layout.num_memory_tokens
    flat = [batch for each in given for batch in each]
    found = [
        max(rows.shape[1] for rows in column)
        for column in zip(*((documents_of(b).tokens, b.tokens, b.targets) for b in flat), strict=True)
    ]
    return max(found[0], bench.size.document + frame), found[1], found[2]


def padded(batch: Batch, document: int, decoder: int, answer: int) -> Batch:
    """Return a batch with more padding on the right: widths of its documents, decoder rows and answers."""

    def wide(rows: mx.array, width: int) -> mx.array:
        return mx.pad(rows, [(0, 0), (0, width - rows.shape[1])])

    documents = documents_of(batch)
    return batch._replace(
        documents=documents._replace(tokens=wide(documents.tokens, document)),
        tokens=wide(batch.tokens, decoder),
        target_index=wide(batch.target_index, answer),
        targets=wide(batch.targets, answer),
        target_mask=wide(batch.target_mask, answer),
    )


def documents_of(batch: Batch) -> Documents:
    """Return a batch's documents. Raises ClaraError where it carries memories."""
    if isinstance(batch.documents, mx.array):
        raise ClaraError("the batch carries memories; wanted documents as tokens")
    return batch.documents
