"""Draws figures as SVG: for a page, whose style sheet colours them, or as a picture that stands alone."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clara.core.figures import Axis, Figure, Point, Series, axes, drawable, number, said, share, spoken
from clara.io.files import write_atomic
from clara.io.report.style import FIGURE_RULES, LIGHT, themed

WIDTH, HEIGHT = 360, 250
CHARACTER = 6.4
"""Mean width of a character of 11 pixels."""
ROW, BAR, GAP = 16, 9, 10
"""Heights of a legend's row and of a bar, and the room between two groups of bars."""
DODGE = 3
"""How far series with intervals stand beside one another, so that these do not hide each other."""
NAMED = 80
"""A series of at most so many points has a mark at each, with its numbers as a hint."""

UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MARKS = (
    "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0",
    "M-3-3h6v6h-6z",
    "M0-4l3.8 6.8h-7.6z",
    "M0-4.2l4.2 4.2-4.2 4.2-4.2-4.2z",
    "M-3-4h6l-3 7.6z",
)


class Frame(NamedTuple):
    """Where a figure's points lie, in pixels, with its axes; y grows downwards."""

    left: float
    right: float
    top: float
    bottom: float
    across: Axis
    up: Axis

    def x(self, value: float) -> float:
        """Return the place of a value of the horizontal axis."""
        return self.left + (self.right - self.left) * share(self.across, value)

    def y(self, value: float) -> float:
        """Return the place of a value of the vertical axis."""
        return self.bottom - (self.bottom - self.top) * share(self.up, value)


def escape(text: str) -> str:
    """Return a text as it may stand in HTML and XML, also within quotes; characters that neither allows as U+FFFD."""
    return html.escape(UNFIT.sub("\ufffd", text))


def draw(figure: Figure, width: int = WIDTH, height: int = HEIGHT, alone: bool = False) -> str:
    """Return a figure as an `svg` element, with more height where a legend or bars want it.

    alone: with its title, a ground and its own style, as a file. Points that are not finite are not drawn.
    """
    figure = drawable(figure)
    rows = legend_rows(figure, width)
    top = 26 if alone else 4
    start = top + ROW * len(rows) + 4
    height += ROW * max(len(rows) - 1, 0)
    if figure.kind == "bars":
        height = start + len(figure.categories) * group_height(figure) + 38
    inside = bars(figure, width, height, start) if figure.kind == "bars" else plot(figure, width, height, start)
    body = [*legend(rows, top), *inside]
    if alone:
        ground = f'<rect class="ground" width="{width}" height="{height}"/>'
        title = f'<text class="title" x="8" y="18">{escape(figure.title)}</text>'
        body = [f"<style>{themed('svg')}{FIGURE_RULES}</style>", ground, title, *body]
    space = ' xmlns="http://www.w3.org/2000/svg"' if alone else ""
    opening = f'<svg{space} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(spoken(figure))}">'
    return "\n".join([opening, *body, "</svg>", ""])


