"""What a paraphrase keeps: which numbers and names count, and that more text never keeps less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.preservation import facts, paraphrase_scores, preserved_facts

TEXT = "In 1867 Marie Curie was born in Warsaw. She won two Nobel Prizes, in 1903 and 1911."
WORDS = ["Marie", "Curie", "curie", "the", "The", "In", "1903", "1,903", "3.5", ".", ",", "-", "'s", "é", "USA", "won"]
texts = st.one_of(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), st.text(max_size=30))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, {("1867",), ("1903",), ("1911",), ("marie", "curie"), ("nobel", "prizes")}),
        ("The United Nations met.", {("united", "nations")}),
        ("When The Rolling Stones played", {("rolling", "stones")}),
        ("a lone Capital here", set()),
        ("Marie Curie's Paris", {("marie", "curie")}),
        ("Jean-Paul Sartre", {("jean", "paul", "sartre")}),
        ("Ada Lovelace, Charles Babbage", {("ada", "lovelace"), ("charles", "babbage")}),
        ("Ada  Lovelace", set()),
        ("1,234.5 and 3.50, then 12.", {("1234.5",), ("3.50",), ("12",)}),
        ("the 1990s, 17th", {("1990",), ("17",)}),
        ("Apollo 11 flew", {("11",)}),
        ("It Was New York", {("was", "new", "york")}),
        ("École Normale", {("école", "normale")}),
        ("", set()),
    ],
)
def test_facts_are_numbers_and_names_of_several_words(text: str, expected: set[tuple[str, ...]]) -> None:
    assert facts(text) == expected


@pytest.mark.parametrize(
    ("paraphrase", "expected"),
    [
        (TEXT, 1.0),
        ("", 0.0),
        ("Marie Curie, born 1867, took Nobel Prizes in 1903 and 1911.", 1.0),
        ("MARIE CURIE took a Nobel Prize in 1903.", 2 / 5),
        ("Curie, Marie", 0.0),
        ("19031", 0.0),
        ("In 1,867 Curie", 1 / 5),
    ],
)
def test_the_share_of_facts_that_are_kept(paraphrase: str, expected: float) -> None:
    assert preserved_facts(TEXT, paraphrase) == expected


@given(texts, texts)
def test_the_share_is_bounded_and_a_text_keeps_itself(document: str, paraphrase: str) -> None:
    share = preserved_facts(document, paraphrase)
    assert share is None or 0.0 <= share <= 1.0
    assert preserved_facts(document, document) in (None, 1.0)
    assert (share is None) == (not facts(document))


@given(texts, texts, texts)
def test_a_longer_paraphrase_never_keeps_less(document: str, paraphrase: str, more: str) -> None:
    if facts(document):
        kept = preserved_facts(document, paraphrase) or 0.0
        assert (preserved_facts(document, f"{paraphrase} ; {more}") or 0.0) >= kept


@given(texts, texts)
def test_case_does_not_matter_in_the_paraphrase(document: str, paraphrase: str) -> None:
    if paraphrase.lower() == paraphrase.upper().lower():
        assert preserved_facts(document, paraphrase) == preserved_facts(document, paraphrase.lower())


def test_scores_of_a_paraphrase() -> None:
    assert paraphrase_scores(TEXT, [TEXT], TEXT) == {"rouge_l": 1.0, "entities": 1.0}
    assert paraphrase_scores("", [TEXT], TEXT) == {"rouge_l": 0.0, "entities": 0.0}
    assert paraphrase_scores("red lamp", ["lamp", "red lamp"], "a red lamp") == {"rouge_l": 1.0}
    assert paraphrase_scores("red lamp", [], "a red lamp") == {"rouge_l": 0.0}
