"""Prompts as data: what stands around the memory, and what is asked of the generator, for each task.

`{memory}` marks where the memory of the documents goes and `{question}` a question; wordings are this project's own.
"""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal["qa", "paraphrase", "autoencode"]
"""Answer questions about a document; say it in other words; repeat it."""

TASKS: tuple[str, ...] = get_args(Task)

MEMORY, QUESTION = "{memory}", "{question}"

ANSWER = "Background: {memory}\n\nAnswer briefly from the background.\nQuestion: {question}"
"""A question about the background; the answer is the reply."""

NEXT_QUESTION = "Question: {question}"
"""A further question in the same conversation."""

PAIRS = "Background: {memory}\n\nWrite down what the background tells, as questions with their answers."
"""All questions and answers of a document in one reply, as the paper's first stage learns them."""

PAIR = "Question: {question}\nAnswer: {answer}"
"""One line of that reply."""

PARAPHRASES = (
    "Background: {memory}\n\nSay the background again in other words.",
    "{memory}\n\nWhat does this text say? Put it in your own words.",
    "Write a new version of this text that keeps every fact: {memory}",
)
"""Wordings of the paraphrase task; the record's place in the data decides which one it gets."""

AUTOENCODE = "{memory}\n\nRepeat the text word for word."
"""The document itself is the reply."""
