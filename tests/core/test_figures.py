"""Figures as data: axes hold their values and have round ticks, places are in order, numbers are for people."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.core.figures import (
    Figure,
    Point,
    Series,
    axes,
    drawable,
    loose_axis,
    number,
    points,
    power_axis,
    share,
    spoken,
    thinned,
    tick_axis,
)

anything = st.floats(width=64)
finite = st.floats(-1e300, 1e300) | st.floats(-1e-5, 1e-5) | st.integers(-1000, 1000).map(float)


def figure(*series: Series, **changes: object) -> Figure:
    """Return a figure of lines."""
    return Figure("lines", "Loss", "step", "nats", series)._replace(**changes)


@given(low=finite, high=finite)
def test_a_tick_axis_holds_both_ends_and_has_even_ticks(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    axis = tick_axis(low, high)
    rounding = 1e-8 * (high - low)
    assert axis.low <= low + rounding and axis.high >= high - rounding
    assert 2 <= len(axis.ticks) <= 14 and axis.ticks[0] == axis.low and axis.ticks[-1] == axis.high
    assert all(a < b for a, b in pairwise(axis.ticks))


@pytest.mark.parametrize(
    ("high", "ticks"),
    [
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (4.2, [0, 1, 2, 3, 4, 5]),
        (900.0, [0, 200, 400, 600, 800, 1000]),
        (0.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks_are_round(high: float, ticks: list[float]) -> None:
    assert tick_axis(0.0, high).ticks == pytest.approx(ticks)


@given(values=st.lists(finite, min_size=1, max_size=8), kind=st.sampled_from(["lines", "dots"]))
def test_every_value_has_a_place_on_its_axis_and_larger_ones_lie_further(values: list[float], kind: str) -> None:
    across, up = axes(figure(Series("a", points((v, v) for v in values)), kind=kind))
    for axis in (across, up):
        places = [share(axis, value) for value in sorted(values)]
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
        assert all(a <= b for a, b in pairwise(places))


@given(values=st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=30))
def test_an_axis_of_powers_holds_its_values_and_has_few_ticks_among_them(values: list[float]) -> None:
    axis = power_axis(values)
    places = [share(axis, value) for value in sorted(values)]
    assert all(0 < place < 1 for place in places) and places == sorted(places)
    assert len(axis.ticks) <= 9 and set(axis.ticks) <= set(values)


def test_powers_lie_at_equal_distances() -> None:
    axis = power_axis([4, 16, 64])
    first, second, third = (share(axis, value) for value in axis.ticks)
    assert second - first == pytest.approx(third - second)


def test_a_value_axis_holds_zero_and_intervals_and_the_top() -> None:
    series = Series("a", (Point(3, 0.6, 0.5, 0.9),))
    across, up = axes(figure(series))
    assert (up.low, across.low) == (0, 0) and up.high >= 0.9
    assert axes(figure(series, top=1.0))[1].high == 1.0
    assert axes(figure(Series("a", points([(1, -2.0)]))))[1].low <= -2.0


def test_dots_need_no_zero() -> None:
    across, _ = axes(figure(Series("a", points([(100, 1), (101, 2)])), kind="dots"))
    assert 99 < across.low < 100 and 101 < across.high < 102


@given(values=st.lists(finite, min_size=1, max_size=5))
def test_ticks_between_dots_lie_on_the_axis(values: list[float]) -> None:
    axis = loose_axis(values)
    assert axis.low < min(values) and max(values) < axis.high
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


@settings(max_examples=80)
@given(
    values=st.lists(st.tuples(anything, anything, anything, anything), max_size=6),
    kind=st.sampled_from(["lines", "bars", "dots"]),
    powers=st.booleans(),
)
def test_what_is_drawable_is_finite_and_within_its_axes(
    values: list[tuple[float, ...]], kind: str, powers: bool
) -> None:
    kept = drawable(figure(Series("a", tuple(Point(*value) for value in values)), kind=kind, powers=powers))
    found = [point for series in kept.series for point in series.points]
    wanted = [v for v in values if all(map(math.isfinite, v)) and (v[0] > 0 or not powers)]
    assert len(found) == len(wanted) and all(series.points for series in kept.series)
    across, up = axes(kept)
    for point in found:
        assert point.low <= point.y <= point.high
        shares = [share(up, value) for value in (point.y, point.low, point.high)]
        if kind != "bars":
            shares.append(share(across, point.x))
        assert all(-1e-9 <= value <= 1 + 1e-9 for value in shares)


@given(values=st.lists(st.tuples(finite, finite), max_size=50), most=st.integers(1, 20))
def test_thinning_keeps_the_mean_and_bounds_the_count(values: list[tuple[float, float]], most: int) -> None:
    kept, size = thinned(values, most)
    assert len(kept) <= most and size == max(math.ceil(len(values) / most), 1)
    if size == 1:
        assert kept == values
    for i, (x, y) in enumerate(kept):
        for mean, group in zip((x, y), zip(*values[i * size : (i + 1) * size], strict=True), strict=True):
            room = 1e-9 * max(map(abs, group))
            assert min(group) - room <= mean <= max(group) + room


def test_thinning_leaves_out_what_is_not_finite() -> None:
    values = [(1, 1.0), (2, math.nan), (3, 3.0), (4, math.inf), (5, 5.0)]
    assert thinned(values, 9) == ([(1, 1.0), (3, 3.0), (5, 5.0)], 1)
    assert thinned(values, 2) == ([(2, 2.0), (5, 5.0)], 2)
    assert thinned([(1, math.nan)], 2) == ([], 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (12.5, "12.5"),
        (1200, "1,200"),
        (1200000, "1.2e6"),
        (3.1e-7, "3.1e−7"),
        (-0.5, "−0.5"),
        (0.123456, "0.123"),
        (99.99, "100"),
        (1e300, "1e300"),
        (100, "100"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@given(value=finite)
def test_a_written_number_is_near_what_it_stands_for(value: float) -> None:
    assert float(number(value).replace("−", "-").replace(",", "")) == pytest.approx(value, rel=0.06, abs=1e-300)


def test_a_figure_is_told_in_words() -> None:
    few = figure(Series("a", (Point(1, 0.5, 0.4, 0.6), Point(2, 0.25, 0.25, 0.25))), Series("b", points([(1, 2)])))
    assert spoken(few) == "Loss. nats over step. a: at 1 0.5 (0.4 to 0.6), at 2 0.25; b: at 1 2."
    many = figure(Series("a", points((i, i * i) for i in range(20))))
    assert spoken(many) == "Loss. nats over step. a: 20 points, from 0 at 0 to 361 at 19."
    bars = figure(Series("EM", points([(0, 0.5), (1, 1)])), kind="bars", categories=("memory", "text"))
    assert spoken(bars) == "Loss. nats. EM: memory 0.5, text 1."
    assert "a: 20 points." in spoken(many._replace(kind="dots"))
