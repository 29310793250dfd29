"""Telling questions: those on which systems disagree, with every answer and document that there was."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import NASTY, SYSTEMS, write_evaluation

from clara.core.figures import number
from clara.io.evaluation.evaluations import Evaluation, read_evaluation
from clara.io.evaluation.predictions import Prediction
from clara.io.report.document import Section, Table
from clara.shell.reporting.cases import LONGEST, cases, clipped, document_table, telling

METRIC = "cover_exact_match"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Return an evaluation of five systems."""
    return read_evaluation(write_evaluation(tmp_path_factory.mktemp("evaluation") / "dev"))


def answer(system: str, id_: str, right: bool, **fields: object) -> Prediction:
    """Return an answer that is right or wrong."""
    made = {"id": id_, "system": system, "question": id_, "golds": ["g"], "prediction": "p"}
    return Prediction(**made, metrics={METRIC: float(right)}, **fields)  # type: ignore[arg-type]


def answers(**rights: str) -> dict[str, list[Prediction]]:
    """Return answers to questions 0, 1, … by system; "+" are right ones."""
    return {name: [answer(name, str(i), sign == "+") for i, sign in enumerate(s)] for name, s in rights.items()}


def ids(predictions: dict[str, list[Prediction]], count: int = 9) -> list[str]:
    """Return the telling questions."""
    return [next(iter(case.values())).id for case in telling(predictions, METRIC, count)]


def test_questions_that_divide_the_systems_evenly_come_first() -> None:
    assert ids(answers(a="+++-", b="+++-", c="++--", d="+---")) == ["2", "1"]


def test_what_shows_something_new_comes_before_what_was_seen() -> None:
    assert ids(answers(a="++-", b="--+")) == ["0", "2", "1"]
    assert ids(answers(a="++-", b="--+"), 2) == ["0", "2"]


def test_all_alike_tell_nothing() -> None:
    assert ids(answers(a="+-", b="+-")) == ids(answers(a="+-")) == ids({}) == []


def test_a_question_that_not_all_were_asked_counts_by_those_that_were() -> None:
    assert ids(answers(a="+++", b="+--", c="+")) == ["1", "2"]


def answers_to(evaluation: Evaluation, question: str) -> dict[str, Prediction]:
    """Return each system's answer to a question."""
    return {
        name: next(each for each in every if each.question == question)
        for name, every in evaluation.predictions.items()
    }


def tables(section: Section) -> tuple[Table, Table]:
    """Return the tables of answers and of documents in the section of a question."""
    first, second = (block for block in section.blocks if isinstance(block, Table))
    return first, second


def test_every_answer_is_shown_beside_the_gold_one(evaluation: Evaluation) -> None:
    sections = cases(evaluation, METRIC, 3)
    assert len(sections) == 3
    for section in sections:
        found = {name: each for name, every in evaluation.predictions.items() for each in every}
        asked = {
            n: next(e for e in every if e.question == section.title) for n, every in evaluation.predictions.items()
        }
        assert set(asked) == set(found) and section.blocks[0] == "Gold answers: " + "; ".join(asked["text"].golds)
        table, _ = tables(section)
        assert [row[0].text for row in table.rows] == list(SYSTEMS)
        for (_, text, verdict, seconds), each in zip(table.rows, asked.values(), strict=True):
            assert text.text == each.prediction and seconds.text == number(sum(each.seconds.values()))
            assert (verdict.text, verdict.note) == (("right", "1") if each.metrics[METRIC] else ("wrong", "0"))
            assert bool(text.note) is not each.finished
    assert any(NASTY in row[1].text for section in sections for row in tables(section)[0].rows)


def test_every_document_is_shown_with_who_read_it_and_its_weight(evaluation: Evaluation) -> None:
    for section in cases(evaluation, METRIC, 3):
        asked = {
            n: next(e for e in every if e.question == section.title) for n, every in evaluation.predictions.items()
        }
        _, table = tables(section)
        assert table.columns == (
            *("document", "holds the answer", "memory", "memory_retrieved, relevance", "text", "text_bm25, BM25"),
        )
        readers = [asked[name.split(",")[0]] for name in table.columns[2:]]
        for (document, holds, *places), i in zip(table.rows, range(9), strict=False):
            assert (document.text, document.note) == (readers[0].documents[i], readers[0].texts[i])
            assert holds.text == ("yes" if i == 0 else "no")
            for reader, place in zip(readers, places, strict=True):
                weight = number(reader.scores[i]) if reader.scores else "read"
                assert (place.text, place.note) == (f"no. {i + 1}", weight)


def test_passages_of_one_title_are_told_apart_and_what_is_not_known_is_not_claimed() -> None:
    one = answer("text", "q", True, documents=["T", "T"], texts=["a", "b"])
    other = answer("text_bm25", "q", False, documents=["T"], texts=["b"], scores=[2.5], positives=[True])
    table = document_table({"text": one, "text_bm25": other})
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["T", "–", "no. 1", "–"],
        ["T", "yes", "no. 2", "no. 1"],
    ]
    assert table.rows[1][3].note == "2.5"


def test_without_documents_there_is_no_table_of_them(tmp_path: Path) -> None:
    systems = ("closed_book", "text")
    found = read_evaluation(write_evaluation(tmp_path / "dev", systems=systems))
    bare = {name: [answer(name, str(i), name == "text") for i in range(3)] for name in systems}
    for section in cases(found._replace(predictions=bare), METRIC, 2):
        assert len([block for block in section.blocks if isinstance(block, Table)]) == 1


def test_long_answers_are_cut_and_empty_ones_said_to_be() -> None:
    assert clipped("x" * LONGEST) == "x" * LONGEST and clipped("x" * 9999) == "x" * LONGEST + "…"
    case = {"a": answer("a", "q", True), "b": answer("b", "q", False)}
    assert telling({name: [each] for name, each in case.items()}, METRIC, 1) == [case]
