"""Predictions to scores, and scores to the tables that evaluation shows at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np

from clara.core.statistics import bootstrap_interval, sign_flip_test
from clara.io.evaluation.labels import (
    ANSWERS,
    MEANS,
    NONE,
    PAIRED,
    PARTS,
    RANKING,
    RANKS,
    interval,
    is_rank,
    label,
    mean_cell,
    p_text,
)
from clara.io.evaluation.predictions import Comparison, Interval, Prediction, Scores, SystemScores
from clara.io.report.document import Cell, Table


def scores_of(predictions: Mapping[str, Sequence[Prediction]], peaks: Mapping[str, int], seed: int) -> Scores:
    """Return the scores of systems, and those of `memory`, or else the first of them, against each other one."""
    systems = [system_scores(name, found, peaks.get(name, 0), seed) for name, found in predictions.items()]
    first = "memory" if "memory" in predictions else next(iter(predictions))
    comparisons = [
        compared
        for name in predictions
        if name != first
        for metric in ANSWERS
        if (compared := comparison(predictions[first], predictions[name], metric, seed))
    ]
    return Scores(systems=systems, comparisons=comparisons)


def system_scores(name: str, predictions: Sequence[Prediction], peak: int, seed: int) -> SystemScores:
    """Return what a system is worth over its predictions; a metric counts over the questions that have it."""
    columns: dict[str, list[float]] = {}
    for each in predictions:
        for metric, value in (each.metrics | each.ranking).items():
            columns.setdefault(metric, []).append(value)
    return SystemScores(
        system=name,
        questions=len(predictions),
        means={metric: interval_of(values, seed) for metric, values in columns.items()},
        seconds={part: median(each.seconds[part] for each in predictions) for part in PARTS},
        prompt_tokens=fmean(each.prompt_tokens for each in predictions),
        peak_bytes=peak,
    )


def comparison(first: Sequence[Prediction], second: Sequence[Prediction], metric: str, seed: int) -> Comparison | None:
    """Return how two systems differ in a metric on the questions that both answered; None where there are none."""
    other = {each.id: each.metrics[metric] for each in second if metric in each.metrics}
    differences = [each.metrics[metric] - other[each.id] for each in first if each.id in other]
    if not differences:
        return None
    return Comparison(
        first=first[0].system,
        second=second[0].system,
        metric=metric,
        difference=interval_of(differences, seed),
        p_value=sign_flip_test(differences, np.random.default_rng([seed, 5])),
    )


def interval_of(values: Sequence[float], seed: int) -> Interval:
    """Return the mean of values with its interval."""
    return Interval(*bootstrap_interval(values, np.random.default_rng([seed, 4])))


def tables(scores: Scores) -> list[Table]:
    """Return the tables of an evaluation: answers and ranking, cost, and paired tests where there are two systems."""
    return [answers_table(scores), costs_table(scores), *([tests_table(scores)] if scores.comparisons else [])]


def answers_table(scores: Scores) -> Table:
    """Return a row for each system: the means of its metrics, with 95 % bootstrap intervals."""
    metrics = [metric for metric in (*ANSWERS, *RANKS) if any(metric in each.means for each in scores.systems)]
    rows = (
        (Cell(each.system), Cell(f"{each.questions:,}"), *(mean_cell(each.means, metric) for metric in metrics))
        for each in scores.systems
    )
    caption = f"Answers: {MEANS}" + (f"; {RANKING}" if any(map(is_rank, metrics)) else "")
    return Table(caption, ("system", "questions", *map(label, metrics)), tuple(rows))


def costs_table(scores: Scores) -> Table:
    """Return a row for each system: mean prompt tokens, median milliseconds of a question, peak memory."""
    rows = (
        (
            Cell(each.system),
            Cell(f"{each.prompt_tokens:,.0f}"),
            *(Cell(f"{1000 * each.seconds[part]:,.0f}") for part in PARTS),
            Cell(f"{each.peak_bytes / 1e9:.2f}") if each.peak_bytes else NONE,
        )
        for each in scores.systems
    )
    columns = ("system", "prompt tokens", *(f"{part} ms" for part in PARTS), "peak GB")
    return Table("Cost of a question: mean prompt tokens, median times, peak memory", columns, tuple(rows))


def tests_table(scores: Scores) -> Table:
    """Return a row for each pair of systems: the difference in each metric with its 95 % interval, and the p-value."""
    found = {(each.second, each.metric): each for each in scores.comparisons}
    metrics = [metric for metric in ANSWERS if any(each.metric == metric for each in scores.comparisons)]
    first = scores.comparisons[0].first
    rows = (
        (Cell(f"{first} − {second}"), *(tested(found.get((second, metric))) for metric in metrics))
        for second in dict.fromkeys(each.second for each in scores.comparisons)
    )
    return Table(f"Paired tests: {PAIRED}", ("pair", *map(label, metrics)), tuple(rows))


def tested(compared: Comparison | None) -> Cell:
    """Return a difference, its interval and how likely one as large is between systems that are alike."""
    if compared is None:
        return NONE
    difference = interval(compared.difference)
    return difference._replace(note=f"{difference.note}, p {p_text(compared.p_value)}")
