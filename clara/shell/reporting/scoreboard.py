"""What a report says of one evaluation: the table of systems, their bars, paired tests, ranking and cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from clara.core.figures import Figure, Point, Series
from clara.io.evaluation.evaluations import Evaluation
from clara.io.evaluation.labels import (
    COUNTERFACTUAL,
    MEANS,
    PAIRED,
    RANKING,
    STAND_IN,
    choosing,
    counted,
    cut_text,
    interval,
    is_rank,
    label,
    mean_cell,
    p_text,
)
from clara.io.evaluation.predictions import Comparison, Scores, SystemScores
from clara.io.report.document import Block, Cell, Picture, Section, Table
from clara.shell.reporting.costs import cost_table


def scoreboard(evaluation: Evaluation, title: str, name: str) -> Section:
    """Return the section of an evaluation; name: what its figures' files begin with."""
    systems = evaluation.scores.systems
    names = metrics_of(systems)
    answers = [metric for metric in names if not is_rank(metric)]
    ranks = [metric for metric in names if is_rank(metric)]
    first = [metric for metric in answers if metric.endswith("_first")]
    best = [metric for metric in answers if metric not in first]
    blocks: list[Block] = [
        *notes(evaluation),
        means_table("Answers, best over all gold answers", systems, best),
        *(Picture(f"{name}-{each}", bars_of(systems, each)) for each in shown(best)),
        *paired(evaluation.scores),
    ]
    if first:
        blocks.append(means_table("Answers, against the first gold answer alone", systems, first)._replace(folded=True))
    if ranks:
        having = [each for each in systems if any(map(is_rank, each.means))]
        blocks.append(means_table(RANKING.capitalize(), having, ranks))
    return Section(title, (*blocks, cost_table(evaluation)))


def notes(evaluation: Evaluation) -> Iterator[str]:
    """Yield what a reader of the numbers has to know of the way in which they came about."""
    facts = evaluation.facts
    if facts.counterfactual:
        yield f"{COUNTERFACTUAL.capitalize()}; {facts.not_rewritten:,} questions where that is not possible left out."
    if facts.beams > 1:
        yield f"Every system's answers are those that a search with {facts.beams} beams found."
    if facts.documents_cut:
        yield f"{cut_text(facts.documents_cut, facts.documents, facts.doc_max_tokens)}."
    if not facts.reasoner and (standing := choosing(evaluation.predictions)):
        yield f"In {' and '.join(standing)} {STAND_IN}."


def metrics_of(systems: Iterable[SystemScores]) -> list[str]:
    """Return every metric that a system has, in the order in which they come up."""
    return list(dict.fromkeys(metric for each in systems for metric in each.means))


def main_metric(systems: Iterable[SystemScores]) -> str:
    """Return the metric that systems are compared by: cover-EM, or the first that there is where it is missing."""
    names = metrics_of(systems)
    return "cover_exact_match" if "cover_exact_match" in names or not names else names[0]


def shown(metrics: Sequence[str]) -> list[str]:
    """Return the metrics of answers that are drawn: three at most, the common ones first."""
    common = [name for name in ("cover_exact_match", "token_f1", "exact_match") if name in metrics]
    return (common or list(metrics))[:3]


def means_table(caption: str, systems: Iterable[SystemScores], metrics: Sequence[str]) -> Table:
    """Return a row for each system: the mean of each metric with its interval, and of how many questions."""
    rows = (
        (Cell(each.system), *(mean_cell(each.means, metric) for metric in metrics), Cell(f"{each.questions:,}"))
        for each in systems
    )
    return Table(f"{caption}: {MEANS}", ("system", *map(label, metrics), "questions"), tuple(rows))


def bars_of(systems: Sequence[SystemScores], metric: str) -> Figure:
    """Return a bar for each system that has the metric."""
    having = [each for each in systems if metric in each.means]
    values = (each.means[metric] for each in having)
    series = Series(label(metric), tuple(Point(i, v.mean, v.low, v.high) for i, v in enumerate(values)))
    return Figure(
        *("bars", label(metric), "system", f"mean {label(metric)}", (series,)),
        note=f"{counted([each.questions for each in having])}; lines are 95 % bootstrap intervals",
        categories=tuple(each.system for each in having),
        top=1.0,
    )


def paired(scores: Scores) -> list[Table]:
    """Return the paired tests: those of the main metric, and folded away those of the others."""
    main = main_metric(scores.systems)
    leading = [each for each in scores.comparisons if each.metric == main]
    others = [each for each in scores.comparisons if each.metric != main]
    tables = [tests_table(label(main), leading), tests_table("further metrics", others)._replace(folded=True)]
    return [table for table in tables if table.rows]


def tests_table(what: str, comparisons: Sequence[Comparison]) -> Table:
    """Return a row for each comparison."""
    rows = (
        (
            Cell(f"{each.first} − {each.second}"),
            interval(each.difference),
            Cell(p_text(each.p_value), "" if each.p_value < 0.05 else "not told apart"),
            Cell(label(each.metric)),
        )
        for each in comparisons
    )
    caption = f"Paired tests, {what}: {PAIRED}, not corrected for the number of pairs"
    return Table(caption, ("pair", "difference", "p", "metric"), tuple(rows))
