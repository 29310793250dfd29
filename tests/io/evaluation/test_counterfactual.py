"""Documents that say otherwise: what is put in the place of an answer, and where nothing can be."""

from __future__ import annotations

import re

import pytest

from clara.io.evaluation.counterfactual import counterfactual
from clara.io.evaluation.formats import Question

FACTS = [
    ("1810", "Frédéric Chopin was born in 1810, in the Duchy of Warsaw.", "When was he born?"),
    ("1849", "Anna died in 1849. By 1849 she was old.", "When did Anna die?"),
    ("Warsaw", "Elsner taught in Warsaw.", "Where did Elsner teach?"),
    ("Paris", "George wrote in Paris, not in Parisian cafés.", "Where did George write?"),
    ("solo piano", "It is for solo piano.", "For what is it?"),
    ("two lamps", "They have two lamps.", "What have they?"),
    ("17 October 1849", "He left on 17 October 1849.", "When did he leave?"),
    ("2 May 1901", "She came on 2 May 1901.", "When did she come?"),
]
QUESTIONS = [Question(f"q{i}", asked, (gold,), (text,), (0,)) for i, (gold, text, asked) in enumerate(FACTS)]


@pytest.mark.parametrize("seed", range(4))
def test_every_occurrence_is_replaced_by_an_answer_of_the_same_kind_and_form(seed: int) -> None:
    found, left_out = counterfactual(QUESTIONS, seed)
    assert left_out == 0 and [each.id for each in found] == [f"q{i}#counterfactual" for i in range(len(FACTS))]
    # Of each kind and form there are two, so that each has the other one's.
    assert [each.golds for each in found] == [(FACTS[i ^ 1][0],) for i in range(len(FACTS))]
    for each, (gold, text, asked) in zip(found, FACTS, strict=True):
        assert each.documents == (re.sub(rf"\b{gold}\b", each.golds[0], text),)
        assert (each.text, each.positives) == (asked, (0,))


def test_the_seed_alone_decides() -> None:
    questions = [Question(str(i), "When?", (str(1800 + i),), (f"In {1800 + i}.",)) for i in range(30)]
    drawn = [counterfactual(questions, seed)[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_all_documents_and_all_golds_change() -> None:
    question = Question(
        "q",
        "Who won?",
        ("Denver Broncos", "Broncos"),
        ("The Denver Broncos won. Broncos!", "They beat Broncos fans.", "denver broncos"),
        (0,),
        ("keyword",),
    )
    other = Question("o", "Who lost?", ("Carolina Panthers",), ("The Carolina Panthers lost.",), (0,))
    (found, _), left_out = counterfactual([question, other], 0)
    assert left_out == 0 and found.golds == ("Carolina Panthers",) and found.keywords == ()
    assert found.documents == (
        "The Carolina Panthers won. Carolina Panthers!",
        "They beat Carolina Panthers fans.",
        "denver broncos",
    )


OTHERS = [Question("o", "Who?", ("Otto",), ("Otto.",)), Question("n", "When?", ("1999",), ("In 1999.",))]
LEFT_OUT = {
    "in no document": Question("q", "Who?", ("Anna",), ("It was ANNA.",)),
    "in a longer word": Question("q", "Who?", ("Anna",), ("It was Annabel, or Susanna.",)),
    "in a longer number": Question("q", "How many?", ("20",), ("It was 1,020, or 20.5.",)),
    "in a document that is not known to hold it": Question("q", "Who?", ("Anna",), ("It was she.", "Anna."), (0,)),
    "a judgement": Question("q", "Was it?", ("No",), ("No lamp burns.",)),
    "in the question": Question("q", "Was it Anna or she?", ("Anna",), ("It was Anna.",)),
    "a paraphrase": Question("q", "", ("Anna",), ("Anna.",), task="paraphrase"),
    "without an answer of its kind": Question("q", "What?", ("a lamp",), ("It is a lamp.",)),
    "without one that is not there already": Question("q", "Who?", ("Anna",), ("It was Anna, not otto.",)),
    "without one that is another": Question("q", "Who?", ("Otto Hahn",), ("It was Otto Hahn.",)),
}


@pytest.mark.parametrize("question", LEFT_OUT.values(), ids=LEFT_OUT)
def test_where_that_is_not_possible_the_question_is_left_out(question: Question) -> None:
    found, left_out = counterfactual([question, *OTHERS], 0)
    assert "q#counterfactual" not in [each.id for each in found] and left_out == 3 - len(found)


def test_a_question_that_can_be_rewritten_is_not_left_out() -> None:
    found, _ = counterfactual([Question("q", "Who?", ("Anna",), ("It was Anna.",)), *OTHERS], 0)
    assert found[0].documents == ("It was Otto.",)


def test_of_no_equal_form_the_same_number_of_words_is_taken_else_any() -> None:
    questions = [
        Question("a", "When?", ("1850",), ("In 1850.",)),
        Question("b", "How many?", ("12",), ("Of 12.",)),
        Question("c", "When?", ("May 1901",), ("In May 1901.",)),
    ]
    found = {each.id[0]: each.golds[0] for each in counterfactual(questions, 0)[0]}
    assert (found["a"], found["b"]) == ("12", "1850") and found["c"] in ("12", "1850")
