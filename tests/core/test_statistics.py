"""Intervals and paired tests: closed forms, exact enumerations, coverage, and what must not matter."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core import statistics
from clara.core.statistics import bootstrap_interval, sign_flip_test

values = st.lists(st.floats(-1, 1, allow_subnormal=False).map(lambda x: round(x, 3)), min_size=1, max_size=9)


def rng(seed: int = 0) -> np.random.Generator:
    """Return a generator."""
    return np.random.default_rng(seed)


def test_the_mean_is_that_of_the_values_and_the_interval_is_about_two_standard_errors() -> None:
    drawn = random.Random(0).choices([0.0, 1.0], weights=[7, 3], k=1000)
    mean, low, high = bootstrap_interval(drawn, rng())
    error = math.sqrt(mean * (1 - mean) / len(drawn))
    assert mean == sum(drawn) / 1000
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_of_two_values_the_interval_is_that_of_the_four_samples() -> None:
    # Means 0, 1/2 and 1 have 1/4, 1/2 and 1/4 of the samples: both tails hold more than 2.5 %.
    assert bootstrap_interval([0.0, 1.0], rng()) == (0.5, 0.0, 1.0)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    source = rng(1)
    samples = source.normal(3.0, 2.0, (300, 40))
    held = [low <= 3.0 <= high for _, low, high in (bootstrap_interval(row, rng(2), 1000) for row in samples)]
    assert 0.90 <= sum(held) / 300 <= 0.98


@given(values, st.randoms())
def test_an_interval_depends_on_neither_order_nor_run(found: list[float], shuffler: random.Random) -> None:
    shuffled = found[:]
    shuffler.shuffle(shuffled)
    assert bootstrap_interval(found, rng(), 200) == bootstrap_interval(shuffled, rng(), 200)


@given(values)
def test_an_interval_lies_within_the_values_and_holds_the_mean(found: list[float]) -> None:
    mean, low, high = bootstrap_interval(found, rng(), 200)
    assert min(found) - 1e-12 <= low <= mean <= high <= max(found) + 1e-12


@given(values)
def test_equal_values_leave_no_doubt(found: list[float]) -> None:
    interval = bootstrap_interval(found[:1] * 7, rng(), 50)
    assert interval == pytest.approx(found[:1] * 3, abs=1e-15)


@given(values, st.floats(-3, 3))
def test_a_shift_moves_the_interval_with_it(found: list[float], shift: float) -> None:
    moved = bootstrap_interval([value + shift for value in found], rng(), 200)
    assert moved == pytest.approx([bound + shift for bound in bootstrap_interval(found, rng(), 200)], abs=1e-9)


def test_more_values_make_a_narrower_interval() -> None:
    widths = [high - low for _, low, high in (bootstrap_interval([0.0, 1.0] * n, rng()) for n in (5, 50, 500))]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_blocks_do_not_change_how_many_samples_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BLOCK", 30)
    mean, low, high = bootstrap_interval([0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0], rng(), 1000)
    assert low < mean < high
    assert list(statistics._blocks(10, 7)) == [4, 4, 2] and list(statistics._blocks(3, 100)) == [1, 1, 1]


def enumerated(differences: list[float]) -> float:
    """Return the exact p-value by trying every pattern of signs."""
    found = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns(len(differences))]
    return sum(each >= found - 1e-9 for each in sums) / len(sums)


def patterns(count: int) -> list[tuple[int, ...]]:
    """Return every pattern of signs."""
    return list(itertools.product((1, -1), repeat=count))


@given(values)
def test_few_differences_give_the_exact_p_value(differences: list[float]) -> None:
    assert sign_flip_test(differences, rng()) == pytest.approx(enumerated(differences), abs=1e-12)


@given(values)
def test_questions_without_a_difference_do_not_count(differences: list[float]) -> None:
    assert sign_flip_test([*differences, *[0.0] * 20], rng()) == pytest.approx(enumerated(differences), abs=1e-12)


def test_many_differences_are_tested_by_drawn_patterns() -> None:
    differences = [1.0] * 16 + [-1.0] * 8
    # Of 24 fair coins 16 or more, or 8 or fewer, show heads.
    exact = 2 * sum(math.comb(24, k) for k in range(16, 25)) / 2**24
    assert sign_flip_test(differences, rng()) == pytest.approx(exact, abs=0.01)
    assert sign_flip_test([1.0] * 200, rng()) == 1 / 10_001, "the pattern found counts among those drawn"


@given(values)
def test_the_two_systems_may_be_exchanged(differences: list[float]) -> None:
    assert sign_flip_test(differences, rng()) == sign_flip_test([-each for each in differences], rng())


def test_equal_systems_are_not_told_apart_and_a_clear_difference_is() -> None:
    assert sign_flip_test([0.0] * 30, rng()) == 1.0
    assert sign_flip_test([0.5, -0.5] * 20, rng()) == 1.0
    assert sign_flip_test([0.3] * 10, rng()) == 2 / 1024


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="values: found none"):
        bootstrap_interval([], rng())
    with pytest.raises(ValueError, match="differences: found none"):
        sign_flip_test([], rng())
