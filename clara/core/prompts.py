"""Prompts as data: what stands around the memory, and what is asked of the generator, for each task.

`{memory}` marks where the memory of the documents goes, `{question}` a question and `{answer}` its answer. The
defaults are this project's own wordings; a converted checkpoint brings those that it was trained with.
"""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct

Task = Literal["qa", "paraphrase", "autoencode"]
"""Answer questions about a document; say it in other words; repeat it."""

TASKS: tuple[str, ...] = get_args(Task)

MEMORY, QUESTION = "{memory}", "{question}"


class Wording(Struct, frozen=True, forbid_unknown_fields=True):
    """What a prompt says."""

    user: str
    """The user's message."""
    system: str = ""
    """The system's message; none where empty."""


class Prompts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wordings of every task."""

    answer: Wording = Wording("Background: {memory}\n\nAnswer briefly from the background.\nQuestion: {question}")
    """A question about the background; the answer is the reply."""
    closed: Wording = Wording("Answer briefly.\nQuestion: {question}")
    """A question without any background."""
    next_question: str = "Question: {question}"
    """A further question in the same conversation."""
    pairs: Wording = Wording(
        "Background: {memory}\n\nWrite down what the background tells, as questions with their answers."
    )
    """All questions and answers of a document in one reply, as the paper's first stage learns them."""
    pair: str = "Question: {question}\nAnswer: {answer}"
    """One line of that reply."""
    paraphrases: tuple[Wording, ...] = (
        Wording("Background: {memory}\n\nSay the background again in other words."),
        Wording("{memory}\n\nWhat does this text say? Put it in your own words."),
        Wording("Write a new version of this text that keeps every fact: {memory}"),
    )
    """Wordings of the paraphrase task; the record's place in the data decides which one it gets."""
    cloze: Wording = Wording(
        "Background: {memory}\n\nAnswer briefly from the background.\nFill in what is left out: {question}"
    )
    """A sentence of the document with `___` for what was left out of it, which is the reply."""
    next_cloze: str = "Fill in what is left out: {question}"
    """A further such sentence in the same conversation."""
    autoencode: Wording = Wording("{memory}\n\nRepeat the text word for word.")
    """The document itself is the reply."""
    joined: bool = False
    """Whether questions and answers are tokenised together with the words around them, as the original does, or alone,
    so that special tokens in them stay plain characters."""
