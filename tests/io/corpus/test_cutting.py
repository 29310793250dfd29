"""Cutting: every character in one passage, never too many tokens, at the best places, in linear time."""

from __future__ import annotations

import time
from bisect import bisect_right

import pytest
from folders import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import GOLDEN

from clara.io.corpus.cutting import BLOCK, CHARACTERS, cut
from clara.io.corpus.passages import Document, Passage, content_hash
from clara.io.tokens import Tokenizer, encode, load_tokenizer

PIECES = [
    "lamp",
    "Lamps burn. ",
    "e.g. ",
    "\n",
    "\n\n",
    " ",
    "a" * 30,
    "。",
    "é",
    "👩‍👩‍👧",
    "\0",
    "\ud800",
    "\u2029",
    "\r\n\r\n",
]
any_text = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=60).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """Return a tokenizer of bytes, and one that knows words."""
    return [tiny_tokenizer(tmp_path_factory.mktemp("base")), load_tokenizer(GOLDEN / "base")]


@pytest.fixture(scope="module")
def bytewise(tokenizers: list[Tokenizer]) -> Tokenizer:
    """Return a tokenizer that has a token for each byte."""
    return tokenizers[0]


def texts(passages: list[Passage]) -> list[str]:
    """Return the texts of passages."""
    return [passage.text for passage in passages]


@settings(max_examples=150)
@given(text=any_text, max_tokens=st.integers(4, 80), which=st.integers(0, 1))
def test_every_character_is_in_one_passage_and_no_passage_is_too_long(
    text: str, max_tokens: int, which: int, tokenizers: list[Tokenizer]
) -> None:
    passages = list(cut(Document(text), tokenizers[which], max_tokens))
    ends = [0, *(passage.end for passage in passages)]
    for passage, before in zip(passages, ends, strict=False):
        assert passage.text == text[passage.start : passage.end] == passage.text.strip() != ""
        assert passage.start >= before and not text[before : passage.start].strip()
        assert passage.tokens == len(encode(tokenizers[which], passage.text)) <= max_tokens or len(passage.text) == 1
        assert passage.hash == content_hash(passage.text)
    assert not text[ends[-1] :].strip()


@settings(max_examples=60)
@given(words=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=80))
def test_words_are_whole_and_no_passage_of_many_is_tiny(words: list[str], bytewise: Tokenizer) -> None:
    text = "".join(f"{word}{['. B', chr(10), ' ', '. '][len(word) % 4]}" for word in words)
    passages = list(cut(Document(text), bytewise, 40))
    assert [word for passage in passages for word in passage.text.split()] == text.split()
    assert len(passages) == 1 or min(passage.tokens for passage in passages) >= 40 // 4 - 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "One two three.\n\nFour five. Six.\n\nSeven eight nine.",
            ["One two three.", "Four five. Six.", "Seven eight nine."],
        ),
        ("One two. Three four. Five six.", ["One two. Three four.", "Five six."]),
        ("One two, e.g. Three four five.", ["One two, e.g. Three", "four five."]),
        ("one two three\nfour five six seven", ["one two three", "four five six seven"]),
        ("one two three four five six", ["one two three four", "five six"]),
        ("a" * 45, ["a" * 20, "a" * 20, "a" * 5]),
        ("one " + "b" * 18 + " two", ["one", "b" * 18, "two"]),
        ("One two. " + "b" * 15, ["One two.", "b" * 15]),
    ],
)
def test_the_best_place_is_taken(text: str, expected: list[str], bytewise: Tokenizer) -> None:
    assert texts(list(cut(Document(text), bytewise, 20))) == expected


def test_a_short_rest_gets_company(bytewise: Tokenizer) -> None:
    assert texts(list(cut(Document("aaaa bbbb cccc dddd e"), bytewise, 20))) == ["aaaa bbbb cccc", "dddd e"]
    assert texts(list(cut(Document("a" * 21), bytewise, 20))) == ["a" * 16, "a" * 5]


def test_a_document_that_fits_is_one_passage_with_its_notes(bytewise: Tokenizer) -> None:
    (passage,) = cut(Document("\n One.\n\nTwo. \n", "Title", "a.txt"), bytewise, 20)
    assert (passage.text, passage.title, passage.source) == ("One.\n\nTwo.", "Title", "a.txt")
    assert (passage.start, passage.end, passage.pages, passage.tokens) == (2, 12, None, 10)


@pytest.mark.parametrize("text", ["", " ", "\n\n\t", "\u2003" * 99])
def test_a_document_without_text_has_no_passage(text: str, bytewise: Tokenizer) -> None:
    assert list(cut(Document(text), bytewise, 20)) == []


@given(words=st.lists(st.sampled_from(["Lamp. ", "red ", "\n\n", "burns "]), min_size=1, max_size=30), data=st.data())
def test_pages_follow_from_the_places(words: list[str], data: st.DataObject, bytewise: Tokenizer) -> None:
    text = "".join(words)
    more = data.draw(st.lists(st.integers(0, len(text)), max_size=5).map(sorted))
    starts = (0, *more)
    for passage in cut(Document(text, page_starts=starts), bytewise, 20):
        assert passage.pages == (bisect_right(starts, passage.start), bisect_right(starts, passage.end - 1))


def test_a_character_of_more_tokens_than_there_may_be_is_a_passage(bytewise: Tokenizer) -> None:
    assert [(p.text, p.tokens) for p in cut(Document("👩ab"), bytewise, 2)] == [("👩", 4), ("ab", 2)]


@pytest.mark.parametrize(
    "text",
    ["a" * 10_000_000, "a." * 200_000, " " * 1_000_000 + "a", "\0" * 500_000, "a \n" * 100_000, "。" * 100_000],
    ids=["one word", "dots", "spaces", "zeros", "lines", "full stops"],
)
def test_megabytes_of_anything_take_seconds(text: str, tokenizers: list[Tokenizer]) -> None:
    begun = time.perf_counter()
    passages = list(cut(Document(text), tokenizers[1], 256))
    assert time.perf_counter() - begun < 40
    assert sum(len("".join(passage.text.split())) for passage in passages) == len("".join(text.split()))
    assert max(len(passage.text) for passage in passages) <= CHARACTERS * 256


def test_blocks_do_not_show(bytewise: Tokenizer) -> None:
    text = "Lamps burn red. " * (3 * BLOCK // 16)
    passages = list(cut(Document(text), bytewise, 64))
    assert {passage.text for passage in passages[:-1]} == {"Lamps burn red. " * 3 + "Lamps burn red."}
