"""The systems of an evaluation, side by side: what each reads to answer a question, and by which model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from clara.io.errors import ClaraError
from clara.io.evaluation.formats import Question


class System(NamedTuple):
    """What makes a system."""

    about: str
    tuned: bool
    """Whether the trained generator answers, from memories; otherwise texts are read."""
    reads: Literal["known", "other", "candidates", "tfidf", "bm25", "nothing"]
    """The documents that are known to hold the answer, those of another question, the best of the question's
    candidates by the reasoner (of a corpus where it has none), the best of a corpus by words, or none."""
    style: int
    """Its place in the palette, the same in every figure."""
    tuned_on_text: bool = False
    """Whether texts are read by a generator that was trained on texts; otherwise by the base."""
    fused: bool = False
    """Whether the words of candidates count as much as the reasoner's relevance."""


SYSTEMS = {
    "memory": System("compressed documents", True, "known", 0),
    "memory_retrieved": System(
        "compressed documents that the reasoner chooses among the candidates", True, "candidates", 2
    ),
    "memory_fused": System(
        "the same, the candidates' BM25 counting as much as the reasoner", True, "candidates", 10, fused=True
    ),
    "memory_tfidf": System("compressed passages that TF-IDF finds", True, "tfidf", 8),
    "text": System("the base with the documents' text", False, "known", 1),
    "tuned_text": System(
        "the generator of --text-checkpoint with the documents' text, as it was trained", False, "known", 9, True
    ),
    "text_tfidf": System("the base with the text of passages that TF-IDF finds", False, "tfidf", 7),
    "text_bm25": System("the base with the text of passages that BM25 finds", False, "bm25", 4),
    "tuned_closed_book": System("the trained generator without a document", True, "nothing", 5),
    "closed_book": System("the base without a document", False, "nothing", 3),
    "memory_shuffled": System("compressed documents of another question", True, "other", 6),
}
"""All of them, in the order in which they are asked and shown."""


def serves(name: str, question: Question, corpus: Sequence[str]) -> bool:
    """Return whether a system can be asked a question: whether there is what it reads."""
    reads = SYSTEMS[name].reads
    if question.task == "paraphrase":
        return reads in ("known", "other")
    own = bool(question.documents)
    return {"known": own, "other": own, "nothing": True}.get(reads, bool(corpus))


def other_documents(questions: Sequence[Question], seed: int) -> dict[str, tuple[str, ...]]:
    """Return for each question's id the documents that another question knows to hold its answer.

    They are those of the next question in an order drawn by the seed that shares no document with it. Raises
    ClaraError where a question shares one with every other.
    """
    groups = list(dict.fromkeys(question.known for question in questions))
    order = np.random.default_rng([seed, 3]).permutation(len(groups)).tolist()
    place = {groups[group]: i for i, group in enumerate(order)}
    found = {}
    for question in questions:
        own, at = set(question.documents), place[question.known]
        after = (groups[i] for i in (*order[at + 1 :], *order[:at]))
        other = next((group for group in after if group and own.isdisjoint(group)), None)
        if other is None:
            raise ClaraError(
                f"question {question.id}: no other question has documents that are not also its own; memory_shuffled "
                "wants some: leave it out of --systems, or raise --limit"
            )
        found[question.id] = other
    return found
