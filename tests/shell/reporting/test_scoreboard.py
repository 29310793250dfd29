"""What a report says of one evaluation: every number is that of the scores."""

from __future__ import annotations

import msgspec
import pytest
from evaluations import CHOOSING, SYSTEMS, write_evaluation

from clara.io.evaluation.evaluations import Evaluation, read_evaluation
from clara.io.evaluation.labels import decimals, interval, label
from clara.io.evaluation.predictions import Interval, Scores, SystemScores
from clara.io.report.document import Picture, Table
from clara.shell.reporting.scoreboard import (
    bars_of,
    main_metric,
    means_table,
    metrics_of,
    notes,
    paired,
    scoreboard,
    shown,
)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Return an evaluation of five systems."""
    return read_evaluation(write_evaluation(tmp_path_factory.mktemp("evaluation") / "dev"))


def system(name: str, **means: float) -> SystemScores:
    """Return the scores of a system that costs nothing."""
    found = {metric: Interval(mean, mean, mean) for metric, mean in means.items()}
    return SystemScores(system=name, questions=3, means=found, seconds={}, prompt_tokens=0.0, peak_bytes=0)


def test_the_table_of_means_has_every_number(evaluation: Evaluation) -> None:
    systems = evaluation.scores.systems
    metrics = metrics_of(systems)
    table = means_table("c", systems, metrics)
    assert table.columns == ("system", *map(label, metrics), "questions")
    for each, (name, *cells, count) in zip(systems, table.rows, strict=True):
        assert (name.text, count.text) == (each.system, "12")
        wanted = [interval(each.means[metric]) if metric in each.means else ("–", "", "") for metric in metrics]
        assert cells == wanted


def test_bars_are_the_means_with_their_intervals(evaluation: Evaluation) -> None:
    figure = bars_of(evaluation.scores.systems, "token_f1")
    assert figure.kind == "bars" and figure.categories == SYSTEMS and figure.top == 1.0
    assert "12 questions" in figure.note
    means = [each.means["token_f1"] for each in evaluation.scores.systems]
    assert [tuple(point[1:]) for point in figure.series[0].points] == [msgspec.structs.astuple(mean) for mean in means]


def test_a_system_without_the_metric_has_no_bar() -> None:
    figure = bars_of([system("a", mrr=0.5), system("b"), system("c", mrr=1.0)], "mrr")
    assert figure.categories == ("a", "c") and [point.x for point in figure.series[0].points] == [0, 1]


def test_the_paired_tests_of_the_main_metric_are_open_and_all_are_there(evaluation: Evaluation) -> None:
    leading, others = paired(evaluation.scores)
    assert (leading.folded, others.folded) == (False, True)
    every = [*leading.rows, *others.rows]
    assert len(every) == len(evaluation.scores.comparisons)
    assert {row[3].text for row in leading.rows} == {"cover-EM"} and "cover-EM" not in {r[3].text for r in others.rows}
    by_name = {(f"{each.first} − {each.second}", label(each.metric)): each for each in evaluation.scores.comparisons}
    for pair, difference, p, metric in every:
        found = by_name[pair.text, metric.text]
        assert difference == interval(found.difference)
        assert p.note == ("" if found.p_value < 0.05 else "not told apart")


def test_without_comparisons_there_is_no_table_of_them() -> None:
    assert paired(Scores(systems=[system("a", token_f1=1.0)])) == []


def test_the_section_has_answers_bars_tests_ranking_and_cost(evaluation: Evaluation) -> None:
    section = scoreboard(evaluation, "dev", "answers-1")
    assert section.title == "dev"
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [t.caption.split(":")[0].split(",")[0] for t in tables] == [
        *("Answers", "Paired tests", "Paired tests", "Answers"),
        *("Ranking of each question's own candidates", "Cost of a question"),
    ]
    assert [table.folded for table in tables] == [False, False, True, True, False, False]
    assert [row[0].text for row in tables[4].rows] == list(CHOOSING)
    pictures = [block.name for block in section.blocks if isinstance(block, Picture)]
    assert pictures == ["answers-1-cover_exact_match", "answers-1-token_f1", "answers-1-exact_match"]
    assert decimals(evaluation.scores.systems[0].means["cover_exact_match"].mean) in {c.text for c in tables[0].rows[0]}


def test_the_main_metric_is_cover_em_or_the_first_that_there_is() -> None:
    assert main_metric([system("a", exact_match=1.0), system("b", cover_exact_match=1.0)]) == "cover_exact_match"
    assert main_metric([system("a", rouge_l=1.0)]) == "rouge_l" and main_metric([]) == "cover_exact_match"


def test_three_metrics_are_drawn_at_most_the_common_ones_first() -> None:
    names = ["keyword_match", "exact_match", "token_f1", "cover_exact_match"]
    assert shown(names) == ["cover_exact_match", "token_f1", "exact_match"]
    assert shown(["rouge_l", "entities"]) == ["rouge_l", "entities"] and shown([]) == []


def test_cut_documents_and_a_missing_reasoner_are_said_first(evaluation: Evaluation) -> None:
    facts = msgspec.structs.replace(evaluation.facts, documents=40, documents_cut=3, doc_max_tokens=256, reasoner=False)
    said = list(notes(evaluation._replace(facts=facts)))
    assert said == [
        "3 of 40 documents were cut to 256 tokens for memory, not for text.",
        "In memory_retrieved no reasoner was trained; the compressor reads the question in its place.",
    ]
    assert list(scoreboard(evaluation._replace(facts=facts), "dev", "a").blocks[:2]) == said
    assert list(notes(evaluation)) == []
    without = {"text": evaluation.predictions["text"]}
    assert len(list(notes(evaluation._replace(facts=facts, predictions=without)))) == 1


def test_that_documents_say_otherwise_is_noted(evaluation: Evaluation) -> None:
    facts = msgspec.structs.replace(evaluation.facts, counterfactual=True, not_rewritten=1200)
    (said,) = notes(evaluation._replace(facts=facts))
    assert said.startswith("Counterfactual: in the documents another question's answer stands") and "; 1,200 qu" in said


def test_a_search_for_answers_is_noted(evaluation: Evaluation) -> None:
    facts = msgspec.structs.replace(evaluation.facts, beams=4)
    assert list(notes(evaluation._replace(facts=facts))) == [
        "Every system's answers are those that a search with 4 beams found.",
        *notes(evaluation),
    ]
