"""Times a piece of work around `mx.eval`, and says what that makes of rates, memory and floating-point operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
from msgspec import Struct

from clara.core.flops import Cost


def nothing() -> None:
    """Do nothing."""


def no_facts(seconds: float) -> dict[str, float]:
    """Return no further numbers."""
    return {}


class Work(NamedTuple):
    """What a case does, ready to be done again and again."""

    call: Callable[[Any], Any]
    """Is timed, to the last array of what it returns. It gets what `before` returned."""
    counts: Mapping[str, float]
    """What one call does: examples, tokens, passages. The table shows the last one's rate."""
    before: Callable[[], Any] = nothing
    """Is done before each call, and not timed."""
    cost: Cost | None = None
    """Of one call."""
    facts: Callable[[float], Mapping[str, float]] = no_facts
    """Returns further numbers, after all calls; it gets their median seconds."""
    once: bool = False
    """Whether one call says it all, and one before it would only delay it."""


class Result(Struct, frozen=True, kw_only=True):
    """What came of a case."""

    group: str
    case: str
    seconds: float = 0.0
    """The median."""
    spread: float = 0.0
    """From the fastest to the slowest round, as a share of the median."""
    rounds: int = 0
    first_seconds: float = 0.0
    """Of the call before, which also builds kernels; 0 where there is none."""
    rates: dict[str, float] = {}
    """Per second, by what is counted."""
    peak_bytes: int = 0
    """Of MLX's memory while it was timed, the base included."""
    flops_per_second: float = 0.0
    matrix_share: float = 0.0
    """That rate as a share of the matrix product's."""
    bytes_per_second: float = 0.0
    """Of the bytes that the work must move at least."""
    facts: dict[str, float] = {}
    error: str = ""
    """What went wrong: out of memory, or another failure; all numbers are then 0."""


def timed(work: Work) -> float:
    """Return the seconds of one call."""
    given = work.before()
    begun = time.perf_counter()
    mx.eval(work.call(given))
    return time.perf_counter() - begun


def measure(work: Work, group: str, case: str, rounds: int, seconds: float, matrix: float = 0.0) -> Result:
    """Return what comes of a case: at most `rounds` calls, none begun after `seconds`, at least one.

    matrix: floating-point operations per second of a matrix product; 0 where that is not known.
    """
    first = 0.0 if work.once else timed(work)
    mx.reset_peak_memory()
    taken = [timed(work)]
    while not work.once and len(taken) < rounds and sum(taken) < seconds:
        taken.append(timed(work))
    peak = mx.get_peak_memory()
    return summarise(work, group, case, taken, first, peak, matrix)


def summarise(work: Work, group: str, case: str, taken: list[float], first: float, peak: int, matrix: float) -> Result:
    """Return the result of calls that took these seconds."""
    median = statistics.median(taken)
    flops = work.cost.flops / median if work.cost else 0.0
    return Result(
        group=group,
        case=case,
        seconds=median,
        spread=(max(taken) - min(taken)) / median,
        rounds=len(taken),
        first_seconds=first,
        rates={name: count / median for name, count in work.counts.items()},
        peak_bytes=peak,
        flops_per_second=flops,
        matrix_share=flops / matrix if matrix else 0.0,
        bytes_per_second=work.cost.bytes / median if work.cost else 0.0,
        facts=dict(work.facts(median)),
    )


def matrix_work(dtype: mx.Dtype, width: int) -> Work:
    """Return a square matrix product, `width` on each side."""
    first, second = (mx.random.normal((width, width), key=mx.random.key(i)).astype(dtype) for i in range(2))
    mx.eval(first, second)
    cost = Cost(2.0 * width**3, 3.0 * first.nbytes)
    return Work(lambda _: first @ second, {"products": 1}, cost=cost)
