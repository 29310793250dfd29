"""Documents that are made to say otherwise: another answer of the same kind stands in the place of the right one.

Who then answers as the document says has read it, and not remembered. Entity substitution, arXiv 2109.05052.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from unicodedata import category

from clara.core.draws import numbers
from clara.core.scoring import normalize_answer

JUDGEMENTS = {"yes", "no", "true", "false"}
"""Answers that a document does not state by holding them."""

MOST_CHARACTERS = 60
"""Longest answer that is replaced in training, or stands in the place of another."""

FEW = 20
"""Answers of one form below which any of their kind will do."""

TRIES = 4
"""Answers that are drawn for one, at most."""

MARKS = {character for character in map(chr, range(0x300, 0x3100)) if category(character).startswith("M")}
"""Marks that combine with the letter before them, which `re` does not count among the characters of words."""

Pair = tuple[str, str]
"""A question and its answer."""


class Answers(NamedTuple):
    """Answers to draw others from."""

    forms: dict[tuple[str, str], list[str]]
    """By (kind, form)."""
    kinds: dict[str, list[str]]
    """By kind."""


def kind_of(answer: str) -> str:
    """Return number for an answer with a digit, name for one with a capitalised word, else words."""
    if any(character.isdigit() for character in answer):
        return "number"
    return "name" if any(word[0].isupper() for word in answer.split()) else "words"


def form_of(answer: str) -> str:
    """Return what an answer looks like: of a number its digits as 0 and its words as a, else the number of words."""
    if kind_of(answer) == "number":
        return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "0", answer))
    return str(len(answer.split()))


def bounded(answer: str) -> str:
    """Return the pattern of an answer that is no part of a longer word or number: 20 is not in 1,020 nor in 20.5."""
    return rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w)(?![.,]\d)"


def whole(match: re.Match[str]) -> bool:
    """Return whether no combining mark is beside a match, which belongs to its word."""
    text, start, end = match.string, match.start(), match.end()
    return MARKS.isdisjoint((text[start - 1 : start], text[end : end + 1]))


def places(answer: str, text: str, flags: int = 0) -> Iterator[re.Match[str]]:
    """Yield where an answer stands in a text, at word borders, of which writing without spaces has hardly any."""
    return filter(whole, re.finditer(bounded(answer), text, flags))


def stands(answer: str, texts: Iterable[str], flags: int = 0) -> bool:
    """Return whether an answer stands in one of the texts."""
    return any(True for text in texts for _ in places(answer, text, flags))


def replaced(answers: Iterable[str], new: str, text: str) -> str:
    """Return a text with a new answer wherever it had one of some answers, the longest that is there."""
    pattern = "|".join(map(bounded, sorted(answers, key=len, reverse=True)))
    return re.sub(pattern, lambda match: new if whole(match) else match.group(), text)


def answer_table(answers: Iterable[str]) -> Answers:
    """Return answers as a table to draw others from, each once, in order; too long ones and judgements are left out."""
    forms, kinds = dict[tuple[str, str], list[str]](), dict[str, list[str]]()
    for answer in dict.fromkeys(map(str.strip, answers)):
        if replaceable(answer):
            kind = kind_of(answer)
            forms.setdefault((kind, form_of(answer)), []).append(answer)
            kinds.setdefault(kind, []).append(answer)
    return Answers(forms, kinds)


def replaceable(answer: str) -> bool:
    """Return whether an answer is such as a document states by holding it, and short."""
    return 0 < len(answer) <= MOST_CHARACTERS and normalize_answer(answer) not in JUDGEMENTS | {""}


def otherwise(
    documents: Sequence[str], pairs: Sequence[Pair], table: Answers, seed: int
) -> tuple[list[str], list[Pair]] | None:
    """Return documents that say otherwise, and the questions with the answers that they then have; None where none can.

    Each answer that stands in a document gives way to one of the table, everywhere, drawn by seed: of its form where
    there are more than `FEW`, else of its kind. One that is part of a question, or of another answer, stays; so does
    one that the documents also have in other capitals, or for whom none is drawn that is new to documents and
    questions. A question whose answer stayed is left out where the documents do not hold it.
    """
    draws = numbers(seed)
    texts, answers, questions = list(documents), [answer for _, answer in pairs], [question for question, _ in pairs]
    for i in sorted(range(len(pairs)), key=lambda _: next(draws)):
        old = answers[i]
        if not replaceable(old) or not stands(old, texts) or stands(old, questions, re.IGNORECASE):
            continue
        if any(old != other and (old in other or other in old) for other in answers):
            continue
        new = drawn(old, [*texts, *questions], table, draws)
        written = {match.group() for text in texts for match in places(old, text, re.IGNORECASE)}
        if new is not None and written == {old}:
            texts = [replaced([old], new, text) for text in texts]
            answers = [new if answer == old else answer for answer in answers]
    if answers == [answer for _, answer in pairs]:
        return None
    kept = [
        (question, answer)
        for (question, before), answer in zip(pairs, answers, strict=True)
        if answer != before or stands(answer, texts)
    ]
    return texts, kept


def drawn(old: str, texts: Sequence[str], table: Answers, draws: Iterator[int]) -> str | None:
    """Return another answer than the old one, as `otherwise` draws it; None where none of `TRIES` will do."""
    kind = kind_of(old)
    same = table.forms.get((kind, form_of(old)), [])
    same = same if len(same) > FEW else table.kinds.get(kind, [])
    for _ in range(TRIES if same else 0):
        new = same[next(draws) % len(same)]
        if not alike(new, old) and not stands(new, texts, re.IGNORECASE):
            return new
    return None


def alike(one: str, other: str) -> bool:
    """Return whether one of two answers is in the words of the other."""
    one, other = (f" {normalize_answer(answer)} " for answer in (one, other))
    return one in other or other in one
