"""Draws figures as PNG with matplotlib, which the extra `report` brings."""

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

from clara.core.figures import Figure, Series, axes, drawable, number
from clara.io.files import write_atomic
from clara.io.report.style import LIGHT

INCHES, DOTS = (6.4, 4.2), 160
"""Width and height of a figure, and pixels to an inch."""
MARKS = "os^Dv"


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure as a picture on a light ground, with title and note. Raises ClaraError where that cannot be."""
    import matplotlib

    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False}):
        # Of a character that its font lacks, matplotlib draws a box, which is enough.
        warnings.simplefilter("ignore")
        canvas_of(drawable(figure)).savefig(buffer, format="png", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def canvas_of(figure: Figure) -> Any:
    """Return matplotlib's figure of a drawable one."""
    from matplotlib.figure import Figure as Canvas

    high = 1.4 + len(figure.categories) * (0.18 * len(figure.series) + 0.16) if figure.kind == "bars" else INCHES[1]
    canvas = Canvas(figsize=(INCHES[0], high), dpi=DOTS, layout="constrained")
    place = canvas.add_subplot()
    place.spines[["top", "right"]].set_visible(False)
    place.set_axisbelow(True)
    {"bars": draw_bars, "lines": draw_lines, "dots": draw_dots}[figure.kind](place, figure)
    canvas.suptitle(figure.title, x=0.02, ha="left", fontsize=11, fontweight="bold")
    if figure.note:
        canvas.supxlabel(figure.note, x=0.02, ha="left", fontsize=7, color=LIGHT.faint, wrap=True)
    if len(figure.series) > 1:
        place.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return canvas


def draw_bars(place: Any, figure: Figure) -> None:
    """Draw horizontal bars, grouped by category, the first on top."""
    thick = 0.8 / max(len(figure.series), 1)
    for row, series in enumerate(figure.series):
        at = [point.x + (row - (len(figure.series) - 1) / 2) * thick for point in series.points]
        wide = [point.y for point in series.points]
        place.barh(at, wide, thick * 0.9, label=series.name, color=colour(series), xerr=spread(series), capsize=2)
    up = axes(figure)[1]
    place.set(xlim=(up.low, up.high), ylim=(len(figure.categories) - 0.4, -0.6), xlabel=figure.y_label)
    place.set_yticks(range(len(figure.categories)), figure.categories)
    place.grid(axis="x", color=LIGHT.line)


def draw_lines(place: Any, figure: Figure) -> None:
    """Draw a line for each series, with marks and intervals where its points are few."""
    for series in figure.series:
        few = len(series.points) <= 80
        look = {"color": colour(series), "marker": mark(series) if few else None, "markersize": 4, "linewidth": 1.5}
        look["linestyle"] = "-" if series.style < len(LIGHT.series) else "--"
        across, up = [point.x for point in series.points], [point.y for point in series.points]
        if spread(series) is not None:
            place.errorbar(across, up, yerr=spread(series), capsize=2, label=series.name, **look)
        else:
            place.plot(across, up, label=series.name, **look)
    across_axis, up_axis = axes(figure)
    place.set(ylim=(up_axis.low, up_axis.high), xlabel=figure.x_label, ylabel=figure.y_label)
    place.grid(axis="y", color=LIGHT.line)
    if figure.powers:
        place.set_xscale("log", base=2)
        place.set_xlim(2**across_axis.low, 2**across_axis.high)
        place.set_xticks(across_axis.ticks, map(number, across_axis.ticks))
        place.minorticks_off()


def draw_dots(place: Any, figure: Figure) -> None:
    """Draw a cloud for each series."""
    for series in figure.series:
        across, up = [point.x for point in series.points], [point.y for point in series.points]
        place.scatter(
            across, up, s=14, alpha=0.65, linewidths=0, color=colour(series), marker=mark(series), label=series.name
        )
    place.set(xlabel=figure.x_label, ylabel=figure.y_label)
    place.grid(color=LIGHT.line)


def spread(series: Series) -> list[list[float]] | None:
    """Return how far the intervals of a series reach below and above its values; None where it has none."""
    if all(point.low == point.high for point in series.points):
        return None
    return [[point.y - point.low for point in series.points], [point.high - point.y for point in series.points]]


def colour(series: Series) -> str:
    """Return the colour of a series."""
    return LIGHT.series[series.style % len(LIGHT.series)]


def mark(series: Series) -> str:
    """Return the mark of a series."""
    return MARKS[series.style % len(MARKS)]
