"""What a model is asked when it makes questions about texts, as data, and how its replies are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import msgspec
from msgspec import Struct

from clara.core.lexical import terms

Kind = Literal["simple", "complex"]
"""A question about one fact of a text, or about two or more."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class QuestionPrompts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wordings: what is asked about a text, and how its replies are put to the test."""

    simple: str = (
        "Text:\n{text}\n\nWrite {count} simple questions about the text. Each asks for one fact that the text states. "
        "Name the things you ask about, since the reader sees only the question. Answer each in a few words of the "
        "text. Write nothing else than lines of this form:\nQ: question\nA: answer"
    )
    complex: str = (
        "Text:\n{text}\n\nWrite {count} harder questions about the text. Each can only be answered by putting two or "
        "more facts of the text together. Name the things you ask about, since the reader sees only the question. "
        "Answer each in a few words. Write nothing else than lines of this form:\nQ: question\nA: answer"
    )
    paraphrase: str = (
        "Text:\n{text}\n\nWrite the text again in other words. Keep every fact, name and number. "
        "Write only the new text."
    )
    supported: str = (
        "Text:\n{text}\n\nQuestion: {question}\nAnswer: {answer}\n\n"
        "Does the text show that this answer is right? Reply with yes or no."
    )
    combined: str = (
        "Text:\n{text}\n\nQuestion: {question}\nAnswer: {answer}\n\nDoes the text show that this answer is right, and "
        "are two or more of its facts needed to see it? Reply with yes or no."
    )
    faithful: str = (
        "First text:\n{text}\n\nSecond text:\n{answer}\n\n"
        "Does the second text say the same as the first, with nothing added? Reply with yes or no."
    )


class Pair(NamedTuple):
    """A question with its answer."""

    question: str
    answer: str


LIST = r"\s*(?:[-*•>#]{1,6}\s{1,8})?(?:\(?\d{1,3}[.):]\s{1,8})?"
"""What stands before a line of a list."""

STYLE = r"[*_`\"]{0,6}"
"""Marks of Markdown, and quotation marks."""

MARK = re.compile(
    rf"{LIST}{STYLE}(?P<role>q|a|question|answer|frage|antwort)[*_ ]{{0,6}}\d{{0,3}}{STYLE}\s{{0,8}}(?P<end>[:.)])"
    rf"\s{{0,8}}{STYLE}(?P<rest>.*)",
    re.IGNORECASE,
)
LEAD = re.compile(
    r"(?:sure|certainly|of course|here(?: is|'s| are)|okay|ok|the (?:new|second) text)\b[^\n]{0,80}:\s*\n+", re.I
)
YES, NO = (
    re.compile(r"\W*(?:yes|ja|oui|correct|true)\b", re.I),
    re.compile(r"\W*(?:no|not|nein|non|incorrect|false)\b", re.I),
)
REPLY_CHARACTERS = 20_000
"""What is read of a reply: a model that goes astray says the same without end."""


def parse_pairs(reply: str, finished: bool = True) -> list[Pair]:
    """Return the questions and answers in a reply: "Q:" and "A:" lines, numbered or in Markdown, or JSON.

    finished: whether the reply ended by itself; of one that was cut the last answer is left out. Never raises.
    """
    reply = reply[:REPLY_CHARACTERS]
    pairs = list(_json_pairs(reply)) or list(_line_pairs(reply))
    return pairs if finished else pairs[:-1]


def parse_paraphrase(reply: str) -> str:
    """Return the text of a reply without the words that lead to it, a code fence, or quotation marks around it."""
    text = LEAD.sub("", reply.strip()[:REPLY_CHARACTERS], count=1).strip().strip("`").strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] + text[-1] in ('""', "“”", "''") else text


def parse_verdict(reply: str) -> bool | None:
    """Return whether a reply says yes or no; None where it says neither."""
    if YES.match(reply):
        return True
    return False if NO.match(reply) else None


def pair_fault(pair: Pair, others: Sequence[Pair]) -> str | None:
    """Return why a pair is of no use before any model looks at it, or None. others: what the text has already."""
    question, answer = terms(pair.question), terms(pair.answer)
    if len(question) < 3 or not pair.answer.strip():
        return "no question or no answer"
    if len(pair.question) > 400 or len(pair.answer) > 300:
        return "too long"
    if any(question == terms(other.question) for other in others):
        return "asked before"
    if answer and f" {' '.join(answer)} " in f" {' '.join(question)} " and answer not in (["yes"], ["no"]):
        return "the question gives the answer away"
    if re.search(r"\b(?:the|this|given) (?:text|passage|document|article)\b", pair.question.lower()):
        return "the question speaks of the text"
    return None


def paraphrase_fault(paraphrase: str, text: str, finished: bool) -> str | None:
    """Return why a paraphrase is of no use, or None."""
    if not finished:
        return "cut off"
    if terms(paraphrase) == terms(text):
        return "the text itself"
    if not 0.4 * len(text) <= len(paraphrase) <= 2.5 * len(text):
        return "much shorter or longer than the text"
    return None


def _json_pairs(reply: str) -> Iterator[Pair]:
    """Yield the pairs of a reply that holds JSON: objects with question and answer, in a list or an object or alone."""
    begin = min((i for i in (reply.find("["), reply.find("{")) if i >= 0), default=-1)
    end = max(reply.rfind("]"), reply.rfind("}"))
    if begin < 0 or end <= begin:
        return
    try:
        found = msgspec.json.decode(reply[begin : end + 1].encode("utf-8", "replace"))
    except (msgspec.DecodeError, RecursionError):
        return
    if isinstance(found, dict):
        found = next((value for value in found.values() if isinstance(value, list)), [found])
    for item in found if isinstance(found, list) else []:
        if isinstance(item, dict):
            fields = {str(name).lower()[:1]: str(value).strip() for name, value in item.items()}
            if fields.get("q") and fields.get("a"):
                yield Pair(fields["q"], fields["a"])


def _line_pairs(reply: str) -> Iterator[Pair]:
    """Yield the pairs of a reply in lines: marked as question and answer, or a question mark with the next line."""
    question = ""
    for line in filter(str.strip, reply.splitlines()):
        # Question and answer may share a line: "Q: …? A: …".
        for part in re.split(r"(?<=[?\s])(?=\*{0,2}(?:A|Answer)\*{0,2}:)", line):
            role, rest = _marked(part)
            if role == "q" or (not role and rest.endswith("?")):
                question = rest
            elif question and rest:
                yield Pair(question, rest)
                question = ""


def _marked(line: str) -> tuple[str, str]:
    """Return the role of a line, "q", "a" or none, and what it says; of marks as in "Q: Question:" the last counts."""
    role = ""
    for _ in range(3):
        mark = MARK.match(line)
        if not mark or (role and mark["end"] != ":"):  # "A: A. Milne" has one mark
            break
        role, line = mark["role"][0].lower().replace("f", "q"), mark["rest"]
    return role, _clean(line if role else re.sub(LIST, "", line, count=1))


def _clean(text: str) -> str:
    """Return a text without the marks of Markdown and the quotation marks around it."""
    return text.strip().strip("*_`").strip().strip('"').strip()
