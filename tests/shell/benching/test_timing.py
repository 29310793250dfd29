"""Timing by a clock that the work itself moves; rates, shares and what is an error of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from clara.core.flops import Cost
from clara.shell.benching import timing
from clara.shell.benching.timing import Work, matrix_work, measure


class Clock:
    """Seconds that pass only where something says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def passing(self, *seconds: float) -> Any:
        """Return a call that takes these seconds, one after the other."""
        left: Iterator[float] = iter(seconds)

        def call(_: Any) -> list[mx.array]:
            self.now += next(left)
            return []

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_the_first_call_is_told_apart_and_the_others_give_median_and_spread(clock: Clock) -> None:
    found = measure(Work(clock.passing(9.0, 1.0, 2.0, 4.0), {"tokens": 100.0}), "g", "c", rounds=3, seconds=100)
    assert (found.first_seconds, found.seconds, found.spread, found.rounds) == (9.0, 2.0, 1.5, 3)
    assert found.rates == {"tokens": 50.0}


def test_no_round_begins_after_the_seconds_are_over(clock: Clock) -> None:
    found = measure(Work(clock.passing(1.0, 3.0, 3.0, 3.0), {}), "g", "c", rounds=5, seconds=5)
    assert found.rounds == 2


def test_one_round_is_taken_however_long_it_is(clock: Clock) -> None:
    assert measure(Work(clock.passing(1.0, 3.0), {}), "g", "c", rounds=5, seconds=0).rounds == 1


def test_what_needs_one_call_gets_one(clock: Clock) -> None:
    found = measure(Work(clock.passing(3.0), {}, once=True), "g", "c", rounds=5, seconds=100)
    assert (found.rounds, found.first_seconds, found.seconds) == (1, 0.0, 3.0)


def test_what_comes_before_is_handed_on_and_not_timed(clock: Clock) -> None:
    given = []

    def before() -> str:
        clock.now += 50
        return "ready"

    def call(what: str) -> list[mx.array]:
        given.append(what)
        clock.now += 1
        return []

    found = measure(Work(call, {}, before=before), "g", "c", rounds=2, seconds=100)
    assert given == ["ready"] * 3 and found.seconds == 1


def test_costs_become_rates_and_a_share_of_the_matrix_product(clock: Clock) -> None:
    work = Work(clock.passing(1.0, 2.0), {}, cost=Cost(100.0, 10.0), facts=lambda seconds: {"twice": 2 * seconds})
    found = measure(work, "g", "c", rounds=1, seconds=1, matrix=200.0)
    assert (found.flops_per_second, found.matrix_share, found.bytes_per_second) == (50.0, 0.25, 5.0)
    assert found.facts == {"twice": 4.0}


def test_the_peak_is_that_of_the_timed_calls_alone() -> None:
    sizes = iter((2_000_000, 1_000, 1_000))
    found = measure(Work(lambda _: mx.ones((next(sizes),)) + 1, {}), "g", "c", rounds=2, seconds=10)
    assert 4_000 <= found.peak_bytes < 4_000_000 + mx.get_active_memory()


def test_a_matrix_product_is_counted_by_its_width() -> None:
    work = matrix_work(mx.float32, 16)
    assert work.cost == Cost(2 * 16**3, 3 * 4 * 16**2) and work.call(None).shape == (16, 16)
