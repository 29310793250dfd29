"""What a report holds, chapter by chapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from clara.io.evaluation.evaluations import EVALUATIONS, Evaluation, Run, asked
from clara.io.evaluation.labels import MEANS, NONE, decimals, label, mean_cell
from clara.io.report.document import Block, Cell, Picture, Report, Section, Table
from clara.shell.reporting.cases import cases
from clara.shell.reporting.costs import cost_figures
from clara.shell.reporting.curves import loss_figure, rank_figure
from clara.shell.reporting.rates import rate_figures
from clara.shell.reporting.scoreboard import main_metric, metrics_of, scoreboard, shown

FACTS = {
    "compression_rate": "compression rate",
    "num_memory_tokens": "memory tokens",
    "data": "data",
    "questions": "questions",
    "checkpoint": "checkpoint",
    "model": "base",
    "device": "device",
}
"""What is told of an evaluation's configuration, and how that is called."""

Named = Mapping[str, Evaluation]
"""Evaluations by the titles that tell them apart."""


TITLE = "CLaRa report"


def report_of(
    evaluations: Sequence[Evaluation], runs: Sequence[Run], maps: Sequence[Section], questions: int
) -> Report:
    """Return the report of evaluations and runs, with the maps of their states and so many chosen questions."""
    named = titled(evaluations)
    chapters: dict[str, list[Block]] = {
        "At a glance": [glance_table(named)] if len(named) > 1 else [],
        "Accuracy against compression rate": list(rates(evaluations)),
        "Systems": [scoreboard(each, title, f"answers-{i}") for i, (title, each) in enumerate(named.items(), 1)],
        "Time and memory against number of documents": list(costs(evaluations)),
        "Training": list(training(runs)),
        "Map of memory and document states": list(maps),
        "Questions on which the systems disagree": list(chosen(named, questions)),
        "What was evaluated": [facts_table(named)] if named else [],
    }
    lead = tuple(finding(title, each) for title, each in named.items())
    return Report(TITLE, lead, tuple(Section(title, tuple(all_)) for title, all_ in chapters.items() if all_))


def titled(evaluations: Sequence[Evaluation]) -> dict[str, Evaluation]:
    """Return evaluations under the names of their folders, with as much of the paths as tells them apart."""
    paths = [each.path.resolve().parts[1:] for each in evaluations]
    for depth in range(1, max(map(len, paths), default=1)):
        titles = ["/".join(part for part in path[-depth:] if part != EVALUATIONS) for path in paths]
        if len(set(titles)) == len(titles):
            return dict(zip(titles, evaluations, strict=True))
    return dict(zip(map("/".join, paths), evaluations, strict=True))


def glance_table(named: Named) -> Table:
    """Return the first evaluation's main metric of each system in each evaluation."""
    metric = main_metric(next(iter(named.values())).scores.systems)
    names = dict.fromkeys(system.system for each in named.values() for system in each.scores.systems)
    found = [{system.system: system.means for system in each.scores.systems} for each in named.values()]
    rows = ((Cell(name), *(mean_cell(means.get(name, {}), metric) for means in found)) for name in names)
    return Table(f"{label(metric)}: {MEANS}", ("system", *named), tuple(rows))


def facts_table(named: Named) -> Table:
    """Return a row for each evaluation: its memory, data, checkpoint and device."""
    rows = ((Cell(title), *(told(getattr(each.facts, name)) for name in FACTS)) for title, each in named.items())
    return Table("Evaluations", ("folder", *FACTS.values()), tuple(rows), numbers=False)


def told(value: int | str) -> Cell:
    """Return a fact as a cell."""
    return Cell(f"{value:,}" if isinstance(value, int) else value) if value else NONE


def finding(title: str, evaluation: Evaluation) -> str:
    """Return in words what came out: memory by the main metric, beside the text and other documents' memory."""
    systems, metric = evaluation.scores.systems, main_metric(evaluation.scores.systems)
    having = [each for each in systems if metric in each.means]
    if not having:
        return f"{title}: no answer was scored."
    first = next((each for each in having if each.system == "memory"), having[0])
    value = first.means[metric]
    beside = [each for each in having if each.system in ("text", "tuned_text", "memory_shuffled")] or having
    rest = "".join(f", {each.system} {decimals(each.means[metric].mean)}" for each in beside if each is not first)
    return (
        f"{title}: {label(metric)} over {first.questions:,} questions is {first.system} {decimals(value.mean)} "
        f"({decimals(value.low)} to {decimals(value.high)}){rest}."
    )


def by_questions(evaluations: Iterable[Evaluation]) -> list[list[Evaluation]]:
    """Return the evaluations in groups of which each was asked the same questions, in the same way."""
    groups: dict[tuple[str | int, ...], list[Evaluation]] = {}
    for each in evaluations:
        groups.setdefault(asked(each), []).append(each)
    return list(groups.values())


def rates(evaluations: Iterable[Evaluation]) -> Iterator[Section]:
    """Yield how answers depend on the compression rate, where equal questions were asked at two rates or more."""
    for i, group in enumerate(by_questions(evaluations), 1):
        metrics = metrics_of(system for each in group for system in each.scores.systems)
        if figures := rate_figures(group, shown(metrics), f"rates-{i}"):
            facts = group[0].facts
            name = Path(facts.data).name or "Evaluated questions"
            yield Section(name + ", counterfactual" * facts.counterfactual, tuple(figures))


def costs(evaluations: Sequence[Evaluation]) -> Iterator[Section]:
    """Yield what a question costs, for each compression rate, base and device."""
    groups: dict[tuple[int, str, str], list[Evaluation]] = {}
    for each in evaluations:
        groups.setdefault((each.facts.compression_rate, each.facts.model, each.facts.device), []).append(each)
    for i, ((rate, *where), group) in enumerate(sorted(groups.items()), 1):
        if figures := cost_figures(group, f"costs-{i}"):
            title = ", ".join([f"Compression rate {rate or 'unknown'}", *filter(None, where)])
            yield Section(title, tuple(figures))


def training(runs: Sequence[Run]) -> Iterator[Section]:
    """Yield the curves of each run."""
    for i, run in enumerate(runs, 1):
        figures = {"loss": loss_figure(run.events), "recall": rank_figure(run.events)}
        drawn = tuple(Picture(f"training-{i}-{name}", each) for name, each in figures.items() if each.series)
        stage, name = run.config.get("stage", ""), run.path.resolve().name
        title = name if stage in ("", name) else f"{name}, stage {stage}"
        yield Section(title, drawn or ("No step was logged.",))


def chosen(named: Named, count: int) -> Iterator[Section]:
    """Yield the most telling questions of the first of the evaluations that were asked the same."""
    titles = {id(each): title for title, each in named.items()}
    for first, *_ in by_questions(named.values()):
        if found := cases(first, main_metric(first.scores.systems), count):
            yield Section(titles[id(first)], tuple(found))
