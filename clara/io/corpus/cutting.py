"""Cuts documents into passages that fit a compressor: at the ends of paragraphs, sentences and words."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clara.core.breaks import places
from clara.io.corpus.passages import Document, Passage, content_hash
from clara.io.tokens import Tokenizer, encode

BLOCK = 20_000
"""Characters that are tokenised at a time: some tokenizers take quadratic time on a long word."""

CHARACTERS = 32
"""Characters of a passage for each of its tokens, at most: white space and what has no token also take room."""

SMALLEST = 4
"""A passage of a document that is cut has at least this part of the tokens it may have, where that can be."""

_TEXT = re.compile(r"\S")


class Span(NamedTuple):
    """A piece of a text, with its tokens."""

    start: int
    end: int
    tokens: int


def cut(document: Document, tokenizer: Tokenizer, max_tokens: int) -> Iterator[Passage]:
    """Yield the passages of a document, in order: each character that is not white space is in exactly one.

    A passage has at most max_tokens tokens, as `encode` counts them, and is text[start:end] without white space at its
    ends. It ends with a paragraph where that leaves it long enough, else with a sentence, a line, a word, or as a last
    resort inside a word. A single character of more tokens than that is a passage of its own.
    """
    for start, end, tokens in spans(document.text, tokenizer, max_tokens):
        text = document.text[start:end]
        yield Passage(
            text=text,
            title=document.title,
            source=document.source,
            pages=pages_of(document.page_starts, start, end),
            start=start,
            end=end,
            tokens=tokens,
            hash=content_hash(text),
        )


def pages_of(page_starts: tuple[int, ...], start: int, end: int) -> tuple[int, int] | None:
    """Return the first and the last page of text[start:end], counted from 1; None without pages."""
    if not page_starts:
        return None
    return bisect_right(page_starts, start), bisect_right(page_starts, end - 1)


def spans(text: str, tokenizer: Tokenizer, max_tokens: int) -> Iterator[Span]:
    """Yield where the passages of a text lie, as `cut` has them."""
    starts = token_starts(text, tokenizer)
    found = _TEXT.search(text)
    while found:
        span = _next(text, found.start(), starts, tokenizer, max_tokens)
        yield span
        found = _TEXT.search(text, span.end)


def token_starts(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Return int64[n + 1]: the character that each token of a text begins with, as blocks of it tell, and its end."""
    parts = []
    start = 0
    while start < len(text):
        end = start + BLOCK
        gap = max(text.rfind(" ", start + BLOCK // 2, end), text.rfind("\n", start + BLOCK // 2, end))
        end = gap if end < len(text) and gap > 0 else end
        block = text[start:end].encode("utf-8", "replace").decode()
        offsets = tokenizer.plain.encode(block, add_special_tokens=False).offsets
        parts.append(np.array([offset for offset, _ in offsets], np.int64) + start)
        start = end
    return np.concatenate([*parts, np.array([len(text)], np.int64)])


def _next(text: str, start: int, starts: np.ndarray, tokenizer: Tokenizer, max_tokens: int) -> Span:
    """Return the passage that begins at `start`, where no white space is."""
    room = max_tokens
    while True:
        end = _end(text, start, starts, room, max_tokens // SMALLEST)
        end = start + len(text[start:end].rstrip())
        tokens = len(encode(tokenizer, text[start:end]))
        if tokens <= max_tokens or end == start + 1:
            return Span(start, end, tokens)
        # A piece by itself may have more tokens than it has within its block.
        room = max(min(room - 1, room - (tokens - max_tokens)), 0)


def _end(text: str, start: int, starts: np.ndarray, room: int, smallest: int) -> int:
    """Return where a passage of about `room` tokens that begins at `start` is best cut."""
    last = len(starts) - 1
    first = int(np.searchsorted(starts, start))
    first -= starts[first] > start  # a token that begins with the space before

    def after(tokens: int) -> int:
        place = int(starts[min(first + tokens, last)])
        return max(min(place, start + CHARACTERS * tokens), start + 1)

    full, least = after(room), after(smallest)
    if full == len(text):
        return full
    balanced = min(full, after(max(last - first - smallest, smallest)))
    for limit in (balanced, full):
        found = [place for place in places(text, start, limit) if place.end > start]
        if long := [place for place in found if place.end >= least]:
            return max(long, key=lambda place: (place.rank, place.end)).end
    return found[-1].end if found else balanced
