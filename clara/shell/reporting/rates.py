"""How good answers are at each compression rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from clara.core.figures import Figure, Point, Series
from clara.io.evaluation.evaluations import Evaluation
from clara.io.evaluation.labels import counted, label, style
from clara.io.report.document import Picture


def rate_figures(evaluations: Sequence[Evaluation], metrics: Iterable[str], name: str) -> list[Picture]:
    """Return a figure for each metric: its mean against the compression rate.

    Without one where there are fewer than two rates. Of evaluations of one rate the last counts.
    """
    by_rate = {each.facts.compression_rate: each for each in evaluations if each.facts.compression_rate}
    if len(by_rate) < 2:
        return []
    figures = ((metric, rate_figure(dict(sorted(by_rate.items())), metric)) for metric in metrics)
    return [Picture(f"{name}-{metric}", figure) for metric, figure in figures if figure.series]


def rate_figure(by_rate: dict[int, Evaluation], metric: str) -> Figure:
    """Return the mean of a metric against the compression rate, a line for each system."""
    found: dict[str, list[Point]] = defaultdict(list)
    sizes = []
    for rate, evaluation in by_rate.items():
        for each in evaluation.scores.systems:
            if value := each.means.get(metric):
                found[each.system].append(Point(rate, value.mean, value.low, value.high))
                sizes.append(each.questions)
    series = (Series(system, tuple(points), style(system)) for system, points in found.items())
    return Figure(
        *("lines", f"{label(metric)} against compression", "document tokens per memory token", f"mean {label(metric)}"),
        tuple(series),
        note=f"{counted(sizes)} at each point; lines are 95 % bootstrap intervals",
        top=1.0,
        powers=True,
    )
