"""Questions to passages of a memory store: candidates by words, by memory or by both, then the reasoner's choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from clara.core.select import relevance_scores
from clara.io.corpus.passages import Passage
from clara.io.memory_store.search import memories_of, passages_of, search_memory, search_text
from clara.io.memory_store.store import Store
from clara.shell.answer import compress_questions, has_reasoner
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


class Found(NamedTuple):
    """What was found for a question."""

    passages: list[Passage]
    """The best first, `top_k` at most."""
    scores: list[float]
    """Of each: the reasoner's cosine, or that of the first stage, a cosine or BM25."""
    memory: mx.array
    """float[K, M, D]: their memories."""


def default_search(session: Session) -> Search:
    """Return the search that fits what a model was trained for.

    One that never read several documents at once is given one; one that never chose leaves the order to BM25.
    """
    top_k = 1 if session.config.stage == "pretrain" else session.config.retrieval.top_k
    return Search("bm25", max(20, top_k), top_k, has_reasoner(session))


def retrieve(session: Session, store: Store, questions: Sequence[str], how: Search) -> list[Found]:
    """Return what is found in a store for each question; nothing where no passage shares a word with it."""
    needed = how.rerank or how.first_stage != "bm25"
    queries = compress_questions(session, questions) if needed and questions else None
    by_memory = (
        search_memory(store, queries, how.candidates) if queries is not None and how.first_stage != "bm25" else []
    )
    found = []
    for i, question in enumerate(questions):
        hits = [*by_memory[i]] if by_memory else []
        if how.first_stage != "memory":
            known = {hit.id for hit in hits}
            hits += [hit for hit in search_text(store, question, how.candidates) if hit.id not in known]
        ids, scores = [hit.id for hit in hits], [hit.score for hit in hits]
        if queries is not None and how.rerank:
            ids, scores = reranked(store, queries[i], ids)
        ids, scores = ids[: how.top_k], scores[: how.top_k]
        found.append(Found(passages_of(store, ids), scores, memories_of(store, ids)))
    return found


def reranked(store: Store, query: mx.array, ids: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return candidates and their scores, best first by the cosine of their memories and the query's: float[M, D]."""
    if not ids:
        return [], []
    row: Any = relevance_scores(query[None], memories_of(store, ids)[None])[0].tolist()
    order = sorted(range(len(ids)), key=lambda i: -row[i])
    return [ids[i] for i in order], [row[i] for i in order]
