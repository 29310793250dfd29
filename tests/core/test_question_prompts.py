"""Replies of models: questions, paraphrases and verdicts in the forms that models give them, and none from noise."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.question_prompts import (
    Pair,
    QuestionPrompts,
    pair_fault,
    paraphrase_fault,
    parse_pairs,
    parse_paraphrase,
    parse_verdict,
)

WHO, WHEN = Pair("Who built the bridge?", "Tamsin"), Pair("When was it?", "in 1851")
FORMS = {
    "plain": "Q: Who built the bridge?\nA: Tamsin\nQ: When was it?\nA: in 1851",
    "blank lines": "Here you go:\n\nQ: Who built the bridge?\n\nA: Tamsin\n\nQ: When was it?\nA: in 1851\n",
    "numbered": "1. Q: Who built the bridge?\n   A: Tamsin\n2. Q: When was it?\n   A: in 1851",
    "numbered marks": "Q1: Who built the bridge?\nA1: Tamsin\nQ2. When was it?\nA2. in 1851",
    "words": "Question: Who built the bridge?\nAnswer: Tamsin\nQuestion 2: When was it?\nAnswer 2: in 1851",
    "markdown": "**Question 1:** Who built the bridge?\n**Answer:** Tamsin\n\n**Q:** *When was it?*\n- **A:** in 1851",
    "one line": "Q: Who built the bridge? A: Tamsin\nQ: When was it? A: in 1851",
    "unmarked": "1. Who built the bridge?\nTamsin\n2) When was it?\n- in 1851",
    "quoted": 'Q: "Who built the bridge?"\nA: "Tamsin"\nQ: "When was it?"\nA: "in 1851"',
    "json": '[{"question": "Who built the bridge?", "answer": "Tamsin"}, {"q": "When was it?", "a": "in 1851"}]',
    "json in words": '```json\n{"pairs": [{"Q": "Who built the bridge?", "A": "Tamsin"}, '
    '{"question": "When was it?", "answer": "in 1851"}]}\n```',
    "json lines of one": '{"question": "Who built the bridge?", "answer": "Tamsin"}',
    "marked twice": "Q: Question: Who built the bridge?\nA: Answer: Tamsin\nQ: Q: When was it?\nA: in 1851",
    "a question for an answer": "Q: Why?\nA: Question: Who built the bridge?\nA: Tamsin\nQ: When was it?\nA: in 1851",
    "windows": "Q: Who built the bridge?\r\nA: Tamsin\r\nQ: When was it?\r\nA: in 1851",
}


@pytest.mark.parametrize("reply", FORMS.values(), ids=FORMS)
def test_pairs_are_read_in_every_form(reply: str) -> None:
    assert parse_pairs(reply) == ([WHO] if "lines of one" in reply or reply.startswith("{") else [WHO, WHEN])


@pytest.mark.parametrize("answer", ["3.5 metres", "-5 degrees", "1851", "(2) lamps", "A. Tamsin", "#4"])
def test_numbers_and_signs_of_an_answer_stay(answer: str) -> None:
    assert parse_pairs(f"1. Q: What of the lamp?\nA: {answer}") == [Pair("What of the lamp?", answer)]


def test_the_last_pair_of_a_reply_that_was_cut_is_left_out() -> None:
    assert parse_pairs(FORMS["plain"], finished=False) == [WHO]


@pytest.mark.parametrize("reply", ["", "I cannot do that.", "A: Tamsin", "Q:\nA:", "[1, 2]", '{"a": 1', "Q: Who?"])
def test_no_pair_is_read_where_there_is_none(reply: str) -> None:
    assert parse_pairs(reply) == []


@given(
    st.text()
    | st.lists(st.sampled_from(["Q:", "A:", "\n", "?", "[", "]", "{", '"a":', "1.", "**", " ", "x"])).map("".join)
)
def test_any_reply_is_read(reply: str) -> None:
    assert all(pair.question and pair.answer for pair in parse_pairs(reply))
    assert parse_paraphrase(reply) == parse_paraphrase(reply).strip()
    assert parse_verdict(reply) in (True, False, None)


@pytest.mark.parametrize("unit", ["Q: a? ", "{", "[[", '"', "1.", "*", "Q:\n", "\n"])
def test_a_reply_without_end_is_read_at_once(unit: str) -> None:
    begun = time.perf_counter()
    parse_pairs(unit * 200_000)
    parse_paraphrase(unit * 200_000)
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("Lamps burn.", "Lamps burn."),
        ("Sure, here is the new text:\n\nLamps burn.", "Lamps burn."),
        ('"Lamps burn."', "Lamps burn."),
        ("```\nLamps burn.\n```", "Lamps burn."),
        ("Of course: lamps burn.", "Of course: lamps burn."),
    ],
)
def test_a_paraphrase_is_taken_out_of_its_reply(reply: str, text: str) -> None:
    assert parse_paraphrase(reply) == text


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        *(("Yes", True), ("yes.", True), ("**Yes**, since", True), (" YES", True), ("Correct", True)),
        *(("No", False), ("no, it does not", False), ("Not at all", False), ("False", False)),
        *(("Perhaps", None), ("", None), ("Yesterday", None), ("Nobody", None), ("The answer is yes", None)),
    ],
)
def test_a_verdict_is_yes_no_or_none(reply: str, verdict: bool | None) -> None:
    assert parse_verdict(reply) is verdict


@pytest.mark.parametrize(
    ("pair", "fault"),
    [
        (Pair("Who built the dam?", "Tamsin"), None),
        (Pair("Who?", "Tamsin"), "no question or no answer"),
        (Pair("who BUILT the bridge", "Tamsin O."), "asked before"),
        (Pair("Did Tamsin build the dam?", "Tamsin"), "the question gives the answer away"),
        (Pair("Did Tamsin say yes then?", "Yes"), None),
        (Pair("Who is named in the text?", "Tamsin"), "the question speaks of the text"),
        (Pair("Who built it? " * 60, "Tamsin"), "too long"),
        (Pair("Who built the dam?", "Tamsin " * 60), "too long"),
    ],
)
def test_useless_pairs_are_told_from_others(pair: Pair, fault: str | None) -> None:
    assert pair_fault(pair, [WHO]) == fault


@pytest.mark.parametrize(
    ("paraphrase", "finished", "fault"),
    [
        ("A red lamp is burning.", True, None),
        ("A red lamp is", False, "cut off"),
        ("the lamp burns RED", True, "the text itself"),
        ("Red.", True, "much shorter or longer than the text"),
        ("A lamp burns red. " * 9, True, "much shorter or longer than the text"),
    ],
)
def test_useless_paraphrases_are_told_from_others(paraphrase: str, finished: bool, fault: str | None) -> None:
    assert paraphrase_fault(paraphrase, "The lamp burns red.", finished) == fault


def test_every_wording_has_the_slots_it_needs() -> None:
    prompts = QuestionPrompts()
    for wording in (prompts.simple, prompts.complex):
        assert wording.count("{text}") == wording.count("{count}") == 1
    for wording in (prompts.supported, prompts.combined):
        assert [wording.count(slot) for slot in ("{text}", "{question}", "{answer}")] == [1, 1, 1]
    assert [prompts.faithful.count(slot) for slot in ("{text}", "{answer}")] == [1, 1]
    assert prompts.paraphrase.count("{text}") == 1
