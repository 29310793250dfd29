"""Exact search over stored memories, block by block: scores from packed rows, and the best of all blocks.

In numpy: blocks come from files that are mapped into memory, and what bounds the search is how fast a block can be
turned into float32. A block that stays in the processor's cache is turned and multiplied in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

BLOCK_BYTES = 2**22
"""Of a block's rows as float32."""


class Packing(NamedTuple):
    """How memories are stored."""

    dtype: str
    """float16 or bfloat16: of the memories, or of their scales and biases."""
    bits: int = 0
    """Of a quantised element, 8 or 4; 0 for memories as they are."""
    group_size: int = 0
    """Neighbours along D that share a scale and a bias."""


class Rows(NamedTuple):
    """The memories of n passages as they are stored; bfloat16 and float16 as the words of their bits."""

    memory: np.ndarray
    """uint16[n, M, D], or uint32[n, M, D * bits / 32] with the first element in the lowest bits."""
    norm: np.ndarray
    """float32[n]: the length of the flattened memory."""
    scales: np.ndarray | None = None
    """uint16[n, M, D / group_size], where quantised: an element is its scale times its level, plus its bias."""
    biases: np.ndarray | None = None
    """uint16[n, M, D / group_size], where quantised."""


class Ranking(NamedTuple):
    """The best rows for one question, best first; of equal scores the lower id."""

    scores: np.ndarray
    """float32[k]."""
    ids: np.ndarray
    """int64[k]."""


HALF = np.float32(2.0**112)
"""The exponents of float16 and float32 begin 112 apart."""

NOTHING = Ranking(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64))


def taken(rows: Rows, which: slice | np.ndarray) -> Rows:
    """Return some of the rows."""
    return Rows(**{name: part[which] for name, part in rows._asdict().items() if part is not None})


