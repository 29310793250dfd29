"""Figures as data: points in named series, and the arithmetic of axes that every way of drawing them shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

LARGEST = 1e300
"""Magnitude beyond which a number is drawn as this one, so that no difference of two overflows."""


class Point(NamedTuple):
    """A value with its interval; low and high equal y where there is none."""

    x: float
    y: float
    low: float
    high: float


class Series(NamedTuple):
    """Points that belong together, in the order in which a line joins them."""

    name: str
    points: tuple[Point, ...]
    style: int = 0
    """Which of the palette's colours and marks; the same series has the same one in every figure. Beyond the palette's
    end its colours come again, with dashed lines."""


class Figure(NamedTuple):
    """A picture before it is drawn."""

    kind: Literal["lines", "bars", "dots"]
    """bars are horizontal: x is the number of a category, y the length. dots have axes without a zero."""
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    note: str = ""
    """What a reader has to know to judge it: how many questions, what the intervals are."""
    categories: tuple[str, ...] = ()
    top: float = 0.0
    """The value axis reaches at least so far."""
    powers: bool = False
    """Whether x is drawn by its logarithm; its ticks are then the values that there are."""


class Axis(NamedTuple):
    """From values to shares of a length."""

    low: float
    high: float
    ticks: tuple[float, ...]
    powers: bool = False


def points(values: Iterable[tuple[float, float]]) -> tuple[Point, ...]:
    """Return pairs (x, y) as points without intervals."""
    return tuple(Point(x, y, y, y) for x, y in values)


def drawable(figure: Figure) -> Figure:
    """Return the figure without series that are empty and points that have no place, numbers bounded by `LARGEST`."""
    kept = (
        series._replace(points=tuple(bounded(p) for p in series.points if placed(p, figure.powers)))
        for series in figure.series
    )
    return figure._replace(series=tuple(series for series in kept if series.points))


def placed(point: Point, powers: bool) -> bool:
    """Return whether a point has a place: all of it finite, and x positive where its logarithm is drawn."""
    return all(map(math.isfinite, point)) and (point.x > 0 or not powers)


def bounded(point: Point) -> Point:
    """Return a point with every number brought within `LARGEST`, and an interval that holds its value."""
    x, y, low, high = (min(max(value, -LARGEST), LARGEST) for value in point)
    return Point(x, y, min(low, y), max(high, y))


def axes(figure: Figure) -> tuple[Axis, Axis]:
    """Return the axes of x and y of a drawable figure. A value axis holds zero, unless the figure is of dots."""
    every = [point for series in figure.series for point in series.points]
    across, up = [p.x for p in every], [value for p in every for value in (p.low, p.high)]
    if figure.kind == "dots":
        return loose_axis(across), loose_axis(up)
    vertical = tick_axis(min([0.0, *up]), max([0.0, figure.top, *up]))
    if figure.powers:
        return power_axis(across), vertical
    low, high = min([0.0, *across]), max([0.0, *across])
    high = high if high - low > 1e-290 else low + 1.0
    inside = [tick for tick in tick_axis(low, high).ticks if low <= tick <= high]
    return Axis(low, high, tuple(inside)), vertical


def tick_axis(low: float, high: float) -> Axis:
    """Return an axis that holds low and high and begins and ends with a tick."""
    if not high - low > max(abs(low), abs(high)) * 1e-9 + 1e-290:
        low, high = low - max(abs(low), 1.0) * 0.5 * (low < 0), high + max(abs(high), 1.0) * (low >= 0)
    step = tick_step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(i * step for i in range(first, last + 1))
    return Axis(marks[0], marks[-1], marks)


def tick_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, so that a span has four to ten such steps."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= span / 4 * (1 + 1e-9) or factor == 1)


def loose_axis(values: Sequence[float]) -> Axis:
    """Return an axis with room on both sides and ticks within; it need not hold zero."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.05 or max(abs(low), 1.0) * 0.5
    low, high = low - room, high + room
    return Axis(low, high, tuple(tick for tick in tick_axis(low, high).ticks if low <= tick <= high))


def power_axis(values: Sequence[float]) -> Axis:
    """Return a logarithmic axis of positive values, with ticks at the values themselves, nine at most."""
    distinct = sorted(set(values)) or [1.0]
    every = math.ceil(len(distinct) / 9)
    low, high = math.log2(distinct[0]), math.log2(distinct[-1])
    room = (high - low) * 0.06 or 1.0
    return Axis(low - room, high + room, tuple(distinct[::every]), powers=True)


def share(axis: Axis, value: float) -> float:
    """Return where a value lies on an axis: 0 at its beginning, 1 at its end."""
    place = math.log2(value) if axis.powers else value
    return (place / 2 - axis.low / 2) / (axis.high / 2 - axis.low / 2)


def thinned(values: Sequence[tuple[float, float]], most: int) -> tuple[list[tuple[float, float]], int]:
    """Return at most `most` pairs (x, y), each the mean of equally many neighbours, and of how many.

    The last one may be the mean of fewer. Values that are not finite are left out before.
    """
    finite = [pair for pair in values if all(map(math.isfinite, pair))]
    size = max(math.ceil(len(finite) / most), 1)
    groups = (finite[i : i + size] for i in range(0, len(finite), size))
    return [(mean([x for x, _ in group]), mean([y for _, y in group])) for group in groups], size


def mean(values: Sequence[float]) -> float:
    """Return the mean of some values, at least one."""
    return math.fsum(value / len(values) for value in values)


def number(value: float) -> str:
    """Return a number for people, to three places: 0.25, 12.5, 1,200, 3.1e−7."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    else:
        places = max(2 - math.floor(math.log10(abs(value))), 0)
        text = f"{value:,.{places}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


def spoken(figure: Figure) -> str:
    """Return what a figure shows, in words, for those who do not see it."""
    parts = []
    for series in figure.series:
        if figure.kind == "dots":
            parts.append(f"{series.name}: {len(series.points)} points")
        elif len(series.points) > 8:
            first, last = series.points[0], series.points[-1]
            parts.append(
                f"{series.name}: {len(series.points)} points, from {number(first.y)} at {number(first.x)} "
                f"to {number(last.y)} at {number(last.x)}"
            )
        else:
            parts.append(f"{series.name}: " + ", ".join(said(figure, point) for point in series.points))
    axis = figure.y_label if figure.categories else f"{figure.y_label} over {figure.x_label}"
    return f"{figure.title}. {axis}. " + "; ".join(parts) + "."


def said(figure: Figure, point: Point) -> str:
    """Return a point in words: its category or x, its value, its interval."""
    where = figure.categories[int(point.x)] if figure.categories else f"at {number(point.x)}"
    interval = f" ({number(point.low)} to {number(point.high)})" if point.low < point.high else ""
    return f"{where} {number(point.y)}{interval}"
