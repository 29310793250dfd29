"""Predictions to scores, and scores to the tables that evaluation shows at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np

from clara.core.statistics import bootstrap_interval, sign_flip_test
from clara.io.evaluation.predictions import Comparison, Interval, Prediction, Scores, SystemScores
from clara.shell.reporting.labels import decimals, label, p_text

METRICS = ("exact_match", "cover_exact_match", "token_f1", "keyword_match", "rouge_l", "entities")
"""Scores of answers in the tables, in this order."""

RANKS = ("recall_at_1", "mrr")

PARTS = ("compress", "retrieve", "prefill", "decode")
"""Of the time that a question takes."""


def scores_of(predictions: Mapping[str, Sequence[Prediction]], peaks: Mapping[str, int], seed: int) -> Scores:
    """Return the scores of systems, and those of `memory`, or else the first of them, against each other one."""
    systems = [system_scores(name, found, peaks.get(name, 0), seed) for name, found in predictions.items()]
    first = "memory" if "memory" in predictions else next(iter(predictions))
    comparisons = [
        compared
        for name in predictions
        if name != first
        for metric in METRICS
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


def tables(scores: Scores) -> str:
    """Return the tables of an evaluation as Markdown that can be read as it is."""
    parts = [answers_table(scores), costs_table(scores)]
    return "\n\n".join([*parts, tests_table(scores)] if scores.comparisons else parts)


def answers_table(scores: Scores) -> str:
    """Return a row for each system: the means of its metrics, with 95 % bootstrap intervals."""
    metrics = [metric for metric in (*METRICS, *RANKS) if any(metric in each.means for each in scores.systems)]
    rows = [
        [each.system, f"{each.questions:,}", *(spread(each.means.get(metric)) for metric in metrics)]
        for each in scores.systems
    ]
    return table(["system", "questions", *map(label, metrics)], rows)


def costs_table(scores: Scores) -> str:
    """Return a row for each system: mean prompt tokens, median milliseconds of a question, peak memory."""
    rows = [
        [
            each.system,
            f"{each.prompt_tokens:,.0f}",
            *(f"{1000 * each.seconds[part]:,.0f}" for part in PARTS),
            f"{each.peak_bytes / 1e9:.2f}" if each.peak_bytes else "–",
        ]
        for each in scores.systems
    ]
    return table(["system", "prompt tokens", *(f"{part} ms" for part in PARTS), "peak GB"], rows)


def tests_table(scores: Scores) -> str:
    """Return a row for each pair of systems: the difference in each metric with its 95 % interval, and the p-value."""
    found = {(each.second, each.metric): each for each in scores.comparisons}
    metrics = [metric for metric in METRICS if any(each.metric == metric for each in scores.comparisons)]
    first = scores.comparisons[0].first
    rows = [
        [f"{first} − {second}", *(tested(found.get((second, metric))) for metric in metrics)]
        for second in dict.fromkeys(each.second for each in scores.comparisons)
    ]
    return table(["paired test", *map(label, metrics)], rows)


def tested(compared: Comparison | None) -> str:
    """Return a difference, its interval and how likely one as large is between systems that are alike."""
    return f"{spread(compared.difference)} p {p_text(compared.p_value)}" if compared else "–"


def spread(value: Interval | None) -> str:
    """Return a mean and its interval."""
    return f"{decimals(value.mean)} [{decimals(value.low)}, {decimals(value.high)}]" if value else "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns stand under one another; the first is at the left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return f"| {' | '.join([row[0].ljust(widths[0]), *cells[1:]])} |"

    rule = f"|{'|'.join(['-' * (widths[0] + 2), *('-' * (width + 1) + ':' for width in widths[1:])])}|"
    return "\n".join([line(head), rule, *map(line, rows)])
