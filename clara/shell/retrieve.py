"""Questions to passages of a memory store: candidates by words, by memory or by both, then the reasoner's choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import mlx.core as mx

from clara.core.search import fused, with_words
from clara.core.stages import lens_of
from clara.io.corpus.passages import Passage
from clara.io.memory_store.search import (
    Hit,
    memories_of,
    passages_of,
    reading,
    search_memory,
    search_text,
    word_scores,
)
from clara.io.memory_store.store import Store
from clara.shell.answer import best_first, compress_questions, has_reasoner, relevances
from clara.shell.setup import Session

FirstStage = Literal["bm25", "memory", "both"]


class Search(NamedTuple):
    """How passages are found."""

    first_stage: FirstStage
    """Where candidates come from: the words of passages, all memories, or both together."""
    candidates: int
    """Candidates of each of these."""
    top_k: int
    """Passages that a question is answered from."""
    rerank: bool
    """Whether the reasoner chooses among the candidates; otherwise they stay in the order of the first stage."""
    fuse: bool = False
    """Whether the candidates' words count as much as the reasoner's relevance then."""


class Found(NamedTuple):
    """What was found for a question."""

    passages: list[Passage]
    """The best first, `top_k` at most."""
    scores: list[float]
    """Of each: the reasoner's relevance, alone or with words (see `with_words`); or the first stage's: of memory, BM25,
    or the fused rank's."""
    memory: mx.array
    """float[K, M, D]: their memories."""


def default_search(session: Session) -> Search:
    """Return the search that fits what a model was trained for.

    One that never read several documents at once is given one; one that never chose leaves the order to BM25.
    """
    top_k = 1 if session.config.stage == "pretrain" else session.config.retrieval.top_k
    return Search("bm25", max(20, top_k), top_k, has_reasoner(session), fuse=True)


def retrieve(session: Session, store: Store, questions: Sequence[str], how: Search) -> list[Found]:
    """Return what one state of a store has for each question; nothing where no passage shares a word with it."""
    if not questions:
        return []
    needed = how.rerank or how.first_stage != "bm25"
    queries = compress_questions(session, questions) if needed else None
    scored = session.config.retrieval.relevance, lens_of(session.params)

    def work() -> list[Found]:
        lists: list[list[list[Hit]]] = [[] for _ in questions]
        if queries is not None and how.first_stage != "bm25":
            for each, hits in zip(lists, search_memory(store, queries, how.candidates, *scored), strict=True):
                each.append(hits)
        if how.first_stage != "memory":
            for each, question in zip(lists, questions, strict=True):
                each.append(search_text(store, question, how.candidates))
        return [
            found(session, store, question, rankings, None if queries is None else queries[i], how)
            for i, (question, rankings) in enumerate(zip(questions, lists, strict=True))
        ]

    return reading(store, work)


def found(
    session: Session,
    store: Store,
    question: str,
    rankings: Sequence[Sequence[Hit]],
    query: mx.array | None,
    how: Search,
) -> Found:
    """Return the best of the candidates that the first stage found: by the reasoner, or in the first stage's order."""
    if len(rankings) == 1:
        pairs = [(hit.id, hit.score) for hit in rankings[0]]
    else:
        pairs = fused([[hit.id for hit in ranking] for ranking in rankings])
    if query is not None and how.rerank:
        ids = [id_ for id_, _ in pairs]
        scores = relevances(session, query, [memories_of(store, ids)])
        scores = with_words(scores, word_scores(store, question, ids)) if how.fuse else scores
        pairs = [(ids[i], score) for i, score in best_first(scores)]
    best = pairs[: how.top_k]
    ids = [id_ for id_, _ in best]
    return Found(passages_of(store, ids), [score for _, score in best], memories_of(store, ids))
