"""Documents that say otherwise: what gives way, what stays, and that what is asked has its answer there."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.counterfactual import (
    FEW,
    MOST_CHARACTERS,
    Answers,
    Pair,
    alike,
    answer_table,
    form_of,
    kind_of,
    otherwise,
    stands,
)

YEARS = [str(1801 + i) for i in range(40)]
NAMES = ["Ada Lovelace", "Emil Orr", "Rosa Lind", "Otto Vance"]
TABLE = answer_table([*YEARS, *NAMES, "solo piano", "brass band"])
DOCUMENT = "The bridge of Orrel was built in 1907 by Mina Harker, who died in 1950. Mina Harker had built none before."
words = st.sampled_from(
    [*YEARS, *NAMES, "bridge", "1907", "Mina Harker", "the", "of", "in", "Mina", "é", "C++", "20,5"]
)
texts = st.lists(words, min_size=1, max_size=12).map(" ".join)


def test_answers_give_way_everywhere_to_one_of_their_form() -> None:
    made = otherwise([DOCUMENT], [("When was it built?", "1907"), ("Who built it?", "Mina Harker")], TABLE, 3)
    assert made is not None
    (text,), pairs = made
    (_, year), (_, name) = pairs
    assert year in YEARS and name in NAMES
    assert text == DOCUMENT.replace("1907", year).replace("Mina Harker", name)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who was Mina Harker?", "Mina Harker"),
        ("Did it last?", "yes"),
        ("Where is it?", "in the Hallen mountains"),
        ("What is said of it?", DOCUMENT[: MOST_CHARACTERS + 1]),
        ("When was it bought?", "190"),
    ],
    ids=["part of the question", "a judgement", "not in the document", "too long", "part of a number"],
)
def test_what_cannot_give_way_stays(question: str, answer: str) -> None:
    assert otherwise([DOCUMENT], [(question, answer)], TABLE, 0) is None


def test_questions_of_one_answer_change_together() -> None:
    pairs = [("When was it built?", "1907"), ("Since when does it stand?", "1907")]
    made = otherwise([DOCUMENT], pairs, TABLE, 0)
    assert made is not None
    (_, first), (_, second) = made[1]
    assert first == second and first in YEARS and first in made[0][0]


@pytest.mark.parametrize(
    ("document", "pairs"),
    [
        (DOCUMENT, [("Who built it?", "Mina Harker"), ("Which Harker?", "Mina")]),
        ("In 1907 LONDON burnt, and London's lamp.", [("What burnt?", "LONDON")]),
        ("It is the lamp.", [("What is it?", "lamp")]),
    ],
    ids=["part of another answer", "in other capitals", "nothing else of its kind"],
)
def test_an_answer_that_is_in_other_words_too_stays(document: str, pairs: list[Pair]) -> None:
    table = answer_table([*YEARS, *NAMES, "a lamp"])
    made = otherwise([document], pairs, table, 1)
    assert made is None or dict(made[1])["Which Harker?"] == "Mina"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("the lamp", "a lamp", True), ("Ada", "Ada Lovelace", True), ("Ada", "Adam", False), ("1907", "1908", False)],
)
def test_answers_that_are_alike(one: str, other: str, same: bool) -> None:
    assert alike(one, other) == alike(other, one) == same


def test_marks_belong_to_their_word() -> None:
    assert not stands("cafe", ["cafe\u0301"]) and not stands("राम", ["रामा"]) and stands("राम", ["और राम"])


def test_a_question_that_lost_its_answer_is_left_out() -> None:
    pairs = [("When was it built?", "1907"), ("How was it?", "quite unlike anything"), ("What was built?", "bridge")]
    for seed in range(20):
        made = otherwise([DOCUMENT], pairs, TABLE, seed)
        assert made is not None and {question for question, _ in made[1]} <= {"When was it built?", "What was built?"}


def drawn(answers: list[str]) -> set[str]:
    """Return what stands in the place of a year under many seeds."""
    made = [otherwise([DOCUMENT], [("When was it built?", "1907")], answer_table(answers), seed) for seed in range(200)]
    assert None not in made
    return {pairs[0][1] for _, pairs in filter(None, made)}


def test_of_few_of_its_form_any_of_its_kind_is_taken() -> None:
    assert drawn(["May 1850", *YEARS[:FEW]]) == {"May 1850", *YEARS[:FEW]}
    assert drawn(["May 1850", *YEARS]) == set(YEARS)


@given(
    documents=st.lists(texts, min_size=1, max_size=3),
    pairs=st.lists(st.tuples(texts, words), min_size=1, max_size=4),
    seed=st.integers(0, 2**63),
)
def test_what_is_asked_has_its_new_answer_there(documents: list[str], pairs: list[Pair], seed: int) -> None:
    made = otherwise(documents, pairs, TABLE, seed)
    assert made == otherwise(documents, pairs, TABLE, seed)
    if made is None:
        return
    said, asked = made
    old = dict(pairs)
    assert len(said) == len(documents) and said != documents
    assert asked and all(question in old and stands(answer, said) for question, answer in asked)
    for question, answer in asked:
        if (question, answer) not in pairs:
            assert not stands(answer, [*documents, *old], re.IGNORECASE), "the new answer is new"


@given(st.lists(st.text(max_size=70), max_size=20))
def test_a_table_holds_each_replaceable_answer_once(answers: list[str]) -> None:
    table = answer_table([*answers, *answers, "yes", "No", "", " "])
    for kinds in (table.kinds, table.forms):
        held = [answer for same in kinds.values() for answer in same]
        assert len(held) == len(set(held)) and set(held) <= {answer.strip() for answer in answers}
        assert all(0 < len(answer) <= MOST_CHARACTERS for answer in held)


def test_without_answers_nothing_is_changed() -> None:
    assert otherwise([DOCUMENT], [("When?", "1907")], Answers({}, {}), 0) is None


@pytest.mark.parametrize(
    ("answer", "kind", "form"),
    [
        ("1810", "number", "0000"),
        ("2 May 1901", "number", "0 a 0000"),
        ("the Eiffel Tower", "name", "3"),
        ("solo piano", "words", "2"),
    ],
)
def test_kinds_and_forms(answer: str, kind: str, form: str) -> None:
    assert (kind_of(answer), form_of(answer)) == (kind, form)


def test_an_answer_stands_at_word_borders() -> None:
    assert stands("C++", ["In C++, or not."]) and stands("20", ["Of 20."]) and not stands("20", ["20,5"])
