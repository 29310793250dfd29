"""Lines of pages to text: hyphens, running heads, paragraphs, page numbers, and any text at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.io.corpus.pdf_text import Line, drop_running, join, mend, page_numbers, page_text, repaired, shape_of


def lines(*texts: str, x: float = 72, top: float = 760, leading: float = 14, size: float = 11) -> list[Line]:
    """Return lines one under another; an empty one is a gap."""
    return [Line(text, x, top - leading * i, size) for i, text in enumerate(texts) if text]


@pytest.mark.parametrize(
    ("left", "right", "words", "expected"),
    [
        ("extraordi", "nary light", {}, "extraordinary light"),
        ("well", "known thing", {"well-known": 1}, "well-known thing"),
        ("well", "known thing", {"well-known": 1, "wellknown": 2}, "wellknown thing"),
        ("lamp", "light is", {"lamp": 3, "light": 2}, "lamp-light is"),
        ("lamp", "light is", {"lamp": 3, "light": 2, "lamplight": 1}, "lamplight is"),
        ("in", "formation of", {"in": 9, "formation": 1}, "information of"),
        ("pre", "and post-war", {}, "pre- and post-war"),
        ("Anglo", "Saxon", {}, "Anglo-Saxon"),
        ("COVID", "19 was", {}, "COVID-19 was"),
        ("Über", "sicht über", {}, "Übersicht über"),
    ],
)
def test_a_hyphen_at_the_end_of_a_line_goes_or_stays(
    left: str, right: str, words: dict[str, int], expected: str
) -> None:
    glue, cut = mend(left, "-", right, Counter(words))
    assert f"{left}-"[: len(left) + 1 - cut] + glue + right == expected


def test_a_soft_hyphen_always_goes() -> None:
    assert mend("well", "\u00ad", "known", Counter({"well-known": 5})) == ("", 1)


def test_the_words_of_the_document_decide() -> None:
    page = lines("The well-known lamp is of long", "standing, and it is a very well-", "known lamp that shines on.")
    assert page_text([page])[0].endswith("a very well-known lamp that shines on.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The oﬃce ﬁnds ﬂour, aﬀairs and ﬆones", "The office finds flour, affairs and stones"),
        ("A\u00a0lamp \t burns\0", "A lamp burns"),
        ("Cafe\u0301", "Café"),
        ("1.2 Lamps . . . . . . . . . 14", "1.2 Lamps … 14"),
        ("1.2 Lamps.......... 14", "1.2 Lamps … 14"),
        ("So it goes ... on", "So it goes ... on"),
    ],
)
def test_lines_are_repaired(text: str, expected: str) -> None:
    assert repaired(text) == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        *(("12", [12]), ("- 12 -", [12]), ("xiv", [14]), ("Page 3 of 9", [3]), ("3 / 9", [3, 9])),
        *(("12 Lamps", [12]), ("Lamps 12", [12]), ("Lamps", []), ("In 1984 it was", []), ("mild", []), ("", [])),
    ],
)
def test_numbers_of_pages_are_found(text: str, numbers: list[int]) -> None:
    assert page_numbers(text) == numbers


def words(number: int) -> str:
    """Return a line that no other number has."""
    return "Lamp " + "".join("abcdefghij"[int(digit)] for digit in str(number)) + " burns on this page."


@given(count=st.integers(3, 12), first=st.integers(1, 400), roman=st.booleans())
def test_heads_and_numbers_go_and_the_rest_stays(count: int, first: int, roman: bool) -> None:
    numerals = ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii"]
    pages = []
    for n in range(count):
        body = lines(words(2 * n), words(2 * n + 1), words(1000 + n), words(2000 + n), top=700)
        number = numerals[n] if roman else str(first + n)
        pages.append([Line("The Book of Lamps", 72, 800, 9), *body, Line(number, 290, 40, 9)])
    kept = drop_running(pages)
    assert [[line.text for line in page] for page in kept] == [
        [words(2 * n), words(2 * n + 1), words(1000 + n), words(2000 + n)] for n in range(count)
    ]


def test_a_head_counts_in_its_place_only_and_under_other_heads_only() -> None:
    pages = [lines(words(n), "Example:", words(100 + n), top=700 - 40 * (n % 2)) for n in range(8)]
    assert [len(page) for page in drop_running(pages)] == [3] * 8
    moved = [
        [Line("Example:", 72, 800 - 20 * n, 11), *lines(*map(words, (n, 50 + n, 100 + n)), top=500)] for n in range(8)
    ]
    assert [len(page) for page in drop_running(moved)] == [4] * 8


def test_pages_that_are_all_alike_lose_their_numbers_only() -> None:
    pages = [[*lines("One lamp.", "Two lamps."), Line(str(n), 290, 40, 9)] for n in range(1, 7)]
    assert [[line.text for line in page] for page in drop_running(pages)] == [["One lamp.", "Two lamps."]] * 6


WIDE = "A line that is as wide as its column is, more or less"


@pytest.mark.parametrize(
    ("second", "glue"),
    [
        (Line("goes on", 72, 746, 11), " "),
        (Line("After a gap", 72, 725, 11), "\n\n"),
        (Line("A heading", 72, 742, 16), "\n\n"),
        (Line("• a point", 80, 746, 11), "\n\n"),
        (Line("2. a point", 72, 746, 11), "\n\n"),
        (Line("the next column", 320, 760, 11), " "),
        (Line("Another column", 320, 760, 11), "\n\n"),
    ],
)
def test_gaps_letters_bullets_and_columns_tell_paragraphs(second: Line, glue: str) -> None:
    page = lines(*[WIDE] * 8, top=760 + 7 * 14)
    assert join(page[-1], second, shape_of(page, 14), Counter()) == (glue, 0)


def test_an_indent_or_a_short_line_after_a_sentence_begins_a_paragraph() -> None:
    page = lines(*[f"{WIDE}."] * 8)
    shape = shape_of(page, 14)
    assert join(page[0], page[1]._replace(x=84), shape, Counter()) == ("\n\n", 0)
    assert join(page[0], page[1], shape, Counter()) == (" ", 0)
    assert join(page[0]._replace(text="It ends."), page[1], shape, Counter()) == ("\n\n", 0)
    assert join(page[0]._replace(text="x = 1"), page[1], shape, Counter()) == ("\n", 0)


any_line = st.builds(
    Line,
    st.text(max_size=12) | st.sampled_from(["a lamp-", "12", "Lamps.", "well-", "\0", "• lamp"]),
    *[st.floats(-1e4, 1e4)] * 2,
    st.floats(0, 40),
)


@given(st.lists(st.lists(any_line, max_size=6), max_size=6))
def test_any_lines_give_text_in_which_the_pages_begin_in_order(pages: Sequence[Sequence[Line]]) -> None:
    text, starts = page_text(pages)
    assert len(starts) == len(pages) and list(starts) == sorted(starts)
    assert all(0 <= start <= len(text) for start in starts)
    kept = drop_running([[line._replace(text=repaired(line.text)) for line in page] for page in pages])
    for page, start, end in zip(kept, starts, [*starts[1:], len(text)], strict=False):
        assert all(letter in text[start:end] for line in page for letter in line.text if letter.isalpha())
