"""Where a text may be cut: between paragraphs, sentences, lines and words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

WORD, LINE, SENTENCE, PARAGRAPH = range(4)
"""Ranks of places, the best last."""

ABBREVIATION = re.compile(
    "al|approx|bzw|ca|cf|def|dept|dr|ed|eds|eg|esp|ex|exp|fig|figs|hon|hrsg|ibid|ie|incl|jr|lt|mr|mrs|ms|mt|prof|ref|"
    "refs|resp|rev|sr|st|tab|thm|univ|usw|viz|vgl|vol|vols|vs"
)
"""Words that a full stop shortens, as far as what follows can tell."""

BEFORE_NUMBER = re.compile(
    "app|art|bd|ch|chap|col|cor|cp|eq|eqs|lemma|no|nos|nr|op|p|para|pp|prop|pt|sec|sect|"
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)
"""Words that a full stop shortens where a number follows."""

_PLACE = re.compile(r"\s+|(?:(?<=[。！？｡])|(?<=[。！？｡][」』”’)）]))(?![。！？｡」』”’)）\s])")
_SENTENCE_END = re.compile(r"[.!?…。！？｡][\"'”’»›)\]」』）*_]*\Z")
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘/—–]*\Z")
_REACH = 32
"""Characters before a place that are looked at: a longer word is no abbreviation."""

_HEADING = 80
"""Longest heading, in characters."""


class Place(NamedTuple):
    """A place where a text may be cut."""

    end: int
    """Where the text before it ends."""
    start: int
    """Where the text after it begins: what is between is white space."""
    rank: int
    """WORD, LINE, SENTENCE or PARAGRAPH."""


def places(text: str, start: int, end: int) -> Iterator[Place]:
    """Yield the places in text[start:end], in order; also a run of white space that begins at `end`.

    A blank line, a form feed or U+2029 ends a paragraph, unless that is a heading, which belongs to what follows. ".",
    "!", "?" and their like end a sentence where white space and no small letter follows, but not after an abbreviation
    ("Fig. 3", "et al. (2020)", "e.g. Lamps"), an initial ("J. Doe") or a number that begins a line ("3. Lamps"); those
    of Chinese and Japanese need no white space.
    """
    # Without a bound, one word of many megabytes would be searched to its end from every place in it.
    for found in _PLACE.finditer(text, start, end + _REACH):
        if found.start() <= end:
            yield Place(*found.span(), _rank(text, *found.span()))


def _rank(text: str, end: int, start: int) -> int:
    """Return the rank of a place."""
    if start == end:
        return SENTENCE
    gap = text[end:start]
    if gap.count("\n") > 1 or "\f" in gap or "\u2029" in gap:
        return LINE if is_heading(text[max(end - 2 * _HEADING, 0) : end]) else PARAGRAPH
    if ends_sentence(text[max(end - _REACH, 0) : end], text[start : start + 1]):
        return SENTENCE
    return LINE if "\n" in gap else WORD


def is_heading(before: str) -> bool:
    """Return whether the last paragraph of `before`, which may be cut short, is a heading: short, and no sentence."""
    last = before.rpartition("\n\n")[2].strip()
    return len(last) <= _HEADING and not last.endswith((".", "!", "?", ":", ";", "。", "！", "？", '"', "”", ")", "|"))


def ends_sentence(before: str, following: str) -> bool:
    """Return whether a sentence ends between `before`, which may be cut short, and the character that follows."""
    found = _SENTENCE_END.search(before)
    if not found or following.islower():
        return False
    if found[0][0] != ".":
        return True
    begin = _LAST_WORD.search(before, 0, found.start())
    word = begin[0] if begin else ""
    letters = word.replace(".", "")
    if letters.isalpha() and all(len(part) == 1 for part in word.split(".")):
        return False
    if word.isdecimal():
        return bool(before[: found.start() - len(word)].rpartition("\n")[2].strip())
    shortened = ABBREVIATION.fullmatch(letters.lower())
    return not (shortened or (following.isdecimal() and BEFORE_NUMBER.fullmatch(letters.lower())))
