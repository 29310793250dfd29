"""The training loop as a generator of steps, and held-out evaluation; neither prints nor saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from clara.core.memory import other_documents
from clara.core.scoring import cover_exact_match, exact_match, mean_scores, token_f1
from clara.core.step import EvalStep
from clara.core.types import Batch, Params, TrainState
from clara.io.dataset import StepBatch
from clara.io.errors import ClaraError, short_of_memory
from clara.io.records import Record

Update = Callable[[TrainState, list[Batch]], tuple[TrainState, dict[str, mx.array]]]
Gather = Callable[[Any], list[Any]]
"""A plain value → those of all processes that share the work."""

NO_WAIT = 1e-3
"""Seconds within which a step that was computed before is returned."""


class Step(NamedTuple):
    """A finished step."""

    number: int
    """Counted from 1."""
    state: TrainState
    metrics: dict[str, float]
    tokens: int
    seconds: float


class Started(NamedTuple):
    """A step that the device is computing."""

    number: int
    batch: StepBatch
    state: TrainState
    metrics: dict[str, mx.array]
    begun: float
    """When it was handed over, on the clock of `time.perf_counter`."""


def training_steps(
    update: Update, state: TrainState, batches: Iterable[StepBatch], ahead: Callable[[int], bool] = lambda _: False
) -> Iterator[Step]:
    """Yield each step once it is computed.

    ahead: whether the device is handed the step after this one before it is yielded, so that it never waits for the
    host; that step is not yielded where the caller stops. Steps that the caller pauses after want none. Raises
    ClaraError, with the step and its records, where the loss or the gradient is not finite, or memory is short; the
    state before it was yielded.
    """
    running, source, ended = list[Started](), enumerate(batches, int(state.step) + 1), 0.0
    while True:
        try:
            if (item := next(source, None)) is not None:
                running.append(started(update, state, *item))
        except Exception:
            yield from (finished(step, ended)[0] for step in running)
            raise
        if not running:
            return
        state = running[-1].state
        kept = int(item is not None and ahead(running[-1].number))
        while len(running) > kept:
            step, ended = finished(running.pop(0), ended, *running)
            yield step


def started(update: Update, state: TrainState, number: int, batch: StepBatch) -> Started:
    """Return a step that is handed to the device. Raises ClaraError where memory is short."""
    begun = time.perf_counter()
    try:
        state, metrics = update(state, batch.batches)
        mx.async_eval(state, metrics)  # type: ignore[no-untyped-call]
    except (RuntimeError, MemoryError) as error:
        raise advised(error, number, batch) from error
    return Started(number, batch, state, metrics, begun)


def finished(step: Started, before: float, after: Started | None = None) -> tuple[Step, float]:
    """Return (a step once it is computed, when it was).

    before: when the one before it was, from where on its time counts at most; after: the one handed over since. To
    hand over may take as long as to compute: where the device had nothing else to do, and the step was ready without
    waiting, it counts as ready when handing over the next began. Raises ClaraError where its loss or gradient is not
    finite, or memory is short.
    """
    number, batch, state, metrics, begun = step
    asked = time.perf_counter()
    try:
        mx.eval(state, metrics)
    except (RuntimeError, MemoryError) as error:
        raise advised(error, number, batch) from error
    ended = time.perf_counter()
    if after is not None and before <= begun and ended - asked < NO_WAIT:
        ended = after.begun
    values = {name: float(value) for name, value in metrics.items()}
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(values.get(name, 0.0)):
            said = f"the {name.replace('_', ' ')} is {values[name]}"
            raise ClaraError(f"step {number}: {said}; its records: {', '.join(batch.names)}")
    return Step(number, state, values, batch.tokens, ended - max(begun, before)), ended


def advised(error: Exception, number: int, batch: StepBatch) -> Exception:
    """Return the error that says what to do where a step's memory was not to be had; any other error as it is."""
    if not short_of_memory(error):
        return error
    examples = sum(len(each.tokens) for each in batch.batches)
    return ClaraError(
        f"step {number}: out of memory on {examples} examples in {len(batch.batches)} micro-batches ({error}); "
        "raise --accumulate, lower --batch-size, or give --grad-checkpoint 1"
    )


def evaluate(
    eval_step: EvalStep,
    params: Params,
    batches: Iterable[Batch],
    weights: Mapping[str, float],
    gather: Gather = lambda own: [own],
) -> dict[str, float]:
    """Return held-out means: the weighted loss, each term, how candidates rank, and `other_memory`.

    That is the next-token loss under other documents' memory: if it is no higher than `next_token`, the generator does
    not read its memory. Where documents are read as text, it is not there. A mean over nothing is left out.
    batches: this process's, where several share them.
    """
    sums: dict[str, tuple[mx.array, mx.array]] = {}
    for batch in batches:
        terms = dict(eval_step(params, batch))
        if "next_token" in terms and batch.tokens.shape[0] > 1 and batch.document_rows:
            other = batch._replace(candidates=other_documents(batch.candidates))
            terms["other_memory"] = eval_step(params, other)["next_token"]
        sums |= {name: tree_map(mx.add, sums[name], term) if name in sums else term for name, term in terms.items()}
        mx.eval(sums)
    totals: dict[str, tuple[float, float]] = {}
    for own in gather({name: (float(total), float(count)) for name, (total, count) in sums.items()}):
        for name, (total, count) in own.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + total, before[1] + count)
    means = {name: total / count for name, (total, count) in totals.items() if count}
    loss = sum(weight * means[name] for name, weight in weights.items() if name in means)
    return {"loss": loss, **means} if means else {}


def score_answers(
    records: Iterable[Record], reply: Callable[[Record], str], gather: Gather = lambda own: [own]
) -> dict[str, float]:
    """Return mean EM, cover-EM and token F1 of the replies to each record's first question.

    records: this process's, where several share them.
    """
    scores = (exact_match, cover_exact_match, token_f1)
    rows = []
    for record in records:
        text, golds = reply(record), record.golden_answers or record.replies[:1]
        rows.append({score.__name__: score(text, golds) for score in scores})
    return mean_scores([row for own in gather(rows) for row in own])
