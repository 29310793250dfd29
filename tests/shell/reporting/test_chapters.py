"""What a report holds: a chapter only where there is something in it, and every folder under a name of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from evaluations import SYSTEMS, write_evaluation, write_run

from clara.io.evaluation.evaluations import Evaluation, Run, read_evaluation, read_run
from clara.io.evaluation.labels import decimals, interval
from clara.io.report.document import Picture, Report, Section, Table, pictures
from clara.shell.reporting.chapters import facts_table, finding, report_of, titled


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with evaluations at two rates, one of other questions, and a run of two stages."""
    folder = tmp_path_factory.mktemp("place")
    for rate in (4, 16):
        write_evaluation(folder / f"rate-{rate}", rate, 12, model="smollm2-135m", checkpoint=f"runs/{rate}")
    write_evaluation(folder / "other", 4, 6, data="data/other.jsonl")
    write_run(folder / "run" / "pretrain", stage="pretrain")
    write_run(folder / "plain", stage="end_to_end")
    return folder


def evaluations(place: Path, *names: str) -> list[Evaluation]:
    """Return evaluations by their names."""
    return [read_evaluation(place / name) for name in names]


def runs(place: Path) -> list[Run]:
    """Return both runs."""
    return [read_run(place / "run" / "pretrain"), read_run(place / "plain")]


def chapters(report: Report) -> dict[str, Section]:
    """Return the chapters of a report by their titles."""
    return {section.title: section for section in report.sections}


def test_everything_has_its_chapter(place: Path) -> None:
    maps = [Section("a map", ("text",))]
    report = report_of(evaluations(place, "rate-4", "rate-16", "other"), runs(place), maps, 2)
    assert list(chapters(report)) == [
        *("At a glance", "Accuracy against compression rate", "Systems"),
        *("Time and memory against number of documents", "Training", "Map of memory and document states"),
        *("Questions on which the systems disagree", "What was evaluated"),
    ]
    assert len(report.lead) == 3
    names = [picture.name for picture in pictures(report.sections)]
    assert len(names) == len(set(names)), "no two figures share a file"


def test_one_evaluation_alone_has_no_comparison_of_several(place: Path) -> None:
    report = report_of(evaluations(place, "rate-4"), [], [], 0)
    assert list(chapters(report)) == ["Systems", "Time and memory against number of documents", "What was evaluated"]


def test_runs_alone_are_a_report(place: Path) -> None:
    report = report_of([], runs(place), [], 3)
    assert list(chapters(report)) == ["Training"] and report.lead == ()
    first, second = report.sections[0].blocks
    assert isinstance(first, Section) and isinstance(second, Section)
    assert (first.title, second.title) == ("pretrain", "plain, stage end_to_end")
    assert [block.name for block in second.blocks if isinstance(block, Picture)] == [
        *("training-2-loss", "training-2-recall"),
    ]


def test_a_run_that_logged_no_step_says_so(place: Path) -> None:
    run = runs(place)[0]._replace(events=[{"event": "finished", "step": 0}])
    assert report_of([], [run], [], 0).sections[0].blocks == (Section("pretrain", ("No step was logged.",)),)


def test_the_glance_has_each_system_in_each_evaluation(place: Path) -> None:
    found = evaluations(place, "rate-4", "other")
    (table,) = chapters(report_of(found, [], [], 0))["At a glance"].blocks
    assert isinstance(table, Table) and table.columns == ("system", "rate-4", "other")
    for i, row in enumerate(table.rows):
        means = [each.scores.systems[i].means["cover_exact_match"] for each in found]
        assert row[0].text == SYSTEMS[i] and list(row[1:]) == [interval(mean) for mean in means]


def test_rates_are_compared_on_equal_questions_only(place: Path) -> None:
    apart = report_of(evaluations(place, "rate-16", "other"), [], [], 0)
    assert "Accuracy against compression rate" not in chapters(apart)
    together = chapters(report_of(evaluations(place, "rate-4", "rate-16", "other"), [], [], 0))
    (section,) = together["Accuracy against compression rate"].blocks
    assert isinstance(section, Section) and section.title == "dev.jsonl" and len(section.blocks) == 3


def test_cost_has_a_section_for_each_rate_base_and_device(place: Path, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "gpu", 4, 12, model="smollm2-135m", device="gpu")
    every = [*evaluations(place, "rate-4", "rate-16", "other"), *evaluations(tmp_path, "gpu")]
    found = chapters(report_of(every, [], [], 0))
    blocks = found["Time and memory against number of documents"].blocks
    assert [block.title for block in blocks if isinstance(block, Section)] == [
        *("Compression rate 4, cpu", "Compression rate 4, smollm2-135m, cpu", "Compression rate 4, smollm2-135m, gpu"),
        "Compression rate 16, smollm2-135m, cpu",
    ]


def test_questions_are_of_the_first_evaluation_that_was_asked_them(place: Path) -> None:
    found = chapters(report_of(evaluations(place, "rate-16", "rate-4", "other"), [], [], 2))
    blocks = found["Questions on which the systems disagree"].blocks
    assert [(block.title, len(block.blocks)) for block in blocks if isinstance(block, Section)] == [
        *(("rate-16", 2), ("other", 2)),
    ]


def test_folders_of_one_name_are_told_apart(place: Path) -> None:
    (found,) = evaluations(place, "rate-4")

    def names(*paths: str) -> list[str]:
        return list(titled([found._replace(path=Path("/x", path)) for path in paths]))

    assert names("a/evaluations/dev") == ["dev"] and names() == []
    assert names("a/evaluations/dev", "b/evaluations/dev") == ["a/dev", "b/dev"]
    assert names("a/evaluations/dev", "b/evaluations/dev", "dev") == ["a/dev", "b/dev", "x/dev"]
    assert names("/evaluations/dev", "/dev") == ["evaluations/dev", "dev"]


def test_the_facts_are_those_of_the_configuration(place: Path) -> None:
    (found,) = evaluations(place, "rate-16")
    table = facts_table({"rate-16": found})
    row = dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=True))
    assert row == {
        **{
            "folder": "rate-16",
            "compression rate": "16",
            "memory tokens": "16",
            "data": "dev.jsonl",
            "questions": "12",
        },
        **{"checkpoint": "runs/16", "base": "smollm2-135m", "device": "cpu"},
    }
    assert (
        facts_table({"x": found._replace(facts=msgspec.structs.replace(found.facts, device=""))}).rows[0][-1].text
        == "–"
    )


def test_the_finding_is_of_memory_beside_the_text(place: Path) -> None:
    (found,) = evaluations(place, "rate-4")
    means = {each.system: each.means["cover_exact_match"] for each in found.scores.systems}
    memory, text = means["memory"], means["text"]
    spread = f"({decimals(memory.low)} to {decimals(memory.high)})"
    assert finding("dev", found) == (
        f"dev: cover-EM over 12 questions is memory {decimals(memory.mean)} {spread}, text {decimals(text.mean)}."
    )
    bare = found._replace(scores=msgspec.structs.replace(found.scores, systems=[]))
    assert finding("dev", bare) == "dev: no answer was scored."


def test_rates_on_documents_that_say_otherwise_are_apart(place: Path) -> None:
    found = evaluations(place, "rate-4", "rate-16")
    otherwise = [
        each._replace(facts=msgspec.structs.replace(each.facts, counterfactual=True), path=each.path / "otherwise")
        for each in found
    ]
    sections = chapters(report_of([*found, *otherwise], [], [], 0))["Accuracy against compression rate"].blocks
    assert [section.title for section in sections] == ["dev.jsonl", "dev.jsonl, counterfactual"]
