"""Questions whose documents are made to say otherwise: who answers as they say has read them, and not remembered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from clara.core.counterfactual import JUDGEMENTS, alike, form_of, kind_of, replaced, stands
from clara.core.scoring import normalize_answer
from clara.io.evaluation.formats import Question

MARK = "#counterfactual"
"""What the id of such a question ends with."""


def counterfactual(questions: Sequence[Question], seed: int) -> tuple[list[Question], int]:
    """Return the questions with another answer in the place of theirs in all of their documents, and how many are not.

    The other answer is that of another question, of the same kind (see `kind_of`), drawn by the seed: of the same form
    where there is one, else of as many words, else any; it is the only gold. Left out are paraphrases, and questions
    whose answer stands in none of the documents that are known to hold it (verbatim, at word borders), whose answer is
    a judgement or part of the question, or for whom every such answer already stands in their documents.
    """
    olds = {i: old for i, question in enumerate(questions) if (old := stated(question))}
    answers = list(dict.fromkeys(olds.values()))
    found = []
    for i, old in olds.items():
        rng = np.random.default_rng([seed, 7, i])
        fitting = (new for new in drawn(answers, old, rng) if fits(new, questions[i]))
        if (new := next(fitting, None)) is not None:
            found.append(rewritten(questions[i], new))
    return found, len(questions) - len(found)


def stated(question: Question) -> str:
    """Return the gold answer that can be replaced: the first that stands in a document known to hold it; else ""."""
    if question.task != "qa" or any(stands(gold, [question.text], re.IGNORECASE) for gold in question.golds):
        return ""
    golds = (gold for gold in question.golds if normalize_answer(gold) not in JUDGEMENTS)
    return next((gold for gold in golds if stands(gold, question.known)), "")


def drawn(answers: Sequence[str], old: str, rng: np.random.Generator) -> Iterator[str]:
    """Yield the answers of the old one's kind in a drawn order: those of its form first, then those of its length."""
    kind, form, words = kind_of(old), form_of(old), len(old.split())
    same = [answer for answer in answers if kind_of(answer) == kind]
    shuffled = [same[i] for i in rng.permutation(len(same))]
    yield from sorted(shuffled, key=lambda answer: 0 if form_of(answer) == form else 1 + (len(answer.split()) != words))


def fits(new: str, question: Question) -> bool:
    """Return whether an answer is none of the question's, nor part of one, and stands in none of its documents."""
    if any(alike(new, gold) for gold in question.golds):
        return False
    return not stands(new, [question.text, *question.documents], re.IGNORECASE)


def rewritten(question: Question, new: str) -> Question:
    """Return a question whose documents have a new answer wherever they had one of its golds."""
    documents = tuple(replaced(question.golds, new, text) for text in question.documents)
    return question._replace(id=question.id + MARK, golds=(new,), documents=documents, keywords=())
