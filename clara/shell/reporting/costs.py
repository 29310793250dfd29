"""What answers cost: time, memory and prompt of each system, and how they grow with the number of documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from clara.core.figures import Figure, Point, Series, number
from clara.io.evaluation.evaluations import Evaluation
from clara.io.evaluation.labels import NONE, PARTS, counted, style
from clara.io.evaluation.predictions import Prediction
from clara.io.report.document import Cell, Picture, Table

Values = dict[str, dict[int, list[float]]]
"""System → number of documents → a value for each question."""


def cost_table(evaluation: Evaluation) -> Table:
    """Return a row for each system: documents, prompt, time of a question in its parts, and peak memory."""
    rows = []
    for each in evaluation.scores.systems:
        answers = evaluation.predictions[each.system]
        cut = sum(not answer.finished for answer in answers)
        rows.append(
            (
                Cell(each.system),
                Cell(number(float(np.median([len(answer.documents) for answer in answers] or [0])))),
                Cell(number(each.prompt_tokens)),
                *(Cell(number(1000 * each.seconds[part])) if part in each.seconds else NONE for part in PARTS),
                Cell(number(each.peak_bytes / 1e9)) if each.peak_bytes else NONE,
                Cell(f"{cut:,}"),
            )
        )
    columns = ("system", "documents", "prompt tokens", *(f"{part} (ms)" for part in PARTS), "peak (GB)", "cut off")
    caption = (
        "Cost of a question: median documents in the prompt, mean prompt tokens, median milliseconds; peak memory of "
        "the device; answers that were cut off at the most tokens allowed"
    )
    return Table(caption, columns, tuple(rows))


def cost_figures(evaluations: Sequence[Evaluation], name: str) -> list[Picture]:
    """Return time, prompt and peak memory against the number of documents in the prompt, of evaluations pooled."""
    answers = [answer for each in evaluations for found in each.predictions.values() for answer in found]
    timed = [answer for answer in answers if answer.seconds]
    drawn = {
        "time": grown("Time of a question", "seconds", by_documents(timed, lambda a: sum(a.seconds.values()))),
        "prompt": grown("Prompt", "tokens", by_documents(answers, lambda answer: answer.prompt_tokens)),
        "peak": peaks(evaluations),
    }
    return [Picture(f"{name}-{kind}", figure) for kind, figure in drawn.items() if figure.series]


def by_documents(answers: Iterable[Prediction], value: Callable[[Prediction], float]) -> Values:
    """Return a value of each answer, by system and by how many documents it was given from."""
    found: Values = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        found[answer.system][len(answer.documents)].append(value(answer))
    return found


def grown(title: str, unit: str, values: Values) -> Figure:
    """Return medians with quartiles against the number of documents."""
    series = []
    for system, groups in values.items():
        quartiles = ((count, np.quantile(group, (0.5, 0.25, 0.75)).tolist()) for count, group in sorted(groups.items()))
        series.append(Series(system, tuple(Point(count, *each) for count, each in quartiles), style(system)))
    sizes = [len(group) for groups in values.values() for group in groups.values()]
    note = f"Median, lines from the lower to the upper quartile; {counted(sizes)} at each point."
    return Figure("lines", title, "documents in the prompt", unit, tuple(series), note)


def peaks(evaluations: Iterable[Evaluation]) -> Figure:
    """Return the peak memory of each system in each evaluation against its median number of documents."""
    found: dict[str, list[Point]] = defaultdict(list)
    for evaluation in evaluations:
        for each in evaluation.scores.systems:
            counts = [len(answer.documents) for answer in evaluation.predictions[each.system]]
            if counts and each.peak_bytes:
                size = each.peak_bytes / 1e9
                found[each.system].append(Point(float(np.median(counts)), size, size, size))
    series = (Series(system, tuple(sorted(points)), style(system)) for system, points in found.items())
    note = "Most that the device held while the system ran, one point an evaluation."
    return Figure("lines", "Peak memory", "documents in the prompt (median)", "GB", tuple(series), note)
