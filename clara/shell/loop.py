"""The training loop as a generator of steps, and held-out evaluation; neither prints nor saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from clara.core.memory import other_documents
from clara.core.scoring import cover_exact_match, exact_match, mean_scores, token_f1
from clara.core.step import EvalStep
from clara.core.types import Batch, Params, TrainState
from clara.io.dataset import StepBatch
from clara.io.errors import ClaraError
from clara.io.records import Record

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

    Raises ClaraError, with the step and its records, where the loss or the gradient is not finite, or memory is short;
    the state before it was yielded.
    """
    for number, batch in enumerate(batches, int(state.step) + 1):
        begun = time.perf_counter()
        try:
            state, metrics = update(state, batch.batches)
            mx.eval(state, metrics)
        except (RuntimeError, MemoryError) as error:
            raise short_of_memory(error, number, batch) from error
        values = {name: float(value) for name, value in metrics.items()}
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                said = f"the {name.replace('_', ' ')} is {values[name]}"
                raise ClaraError(f"step {number}: {said}; its records: {', '.join(batch.names)}")
        yield Step(number, state, values, batch.tokens, time.perf_counter() - begun)


def short_of_memory(error: Exception, number: int, batch: StepBatch) -> Exception:
    """Return the error that says what to do where a step's memory was not to be had; any other error as it is."""
    said = str(error).lower()
    if not (isinstance(error, MemoryError) or "out of memory" in said or "malloc" in said or "allocate" in said):
        return error
    return ClaraError(
        f"step {number}: out of memory on {len(batch.names)} examples in {len(batch.batches)} micro-batches ({error}); "
        "raise --accumulate or --grad-checkpoint, or lower --batch-size"
    )


def evaluate(
    eval_step: EvalStep, params: Params, batches: Iterable[Batch], weights: Mapping[str, float]
) -> dict[str, float]:
    """Return held-out means: the weighted loss, each term, how candidates rank, and `other_memory`.

    That is the next-token loss under other documents' memory: if it is no higher than `next_token`, the generator does
    not read its memory. A mean over nothing is left out.
    """
    sums: dict[str, tuple[mx.array, mx.array]] = {}
    for batch in batches:
        terms = dict(eval_step(params, batch))
        if "next_token" in terms and batch.tokens.shape[0] > 1:
            other = batch._replace(candidates=other_documents(batch.candidates))
            terms["other_memory"] = eval_step(params, other)["next_token"]
        sums |= {name: tree_map(mx.add, sums[name], term) if name in sums else term for name, term in terms.items()}
        mx.eval(sums)
    means = {name: float(total) / float(count) for name, (total, count) in sums.items() if float(count)}
    loss = sum(weight * means[name] for name, weight in weights.items() if name in means)
    return {"loss": loss, **means} if means else {}


def score_answers(records: Sequence[Record], reply: Callable[[Record], str]) -> dict[str, float]:
    """Return mean EM, cover-EM and token F1 of the replies to each record's first question."""
    scores = (exact_match, cover_exact_match, token_f1)
    rows = []
    for record in records:
        text, golds = reply(record), record.golden_answers or record.replies[:1]
        rows.append({score.__name__: score(text, golds) for score in scores})
    return mean_scores(rows)
