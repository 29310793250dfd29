"""Where a text may be cut: which places count as ends of sentences, lines and paragraphs, and that none is missed."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.breaks import LINE, PARAGRAPH, SENTENCE, WORD, places


def sentences(text: str) -> list[str]:
    """Return the pieces of a text between the ends of its sentences and paragraphs."""
    cuts = [place for place in places(text, 0, len(text)) if place.rank >= SENTENCE]
    begins, ends = [0, *(place.start for place in cuts)], [*(place.end for place in cuts), len(text)]
    return [text[begin:end] for begin, end in zip(begins, ends, strict=True) if text[begin:end]]


@pytest.mark.parametrize(
    "pieces",
    [
        ["It burns.", "It is red!", "Is it?", "Yes…", "It is."],
        ['He said "It burns."', "(It did.)", "*It did.*", "And so on."],
        ["As Fig. 3 shows, it burns.", "See No. 5, Sec. 2 and pp. 3 to 5."],
        ["Smith et al. (2020) and Jones et al. Nature 4 saw it.", "They said so."],
        ["Lamps, e.g. Red Lamps, i.e. Those that burn, in the U.S. Army.", "J. R. R. Tolkien had one."],
        ["It weighs 3.14 kg. and burns ... on.", "In 1999.", "Next to Dr. Lamp vs. Mrs. Door."],
        ["1. Lamps burn.", "The answer is no.", "He made art.", "In May."],
        ["Zoë rief. und ging.", "Élan ended.", "Ça va."],
        ["这是一句。", "那是“另一句。”", "是吗？！", "３．１４公斤。"],
        ["He was born on Dec. 24.", "She was not."],
    ],
)
def test_sentences_end_where_a_reader_ends_them(pieces: list[str]) -> None:
    joiner = "" if "。" in pieces[0] else " "
    assert sentences(joiner.join(pieces)) == pieces


def test_a_number_before_a_line_is_not_a_sentence_but_one_that_ends_a_sentence_is() -> None:
    assert sentences("List:\n 1. Lamps\n 2. Doors in 1999. Then") == ["List:\n 1. Lamps\n 2. Doors in 1999.", "Then"]


@pytest.mark.parametrize(
    ("gap", "rank"),
    [
        *((gap, WORD) for gap in (" ", "\t \u00a0")),
        *((gap, LINE) for gap in ("\n", " \n ", "\r\n")),
        *((gap, PARAGRAPH) for gap in ("\n\n", "\n \t\n", "\r\n\r\n", "\f", "\u2029")),
    ],
)
def test_white_space_tells_the_rank(gap: str, rank: int) -> None:
    assert list(places(f"Lamp;{gap}door", 0, 9)) == [(5, 5 + len(gap), rank)]


@pytest.mark.parametrize(
    ("before", "rank"),
    [
        ("They burn.", PARAGRAPH),
        ("They do not\n\n2.1 Lamps", LINE),
        ("# Lamps", LINE),
        ("They burn as follows:", PARAGRAPH),
        ("lamp " * 16 + "x", PARAGRAPH),
    ],
)
def test_a_heading_stays_with_what_follows(before: str, rank: int) -> None:
    assert list(places(f"{before}\n\nLamps", 0, 999))[-1] == (len(before), len(before) + 2, rank)


def test_a_place_at_the_end_counts_and_one_after_it_does_not() -> None:
    assert [place.end for place in places("ab cd ef", 0, 5)] == [2, 5]
    assert [place.end for place in places("ab cd ef", 0, 4)] == [2]
    assert [place.end for place in places("ab cd ef", 3, 8)] == [5]


@given(st.text(st.sampled_from("aB. \n。!)1\0") | st.characters(), max_size=60))
def test_every_gap_is_a_place_and_nothing_is_lost_between(text: str) -> None:
    found = list(places(text, 0, len(text)))
    gaps = [place for place in found if place.start > place.end]
    assert [(place.end, place.start) for place in gaps] == [match.span() for match in re.finditer(r"\s+", text)]
    assert all(not text[place.end : place.start].strip() for place in found)
    assert found == sorted(found)


def test_a_long_word_is_looked_at_within_bounds_only() -> None:
    text = "a" * 5_000_000
    begun = time.perf_counter()
    assert all(list(places(text, start, start + 1000)) == [] for start in range(0, len(text), 1000))
    assert time.perf_counter() - begun < 5