def write_svg(path: Path, figure: Figure, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write a figure as a picture that stands alone. Raises ClaraError where that cannot be."""
    write_atomic(path, draw(figure, width, height, alone=True).encode())


def legend_rows(figure: Figure, width: int) -> list[list[tuple[Series, float]]]:
    """Return the series of each row of the legend with their places; of a single series there is no legend."""
    rows: list[list[tuple[Series, float]]] = []
    x = float(width)
    for series in figure.series if len(figure.series) > 1 else ():
        room = 26 + CHARACTER * len(series.name)
        if x + room > width:
            rows.append([])
            x = 8.0
        rows[-1].append((series, x))
        x += room
    return rows


def legend(rows: list[list[tuple[Series, float]]], top: float) -> Iterator[str]:
    """Yield a mark and a name for each series."""
    for i, row in enumerate(rows):
        y = top + ROW * i + 9
        for series, x in row:
            yield f'<path class="{colour(series)}" d="{shape(series)}" {moved(x + 4, y - 4)}/>'
            yield f'<text x="{x + 13:.1f}" y="{y}">{escape(series.name)}</text>'


def plot(figure: Figure, width: int, height: int, start: float) -> Iterator[str]:
    """Yield axes, and lines or dots within them. The vertical axis is named above it."""
    across, up = axes(figure)
    left = 14 + CHARACTER * max(len(number(tick)) for tick in (*up.ticks, 0.0))
    ranged = any(point.low < point.high for series in figure.series for point in series.points)
    room = DODGE * (len(figure.series) - 1) / 2 if ranged else 0.0
    frame = Frame(left + room, width - 18 - room, start + 22, height - 38, across, up)
    yield f'<text class="faint" x="8" y="{start + 10}">{escape(figure.y_label)}</text>'
    for tick in spaced(up.ticks, frame.bottom - frame.top, 22):
        y = frame.y(tick)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{width - 18}"/>'
        yield f'<text class="faint" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
    yield f'<path class="axis" d="M{left:.1f} {frame.bottom:.1f}H{width - 18}"/>'
    longest = max((len(number(tick)) for tick in across.ticks), default=1)
    for tick in spaced(across.ticks, frame.right - frame.left, CHARACTER * longest + 8):
        x = frame.x(tick)
        yield f'<path class="axis" d="M{x:.1f} {frame.bottom:.1f}v4"/>'
        yield f'<text class="faint" x="{x:.1f}" y="{frame.bottom + 16:.1f}" text-anchor="middle">{number(tick)}</text>'
    middle = (frame.left + frame.right) / 2
    yield f'<text class="faint" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(figure.x_label)}</text>'
    for i, series in enumerate(figure.series):
        aside = frame._replace(left=frame.left - room + DODGE * i, right=frame.right - room + DODGE * i)
        yield from cloud(series, frame) if figure.kind == "dots" else line(figure, series, aside if room else frame)


def spaced(ticks: tuple[float, ...], length: float, room: float) -> tuple[float, ...]:
    """Return as many ticks, evenly taken, as have so much room each along an axis of a length in pixels."""
    return ticks[:: max(math.ceil(len(ticks) * room / length), 1)]


def line(figure: Figure, series: Series, frame: Frame) -> Iterator[str]:
    """Yield the line of a series with its intervals, and a mark at each point where they are few."""
    places = [(frame.x(point.x), frame.y(point.y)) for point in series.points]
    look = "line" if series.style < len(LIGHT.series) else "line dashed"
    yield f'<polyline class="{colour(series)} {look}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
    for point in series.points:
        if point.low < point.high:
            x, low, high = frame.x(point.x), frame.y(point.low), frame.y(point.high)
            caps = f"m-3 0h6M{x - 3:.1f} {low:.1f}h6"
            yield f'<path class="{colour(series)} spread" d="M{x:.1f} {low:.1f}V{high:.1f}{caps}"/>'
    if len(series.points) <= NAMED:
        yield from (mark(figure, series, point, frame) for point in series.points)


def cloud(series: Series, frame: Frame) -> Iterator[str]:
    """Yield a cloud of marks."""
    yield f'<g class="{colour(series)} cloud">'
    yield from (f'<path class="mark" d="{shape(series)}" {moved(frame.x(p.x), frame.y(p.y))}/>' for p in series.points)
    yield "</g>"


def mark(figure: Figure, series: Series, point: Point, frame: Frame) -> str:
    """Return the mark of a point, with its numbers as a hint."""
    hint = escape(f"{series.name}, {said(figure, point)}")
    place = moved(frame.x(point.x), frame.y(point.y))
    return f'<path class="{colour(series)} mark" d="{shape(series)}" {place}><title>{hint}</title></path>'


def group_height(figure: Figure) -> int:
    """Return the height of the bars of one category, in pixels."""
    return max(len(figure.series), 1) * (BAR + 2) + GAP


def bars(figure: Figure, width: int, height: int, start: float) -> Iterator[str]:
    """Yield horizontal bars, grouped by category, with their intervals and their values at the right."""
    up = axes(figure)[1]
    left = 16 + CHARACTER * max(map(len, figure.categories), default=0)
    frame = Frame(left, width - 48, start, height - 38, up, up)
    for tick in spaced(up.ticks, frame.right - frame.left, CHARACTER * max(len(number(t)) for t in up.ticks) + 8):
        x = frame.x(tick)
        yield f'<path class="grid" d="M{x:.1f} {frame.top:.1f}V{frame.bottom:.1f}"/>'
        yield f'<text class="faint" x="{x:.1f}" y="{frame.bottom + 14:.1f}" text-anchor="middle">{number(tick)}</text>'
    for i, name in enumerate(figure.categories):
        y = start + (i + 0.5) * group_height(figure) + 4
        yield f'<text x="{left - 8:.1f}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>'
    for row, series in enumerate(figure.series):
        for point in series.points:
            y = start + point.x * group_height(figure) + GAP / 2 + row * (BAR + 2)
            yield bar(figure, series, point, frame, y)
    zero = frame.x(0.0)
    yield f'<path class="axis" d="M{zero:.1f} {frame.top:.1f}V{frame.bottom:.1f}"/>'
    middle = (frame.left + frame.right) / 2
    yield f'<text class="faint" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(figure.y_label)}</text>'


def bar(figure: Figure, series: Series, point: Point, frame: Frame, y: float) -> str:
    """Return a bar whose upper edge is at y, its interval and its value; the whole has its numbers as a hint."""
    zero, end, low, high = (frame.x(value) for value in (0.0, point.y, point.low, point.high))
    middle = y + BAR / 2
    parts = [
        f"<g><title>{escape(f'{series.name}, {said(figure, point)}')}</title>",
        f'<rect class="{colour(series)} mark" x="{min(zero, end):.1f}" y="{y:.1f}" width="{abs(end - zero):.1f}" '
        f'height="{BAR}"/>',
        f'<text x="{frame.right + 8:.1f}" y="{middle + 4:.1f}">{written(point.y)}</text></g>',
    ]
    if low < high:
        caps = f"m0-3v6M{low:.1f} {middle - 3:.1f}v6"
        parts.insert(2, f'<path class="range" d="M{low:.1f} {middle:.1f}H{high:.1f}{caps}"/>')
    return "".join(parts)


def written(value: float) -> str:
    """Return the value at a bar: to three decimals, as tables have it, where it is small."""
    return f"{value:.3f}" if abs(value) < 10 else number(value)


def colour(series: Series) -> str:
    """Return the class of a series' colour."""
    return f"s{series.style % len(LIGHT.series)}"


def shape(series: Series) -> str:
    """Return the outline of a series' marks."""
    return MARKS[series.style % len(MARKS)]


def moved(x: float, y: float) -> str:
    """Return the attribute that puts a mark at a place."""
    return f'transform="translate({x:.1f} {y:.1f})"'
