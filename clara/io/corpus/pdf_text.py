"""Lines of PDF pages to text: running heads dropped, paragraphs put together, hyphens and ligatures repaired."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise, takewhile
from statistics import median
from typing import NamedTuple


class Line(NamedTuple):
    """A line of text on a page."""

    text: str
    x: float
    """Where it begins, in points from the left."""
    y: float
    """Its base line, in points from the bottom."""
    size: float
    """Of its letters, in points."""


class Shape(NamedTuple):
    """What the lines of a page are usually like."""

    leading: float
    """From one base line to the next, in points."""
    width: int
    """Of a full line, in characters."""


EDGE = 3
"""Lines at the top and at the bottom of a page that may be running heads."""

LITTLE = 3
"""Of a document less than one part in so many is too little to be left without heads and feet."""

FEW_STEPS = 4
"""So few steps from line to line do not tell the leading of a page."""

NEAR = 3.0
"""Points within which two lines are in the same place of their pages."""

LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
DROPPED = dict.fromkeys([*range(9), *range(14, 32), 0x7F, 0xFEFF, 0x200B])
NUMBER = re.compile(r"[\W_]*(?:[0-9]{1,5}|([ivxlc]{1,7}))[\W_]*", re.IGNORECASE)
PAGE_NUMBER = re.compile(
    r"\A\W*([0-9]{1,5})\b|\b([0-9]{1,5})\s*(?:/|of|von|de|sur)\s*[0-9]{1,5}\W*\Z|\b([0-9]{1,5})\W*\Z"
)
ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
BULLET = re.compile(r"[•‣▪■◦●○–—*·]\s|\(?(?:\d{1,3}|[a-z])[.)]\s|\[\d{1,3}\]\s")
LEADER = re.compile(r"(?:\s?\.){5,}")
BROKEN = re.compile(r"([^\W\d_]{2,})([-\u2010\u00ad])\Z")
SENTENCE_END = re.compile(r"[.!?:;][\"'”’)\]]*\Z")
WORDS = re.compile(r"[^\W\d_]+(?:[-\u2010][^\W\d_]+)*")
SUSPENDED = ("and", "or", "to", "und", "oder", "bis", "et", "ou", "y", "o")
"""Words before which a hyphen stands for the rest of a word: "pre- and post-war"."""


def page_text(pages: Sequence[Sequence[Line]]) -> tuple[str, tuple[int, ...]]:
    """Return the text of pages, and where each page begins in it, in characters.

    Paragraphs have a blank line between them; lines that do not fill their column stay lines.
    """
    kept = drop_running([[line._replace(text=repaired(line.text)) for line in page] for page in pages])
    vocabulary = words_of(kept)
    usual = median([step for page in kept for step in steps_of(page)] or [0.0])
    text: list[str] = []
    starts: list[int] = []
    before: Line | None = None
    length = 0
    for page in kept:
        shape = shape_of(page, usual)
        begun = False
        for line in page:
            glue, cut = ("", 0) if before is None else join(before, line, shape, vocabulary, not begun)
            if cut:
                text[-1] = text[-1][:-cut]
            length += len(glue) - cut
            if not begun:
                starts.append(length)
            text += [glue, line.text]
            length += len(line.text)
            before, begun = line, True
        if not begun:
            starts.append(length)
    return "".join(text), tuple(starts)


def repaired(text: str) -> str:
    """Return a line with ligatures as letters, accents composed, white space single and control characters gone.

    Dots that lead to a page number become one character: their number says nothing, and each would be a token.
    """
    text = LEADER.sub(" … ", text.translate(LIGATURES).translate(DROPPED))
    return unicodedata.normalize("NFC", " ".join(text.split()))


def drop_running(pages: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """Return the pages without empty lines, page numbers, and heads and feet that repeat.

    The outermost lines of a page are heads and feet as long as they stand with the same words in the same place of
    other pages, or begin or end with a number that goes up with the pages. Where little would be left, as of slides
    that are all alike, only the numbers go.
    """
    filled = [[line for line in page if line.text] for page in pages]
    edges = [edge_lines(page) for page in filled]
    outer = [[page[i] for i in [*top, *bottom]] for page, (top, bottom) in zip(filled, edges, strict=True)]
    spots = Counter(spot for lines in outer for spot in {spot for line in lines for spot in spots_of(line)})
    steps = Counter(
        step for at, lines in enumerate(outer) for step in {n - at for line in lines for n in page_numbers(line.text)}
    )
    few, many = (2, 2) if len(pages) <= 4 else (3, max(3, len(pages) // 10))

    def numbered(line: Line, at: int) -> bool:
        needed = few if NUMBER.fullmatch(line.text) else many
        return any(steps[n - at] >= needed for n in page_numbers(line.text))

    def repeated(line: Line, at: int) -> bool:
        alike = not NUMBER.fullmatch(line.text) and any(spots[spot] >= few for spot in spots_of(line))
        return alike or numbered(line, at)

    kept = [
        without_edges(page, sides, partial(repeated, at=at))
        for at, (page, sides) in enumerate(zip(filled, edges, strict=True))
    ]
    if LITTLE * characters(kept) >= characters(filled):
        return kept
    return [
        without_edges(page, sides, partial(numbered, at=at))
        for at, (page, sides) in enumerate(zip(filled, edges, strict=True))
    ]


def without_edges(page: Sequence[Line], sides: Sequence[Sequence[int]], running: Callable[[Line], bool]) -> list[Line]:
    """Return a page without those of its outermost lines that are running heads and feet."""
    gone = {i for side in sides for i in takewhile(lambda i: running(page[i]), side)}
    return [line for i, line in enumerate(page) if i not in gone]


def characters(pages: Sequence[Sequence[Line]]) -> int:
    """Return how many characters are on pages."""
    return sum(len(line.text) for page in pages for line in page)


def edge_lines(page: Sequence[Line]) -> tuple[list[int], list[int]]:
    """Return the numbers of the lines at the top and at the bottom of a page, each from the outermost on."""
    order = sorted(range(len(page)), key=lambda i: -page[i].y)
    return order[:EDGE], order[: -EDGE - 1 : -1]


def spots_of(line: Line) -> list[tuple[str, int]]:
    """Return names for a line's words in their place, of which a line with these words within `NEAR` shares one."""
    return [(line.text.lower(), int((line.y + shift) // (2 * NEAR)) * 2 + (shift > 0)) for shift in (0.0, NEAR)]


def page_numbers(text: str) -> list[int]:
    """Return the numbers in a line that may be that of its page: at its ends, before "of 9", or alone in Roman."""
    found = NUMBER.fullmatch(text)
    if found and found[1]:
        values = [ROMAN[letter] for letter in found[1].lower()]
        return [sum(-a if a < b else a for a, b in pairwise([*values, 0]))]
    return [int(digits) for match in PAGE_NUMBER.findall(text) for digits in match if digits]


def shape_of(page: Sequence[Line], usual: float) -> Shape:
    """Return what the lines of a page are usually like. usual: the leading of the document, for a page of few lines."""
    steps = steps_of(page)
    widths = sorted(len(line.text) for line in page)
    return Shape(median(steps) if len(steps) > FEW_STEPS else usual, widths[len(widths) * 4 // 5] if widths else 0)


def steps_of(page: Sequence[Line]) -> list[float]:
    """Return how far the lines of a page are from the next below them, in points."""
    return [a.y - b.y for a, b in pairwise(page) if 0 < a.y - b.y < 4 * max(a.size, 1)]


def join(before: Line, line: Line, shape: Shape, vocabulary: Counter[str], new_page: bool = False) -> tuple[str, int]:
    """Return what goes between two lines, and how many characters of the first it replaces."""
    broken = BROKEN.search(before.text)
    if not new_page and ends_paragraph(before, line, shape) and not (broken and line.text[:1].islower()):
        return "\n\n", 0
    if broken:
        return mend(broken[1], broken[2], line.text, vocabulary)
    if before.text.endswith(("-", "\u2010", "—", "/")) and before.text[-2:-1].strip():
        return "", 0
    if new_page and (SENTENCE_END.search(before.text) or not line.text[:1].islower()):
        return "\n\n", 0
    return (" " if new_page or 10 * len(before.text) >= 6 * shape.width else "\n"), 0


def ends_paragraph(before: Line, line: Line, shape: Shape) -> bool:
    """Return whether a line of the same page begins a paragraph: by the gap, the letters, a bullet, or an indent."""
    gap, size = before.y - line.y, max(before.size, line.size, 1.0)
    if abs(before.size - line.size) > 0.12 * size or BULLET.match(line.text):
        return True
    ended = bool(SENTENCE_END.search(before.text))
    if gap <= 0 or gap > 6 * size:  # the next column, or something that stands elsewhere
        return ended or not line.text[:1].islower()
    if gap > 1.3 * shape.leading > 0:
        return True
    short = 10 * len(before.text) < 8 * shape.width
    return ended and (short or 0.5 * size < line.x - before.x < 6 * size)


def mend(left: str, hyphen: str, following: str, vocabulary: Counter[str]) -> tuple[str, int]:
    """Return what goes between a line that ends with left and hyphen and the next, and how much it replaces.

    The hyphen goes, unless the document has the word with it elsewhere, or has both parts but not the whole.
    """
    found = WORDS.match(following)
    right = found[0].split("-")[0] if found else ""
    if hyphen == "\u00ad":
        return "", 1
    if right in SUSPENDED:
        return " ", 0
    if not right or not right[0].islower():
        return "", 0
    whole, parts = (left + right).lower(), (left.lower(), right.lower())
    if vocabulary["-".join(parts)] > vocabulary[whole]:
        return "", 0
    both = min(map(len, parts)) > 3 and all(vocabulary[part] for part in parts)
    return ("", 0) if both and not vocabulary[whole] else ("", 1)


def words_of(pages: Sequence[Sequence[Line]]) -> Counter[str]:
    """Return how often each word is there in small letters, with hyphens and without; not those broken by line ends."""
    words: Counter[str] = Counter()
    for text in whole_texts(pages):
        for found in WORDS.findall(text.lower().replace("\u2010", "-")):
            words[found] += 1
    return words


def whole_texts(pages: Sequence[Sequence[Line]]) -> Iterator[str]:
    """Yield the lines without a word that the line's end breaks."""
    broken = False
    for page in pages:
        for line in page:
            text = line.text.partition(" ")[2] if broken else line.text
            broken = bool(BROKEN.search(line.text))
            yield text.rpartition(" ")[0] if broken else text
