"""Choosing among candidates: relevance scores, the straight-through top-k, and how good a ranking is."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from clara.core.config import Relevance
from clara.core.types import Term

NEVER = -1e30
"""A logit that is never chosen: finite, so that no difference of two is nan."""

RECALL_AT = (1, 3, 5)


class Lens(NamedTuple):
    """The affine map that mean memories are compared through; see `projection.whitening` for its start."""

    center: mx.array
    """float[D]."""
    map: mx.array
    """float[D, D]."""


def relevance_scores(
    query: mx.array, memory: mx.array, how: Relevance = "flattened", lens: Lens | None = None
) -> mx.array:
    """Return float32[B, N]: how well each question's candidates fit it, in [−1, 1].

    query: float[B, M, D]; memory: float[B, N, M, D]. flattened: the cosine of the flattened memories; late: see
    `late_scores`; pooled: the cosine of mean memories, seen through the lens. A memory of zeros, as of a missing
    candidate, scores 0.
    """
    if how == "late":
        return late_scores(query[:, None], memory)[:, 0]
    questions, candidates = (rows_of(each, how, lens) for each in (query[:, None], memory))
    return (questions * candidates).sum(axis=-1)


def pairwise_scores(
    query: mx.array, memory: mx.array, how: Relevance = "flattened", lens: Lens | None = None
) -> mx.array:
    """Return float32[B, U]: `relevance_scores` of every question, float[B, M, D], and every memory, float[U, M, D]."""
    if how == "late":
        return late_scores(query[None], memory[None])[0]
    return rows_of(query, how, lens) @ rows_of(memory, how, lens).T


def rows_of(memory: mx.array, how: Relevance, lens: Lens | None = None) -> mx.array:
    """Return float32[..., K]: memory: float[..., M, D] as the vectors of length 1 whose products are its scores.

    K is M · D, of pooled memories D; these are taken as they are without a lens. A memory of zeros becomes zeros.
    """
    *rows, tokens, dim = memory.shape
    if how != "pooled":
        return unit(memory.reshape(*rows, tokens * dim))
    mean = memory.astype(mx.float32).mean(axis=-2)
    if lens is None:
        return unit(mean)
    there = (memory != 0).any(axis=(-2, -1))[..., None]
    return unit(mx.where(there, (mean - lens.center) @ lens.map, 0))


def late_scores(query: mx.array, memory: mx.array) -> mx.array:
    """Return float32[G, B, N]: Σ_i max_j q_i · d_j for the B questions and N documents of each of G groups.

    query: float[G, B, M, D]; memory: float[G, N, M, D]. d: the document's vectors, each of length 1; q: the question's,
    divided by √M and by their length flattened. As Σ_i |q_i| ≤ √M · |q| = 1, no score is outside [−1, 1]. Late
    interaction, after ColBERT (arXiv 2004.12832).
    """
    groups, batch, tokens, dim = query.shape
    count, width = memory.shape[1:3]
    questions = unit(query.reshape(groups, batch, tokens * dim)).reshape(groups, batch * tokens, dim) / tokens**0.5
    documents = unit(memory).reshape(groups, count * width, dim)
    products = (questions @ documents.swapaxes(-1, -2)).reshape(groups, batch, tokens, count, width)
    return products.max(axis=-1).sum(axis=2)


def unit(rows: mx.array) -> mx.array:
    """Return float32[..., D]: rows of length 1, in the direction of rows: float[..., D]; zero rows stay zero."""
    rows = rows.astype(mx.float32)
    squares = mx.sum(rows * rows, axis=-1, keepdims=True)
    return rows * mx.rsqrt(mx.where(squares > 0, squares, 1))


def straight_through_top_k(
    scores: mx.array, mask: mx.array, top_k: int, temperature: float, taken_share: float = 0.0
) -> tuple[mx.array, mx.array]:
    """Return (weights: float32[B, K, N], indices: int32[B, K]): the K best candidates, best first.

    weights are one-hot; their gradient is that of a softmax of scores: float[B, N] at `temperature` over the
    candidates that earlier picks left. mask: bool[B, N], False is never chosen; where fewer than K are left, weights
    are zero and the index is −1. taken_share: what a taken candidate keeps of its softmax weight in later picks, by
    the gradient only; 0 masks it out, the original has 1e-8. arXiv 2511.18659, algorithm 1.
    """
    logits = scores.astype(mx.float32) / temperature
    taken = logits + math.log(taken_share) if taken_share else mx.full(logits.shape, NEVER)
    place = mx.arange(scores.shape[1])[None]
    left = mask
    weights, indices = [], []
    for _ in range(top_k):
        best = mx.stop_gradient(mx.argmax(mx.where(left, logits, NEVER), axis=-1, keepdims=True).astype(mx.int32))
        hard, some = (place == best) & left, left.any(axis=-1, keepdims=True)
        soft = mx.softmax(mx.where(left, logits, mx.where(mask, taken, NEVER)), axis=-1)
        soft = mx.where(some, soft, 0)
        weights.append(hard.astype(mx.float32) + (soft - mx.stop_gradient(soft)))
        indices.append(mx.where(some, best, -1))
        left = left & ~hard
    return mx.stack(weights, axis=1), mx.concatenate(indices, axis=-1)


def select_memory(weights: mx.array, indices: mx.array, memory: mx.array) -> mx.array:
    """Return float[B, K, M, D]: of memory: float[B, N, M, D], the rows at indices: int32[B, K]; zero where −1.

    Its gradient is that of weights @ memory, weights: float[B, K, N], a product that is zero here by value, so that
    the memories come through whole also where a device rounds the inputs of products.
    """
    batch, _, *shape = memory.shape
    flat = memory.reshape(batch, memory.shape[1], -1)
    chosen = mx.take_along_axis(mx.stop_gradient(flat), mx.maximum(indices, 0)[..., None], axis=1)
    mixed = weights.astype(flat.dtype) @ flat
    picked = mx.where((indices >= 0)[..., None], chosen, 0) + (mixed - mx.stop_gradient(mixed))
    return picked.reshape(batch, weights.shape[1], *shape)


def ranking_terms(scores: mx.array, positives: mx.array, mask: mx.array, top_k: int) -> dict[str, Term]:
    """Return recall@1, 3 and 5, precision@K and MRR, summed over the questions that have a positive, and their number.

    scores: float[B, N]; positives, mask: bool[B, N]. Of equal scores the earlier candidate ranks first.
    """
    positives = positives & mask
    place = mx.arange(scores.shape[1])
    above = (scores[:, None] > scores[..., None]) | (
        (scores[:, None] == scores[..., None]) & (place[None] < place[:, None])
    )
    rank = (above & mask[:, None]).sum(axis=-1)
    wanted = positives.sum(axis=-1)
    known = wanted > 0

    def term(values: mx.array) -> Term:
        return mx.where(known, values, 0).sum(), known.sum().astype(mx.float32)

    def hits(k: int) -> mx.array:
        return (positives & (rank < k)).sum(axis=-1)

    first = mx.where(positives, rank, scores.shape[1]).min(axis=-1)
    recalls = {f"recall_at_{k}": term(hits(k) / mx.maximum(wanted, 1)) for k in RECALL_AT}
    return recalls | {f"precision_at_{top_k}": term(hits(top_k) / top_k), "mrr": term(1 / (first + 1))}
