"""Sentences to fill in: what is left out, what a question must not tell, and that a seed decides the draw."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.core.cloze import BLANK, LONGEST, cloze_pairs, salient_spans, sentences

TEXT = (
    "The lighthouse of Orrel was built by Ada Lovelace in March 1907. It is 38 metres tall, and 1,700 people "
    'visit it each year. Its keeper calls it "the old lamp" in every letter to his sister. Nobody knows why '
    "sailors whistle near the cliffs."
)
PIECES = [
    *("Ada", "Lovelace", "ada", "the", "The", "In", "1903", "7", "38 metres", "$5 million", "March", "two", '"', "“"),
    *("”", ".", ". ", ", ", "'s", "é", "USA", "U.S.", "___", "_", "|", "\n", "\n\n", "(", ")", "-", "%", "lamps", "of"),
    *("lighthouse", "whistle", "very", "Paris", "x" * 90, "word " * 70, "lit?", "burns", "!", "。", "灯"),
]
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join), st.lists(st.sampled_from(PIECES)).map("".join)
)
seeds = st.integers(0, 2**63)


def spans(sentence: str, text: str = "") -> list[str]:
    """Return the salient spans of a sentence as text."""
    return [sentence[span.start : span.end] for span in salient_spans(sentence, text or sentence)]


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        ("It was built by Ada Lovelace in March 1907.", ["Ada Lovelace", "March 1907"]),
        ("On 12 March 1907 and on April 3, 1908, it rained.", ["12 March 1907", "April 3, 1908"]),
        ("It stands 38 metres above 1,700 people.", ["38 metres", "1,700"]),
        ("It cost US$24.01 billion, or 35% of 3.5 million pounds.", ["US$24.01 billion", "35%", "3.5 million pounds"]),
        ("It lasted from 1914–1918, seven years, in the 1990s.", ["1914–1918", "seven years", "1990s"]),
        ("By the 18th century twenty-one lamps burned.", ["18th century", "twenty-one"]),
        ('He wrote "the old lamp," and called it “a light”.', ["the old lamp", "a light"]),
        (
            "The University of Orrel stands in the United States of America.",
            ["University of Orrel", "United States of America"],
        ),
        ("When Ada's brother met St. John Smith, he ran.", ["Ada", "St. John Smith"]),
        ("They read To Kill a Mockingbird in Montreal.", ["To Kill a Mockingbird", "Montreal"]),
        ("It was written by Pius V.", ["Pius V"]),
        ("It is made in the U.S.", ["U.S."]),
        ("Lamps burn here, and I said so.", []),
        ("Originally, it burned. ", []),
        ("One Two Three Four Five Six Seven Eight came along.", []),
        ("", []),
    ],
)
def test_names_numbers_dates_and_quotations_are_salient(sentence: str, wanted: list[str]) -> None:
    assert spans(sentence) == wanted


def test_a_word_that_opens_a_sentence_is_a_name_where_the_text_shows_it() -> None:
    assert spans("Orrel burns.", "Orrel burns. They went to Orrel.") == ["Orrel"]
    assert spans("Lamps burn.", "Lamps burn. They went to Lamps and lamps.") == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (TEXT, 4),
        ("One lamp. Two\nlamps! Three", 2),
        ("Lamps\n\nThey burn in the hall.", 1),
        ("cut off before. The rest is whole.", 1),
        ("A | b | c. A ___ of lamps. By Dr. Smith.", 1),
        ("", 0),
    ],
)
def test_sentences_have_a_beginning_and_an_end(text: str, wanted: int) -> None:
    found = sentences(text)
    assert len(found) == wanted and all(each in " ".join(text.split()) for each in found)


@settings(max_examples=300)
@given(text=texts, seed=seeds, most=st.integers(0, 5))
def test_an_answer_put_back_gives_the_text_and_nothing_before_tells_it(text: str, seed: int, most: int) -> None:
    pairs = cloze_pairs(text, seed, most)
    assert len(pairs) <= min(most, len(sentences(text)))
    said = ""
    for question, answer in pairs:
        assert question.count(BLANK) == 1 and question.replace(BLANK, answer) in " ".join(text.split())
        said += question
        assert answer.casefold() not in said.casefold()
        said += answer
        assert 1 <= len(answer.split()) <= 6 and answer == answer.strip()
        assert len(question) <= LONGEST and len(question.replace(BLANK, " ").split()) >= 4


@settings(max_examples=100)
@given(text=st.one_of(texts, st.text(max_size=300)), seed=seeds, other=seeds)
def test_a_draw_depends_on_the_seed_but_not_whether_there_is_one(text: str, seed: int, other: int) -> None:
    assert cloze_pairs(text, seed, 8) == cloze_pairs(text, seed, 8)
    assert cloze_pairs(text, seed, 2) == cloze_pairs(text, seed, 8)[:2]
    assert bool(cloze_pairs(text, seed, 8)) is bool(cloze_pairs(text, other, 8))


def test_every_span_of_every_sentence_has_its_turn() -> None:
    drawn = [cloze_pairs(TEXT, seed, 8) for seed in range(300)]
    assert all(len({question[:8] for question, _ in pairs}) == len(pairs) == 4 for pairs in drawn), "one a sentence"
    counts = {answer: sum(answer in dict(pairs).values() for pairs in drawn) for pairs in drawn for _, answer in pairs}
    salient = {"Orrel", "Ada Lovelace", "March 1907", "38 metres", "1,700", "the old lamp"}
    plain = {"knows", "sailors", "whistle", "cliffs"}
    assert counts.keys() == salient | plain, "words where nothing else is salient"
    assert min(counts.values()) > 50 and len({pairs[0] for pairs in drawn}) == len(counts)


def test_a_span_that_the_question_tells_is_not_asked_for() -> None:
    text = "In Orrel all lamps burn until Orrel sleeps in 1907."
    assert {answer for seed in range(40) for _, answer in cloze_pairs(text, seed, 1)} == {"1907"}
    assert cloze_pairs("It burns in 1907.", 0, 1) == [], "too few words are left"


@pytest.mark.parametrize("place", [0, 60, 120])
def test_of_a_long_sentence_is_asked_what_is_around_the_blank(place: int) -> None:
    words = [f"w{i % 7}x" for i in range(120)]
    text = " ".join(["The", *words[:place], "Orrel", *words[place:]]) + "."
    ((question, answer),) = cloze_pairs(f"{text} It is Orrel.", 0, 1)
    before, after = question.split(BLANK)
    assert answer == "Orrel" and LONGEST - 12 <= len(question) <= LONGEST
    assert text.startswith(before) or f" {before}Orrel" in text
    assert text.endswith(after) or f"Orrel{after} " in text