def cosines(rows: Rows, queries: np.ndarray, packing: Packing) -> np.ndarray:
    """Return float32[n, Q]: the cosine of each row and each of queries: float32[Q, M * D], of length 1 or 0.

    A memory of zeros scores 0.
    """
    count = len(rows.norm)
    product = product_of(queries, packing)
    step = max(BLOCK_BYTES // (4 * queries.shape[1]), 1)
    out = np.empty((count, len(queries)), dtype=np.float32)
    for i in range(0, count, step):
        out[i : i + step] = product(taken(rows, slice(i, i + step)))
    norm = np.asarray(rows.norm)[:, None]
    return np.divide(out, norm, out=np.zeros_like(out), where=norm > 0)


def late_interactions(rows: Rows, queries: np.ndarray, packing: Packing) -> np.ndarray:
    """Return float32[n, Q]: the late interaction of each row and each of queries: float32[Q, M * D], of length 1 or 0.

    See `late_scores`. A memory of zeros scores 0.
    """
    (count, tokens), dim = rows.memory.shape[:2], queries.shape[1] // rows.memory.shape[1]
    asked = np.ascontiguousarray(queries.reshape(len(queries) * tokens, dim).T / np.float32(tokens**0.5))
    step = max(BLOCK_BYTES // (4 * tokens * max(asked.shape)), 1)
    out = np.empty((count, len(queries)), dtype=np.float32)
    for i in range(0, count, step):
        vectors = plain(taken(rows, slice(i, i + step)), packing)
        length = np.sqrt(np.einsum("nmd,nmd->nm", vectors, vectors))[..., None]
        products = (vectors.reshape(-1, dim) @ asked).reshape(len(vectors), tokens, asked.shape[1])
        products /= np.where(length > 0, length, 1)
        out[i : i + step] = products.max(axis=1).reshape(len(vectors), len(queries), tokens).sum(axis=-1)
    return out


def pooled_cosines(
    rows: Rows, queries: np.ndarray, packing: Packing, lens: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Return float32[n, Q]: the cosine of each row's mean memory, seen through a lens, and each of queries.

    queries: float32[Q, D], seen through it too, of length 1 or 0; lens: (center: float32[D], map: float32[D, D]); see
    `relevance_scores`. A memory of zeros scores 0.
    """
    step = max(BLOCK_BYTES // (4 * rows.memory.shape[1] * queries.shape[1]), 1)
    out = np.empty((len(rows.norm), len(queries)), dtype=np.float32)
    for i in range(0, len(out), step):
        seen = plain(taken(rows, slice(i, i + step)), packing).mean(axis=1)
        seen = seen if lens is None else (seen - lens[0]) @ lens[1]
        length = np.linalg.norm(seen, axis=1, keepdims=True)
        out[i : i + step] = seen @ queries.T / np.where(length > 0, length, 1)
    return np.where(np.asarray(rows.norm)[:, None] > 0, out, np.float32(0))


def plain(rows: Rows, packing: Packing) -> np.ndarray:
    """Return float32[n, M, D]: the numbers that rows stand for."""
    if not packing.bits:
        return widened(rows.memory, packing.dtype)
    scales, biases = (widened(part, packing.dtype)[..., None] for part in (rows.scales, rows.biases))
    count, tokens, groups = scales.shape[:3]
    parts = unpacked(np.ascontiguousarray(rows.memory).view(np.uint8), packing.bits)
    levels = np.stack(parts, axis=-1).reshape(count, tokens, groups, packing.group_size).astype(np.float32)
    levels *= scales
    levels += biases
    return levels.reshape(count, tokens, groups * packing.group_size)


def product_of(queries: np.ndarray, packing: Packing) -> Callable[[Rows], np.ndarray]:
    """Return a function from rows to float32[n, Q]: their product with queries: float32[Q, M * D].

    Quantised rows are not made whole for it: of each group it is the scale times the product of the levels, plus the
    bias times the sum of the query.
    """
    if not packing.bits:
        columns = np.ascontiguousarray(queries.T)
        return lambda rows: widened(rows.memory, packing.dtype).reshape(len(rows.norm), -1) @ columns
    grouped = queries.reshape(len(queries), -1, packing.group_size)
    sums = np.ascontiguousarray(grouped.sum(axis=-1).T)
    octet = 8 // packing.bits
    parts = [np.ascontiguousarray(grouped[..., i::octet].transpose(1, 2, 0)) for i in range(octet)]

    def product(rows: Rows) -> np.ndarray:
        count, groups = len(rows.norm), len(sums)
        scales, biases = (widened(part, packing.dtype).reshape(count, groups) for part in (rows.scales, rows.biases))
        octets = np.ascontiguousarray(rows.memory).view(np.uint8).reshape(count, groups, -1)
        total = biases @ sums
        for levels, part in zip(unpacked(octets, packing.bits), parts, strict=True):
            products = np.matmul(levels.astype(np.float32).transpose(1, 0, 2), part)
            total += np.einsum("ng,gnq->nq", scales, products)
        return total

    return product


def unpacked(octets: np.ndarray, bits: int) -> list[np.ndarray]:
    """Return the levels in octets: of 8 bits all; of 4 those with even, then those with odd numbers."""
    return [octets] if bits == 8 else [octets & 15, octets >> 4]


def widened(words: np.ndarray | None, dtype: str) -> np.ndarray:
    """Return the float32 numbers of uint16 words that are the bits of bfloat16 or float16."""
    assert words is not None
    wide = words.astype(np.uint32)
    if dtype == "bfloat16":
        wide <<= 16
        return wide.view(np.float32)
    # Three times as fast as numpy's own: the bits of a half in a float's places are the number times 2 ** -112.
    sign = wide & 0x8000
    sign <<= 16
    wide &= 0x7FFF
    wide <<= 13
    wide |= sign
    return wide.view(np.float32) * HALF


def fused(rankings: Sequence[Sequence[int]], constant: int = 60) -> list[tuple[int, float]]:
    """Return (id, score) of all that stands in some rankings of ids, best first: reciprocal rank fusion.

    An id scores the sum of 1 / (constant + rank) over the rankings that have it, ranks from 1; of equal ones the lower
    id comes first. Source: Cormack et al. 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
    Learning Methods".
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, id_ in enumerate(ranking, 1):
            scores[id_] = scores.get(id_, 0.0) + 1 / (constant + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def with_words(relevance: Sequence[float], words: Sequence[float]) -> list[float]:
    """Return what candidates score by the reasoner's relevance and by their words, as much by either.

    Both are brought to mean 0 and variance 1 over the candidates and added, whatever their scales are; scores that are
    all equal count nothing.
    """
    total: list[float] = (standardised(relevance) + standardised(words)).tolist()
    return total


def standardised(scores: Sequence[float]) -> np.ndarray:
    """Return float64[n]: scores with mean 0 and variance 1; zeros where they are all equal, or none."""
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or values.min() == values.max():
        return np.zeros(len(values))
    away = values - values.mean()
    return away / away.std()


def merged(best: Ranking, scores: np.ndarray, ids: np.ndarray, k: int) -> Ranking:
    """Return the k best of a ranking and of further scores: float32[n], of rows with ids: int64[n]."""
    if 0 < k < len(scores):
        # All that tie with the k-th stay in, so that the order below is the same wherever blocks begin.
        kept = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        scores, ids = scores[kept], ids[kept]
    scores, ids = np.concatenate([best.scores, scores]), np.concatenate([best.ids, ids])
    order = np.lexsort((ids, -scores))[:k]
    return Ranking(scores[order], ids[order])
