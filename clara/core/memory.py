"""Memory vectors: where their slots are, how they get into embeddings and out of hidden states."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from clara.core.select import NEVER


class AnchorMaps(NamedTuple):
    """Maps of low rank R, as A @ B, that embeddings and states take on their way into memory."""

    a: mx.array
    """float[P + 1, D, R]: of each of the P places in a chunk, and last of the memory state."""
    b: mx.array
    """float[P + 1, R, D]: their second factors; zeros change nothing."""


class Chunks(NamedTuple):
    """M equal parts of each of N documents."""

    inside: mx.array
    """bool[N, M, S]: the positions of each part."""
    first: mx.array
    """int32[N, M]: the first of these."""
    size: mx.array
    """int32[N, M]: how many these are."""


def slot_index(tokens: mx.array, first_slot: int) -> mx.array:
    """Return int32[B, T]: which flattened memory row each position of tokens: int32[B, T] takes; −1 for none.

    With first_slot 100, tokens [7, 100, 101, 9] give [−1, 0, 1, −1]; a prompt's second document of 2 memory tokens
    has ids 102 and 103.
    """
    slots = tokens.astype(mx.int32) - first_slot
    return mx.where(slots >= 0, slots, -1)


def document_slots(lengths: mx.array, num_memory_tokens: int, width: int) -> mx.array:
    """Return int32[N, S]: memory token j of document n stands at position lengths[n] + j; −1 elsewhere.

    lengths: int32[N]. With lengths [1, 2], two memory tokens and width 5: [[−1, 0, 1, −1, −1], [−1, −1, 0, 1, −1]].
    """
    slot = mx.arange(width)[None] - lengths[:, None]
    return mx.where((slot >= 0) & (slot < num_memory_tokens), slot, -1)


def place_memory(embeddings: mx.array, memory: mx.array, slots: mx.array) -> mx.array:
    """Return float[B, T, D]: `embeddings`, with row `slots[b, t]` of the flattened memory wherever that is ≥ 0.

    embeddings: float[B, T, D]; memory: float[..., D], any leading axes; slots: int32[B, T], −1 keeps the embedding.
    """
    if memory.size == 0:
        return embeddings
    rows = memory.reshape(-1, memory.shape[-1])[mx.maximum(slots, 0)]
    return mx.where(slots[..., None] >= 0, rows.astype(embeddings.dtype), embeddings)


def read_memory(hidden: mx.array, lengths: mx.array, num_memory_tokens: int) -> mx.array:
    """Return float[N, M, D]: the M rows of hidden: float[N, S, D] from position lengths: int32[N] on."""
    index = lengths[:, None] + mx.arange(num_memory_tokens)[None]
    return mx.take_along_axis(hidden, index[..., None], axis=1)


def masked_mean(values: mx.array, mask: mx.array) -> mx.array:
    """Return float32[N, D]: the mean of values: float[N, S, D] where mask: bool[N, S]; zero where nothing is kept."""
    total = mx.where(mask[..., None], values.astype(mx.float32), 0).sum(axis=1)
    return total / mx.maximum(mask.sum(axis=1, keepdims=True), 1)


def document_chunks(start: mx.array, count: mx.array, num_memory_tokens: int, width: int) -> Chunks:
    """Return M equal chunks of each text, that of document n at positions start[n] ≤ s < start[n] + count[n].

    start, count: int32[N]; width: S. Chunk j begins at ⌊j · count / M⌋ and has at least one token, so that chunks of a
    short document overlap; those of an empty one are empty.
    """
    bounds = mx.arange(num_memory_tokens + 1)[None] * count[:, None] // num_memory_tokens
    first = bounds[:, :-1]
    last = mx.minimum(mx.maximum(bounds[:, 1:], first + 1), count[:, None])
    place, begin = mx.arange(width), first + start[:, None]
    end = begin + (last - first)
    return Chunks((place >= begin[..., None]) & (place < end[..., None]), begin, last - first)


def anchors(embeddings: mx.array, chunks: Chunks) -> mx.array:
    """Return float[N, M, D]: the mean of embeddings: float[N, S, D] in each chunk; zero in an empty one.

    Besides the M · S · D multiplications of one product, it compares and casts M · S numbers of each document.
    """
    size = mx.maximum(chunks.size, 1).astype(embeddings.dtype)
    return (chunks.inside.astype(embeddings.dtype) @ embeddings) / size[..., None]


def learned_anchors(embeddings: mx.array, hidden: mx.array, query: mx.array, chunks: Chunks) -> mx.array:
    """Return float32[N, M, D]: Σ_s w_s e_s in each chunk, w = softmax(h_s · query) over it; zero in an empty one.

    embeddings (e), hidden (h): float[N, S, D]; query: float[D]. A query of zeros gives the mean.
    """
    return pooling_weights(hidden, query, chunks) @ embeddings.astype(mx.float32)


def pooling_weights(hidden: mx.array, query: mx.array, chunks: Chunks) -> mx.array:
    """Return float32[N, M, S]: softmax of hidden: float[N, S, D] · query: float[D] over each chunk, zero elsewhere."""
    scores = hidden.astype(mx.float32) @ query.astype(mx.float32)
    weights = mx.softmax(mx.where(chunks.inside, scores[:, None], NEVER), axis=-1)
    return mx.where(chunks.inside, weights, 0)


def mapped_anchors(
    embeddings: mx.array, hidden: mx.array, query: mx.array, maps: AnchorMaps, chunks: Chunks
) -> mx.array:
    """Return float32[N, M, D]: Σ_p w_p (e_p + e_p A_p B_p), with p the place of a token in its chunk, w as learned.

    What the sum of embeddings loses, their order, the maps keep. Tokens beyond the P places of a longer chunk take no
    map. Of an empty one it is zero; maps of zeros give `learned_anchors`. embeddings (e), hidden: float[N, S, D];
    query: float[D].
    """
    weights, values = pooling_weights(hidden, query, chunks), embeddings.astype(mx.float32)
    place, last = mx.arange(maps.a.shape[0] - 1), values.shape[1] - 1
    index = mx.minimum(chunks.first[..., None] + place, last)
    share = mx.where(place < chunks.size[..., None], mx.take_along_axis(weights, index, axis=-1), 0)
    placed = share[..., None] * values[mx.arange(values.shape[0])[:, None, None], index]
    narrow = mx.einsum("nmpd,pdr->nmpr", placed, maps.a[:-1]).flatten(2)
    return weights @ values + narrow @ maps.b[:-1].flatten(0, 1)


def anchor_memory(
    memory: mx.array, anchor: mx.array, gain: mx.array, embedding_rms: mx.array, maps: AnchorMaps | None = None
) -> mx.array:
    """Return float[N, M, D] = anchor + gain ⊙ r · u + r · u A B, u = h / rms(h), the anchored form of memory states h.

    memory, anchor: float[N, M, D]; gain: float[D]; r = embedding_rms: float[]; A, B: the last of the maps, none
    without. A state of zero stays zero.
    """
    state = memory.astype(mx.float32)
    unit = state * mx.rsqrt(mx.mean(state * state, axis=-1, keepdims=True) + 1e-6)
    placed = anchor.astype(mx.float32) + gain * embedding_rms * unit
    if maps is not None:
        placed = placed + embedding_rms * ((unit @ maps.a[-1]) @ maps.b[-1])
    return placed.astype(memory.dtype)


def other_documents(candidates: mx.array) -> mx.array:
    """Return int32[B, N]: for each example the documents of the one before it, repeated in turn to fill its row.

    candidates: int32[B, N], −1 after an example's last document. With [[0, 1, 2], [3, 4, −1]]:
    [[3, 4, 3], [0, 1, 2]]. Every prompt then gets memory, but of documents that it was not written for.
    """
    others = mx.roll(candidates, 1, 0)
    count = mx.maximum((others >= 0).sum(axis=-1, keepdims=True), 1)
    return mx.take_along_axis(others, mx.arange(candidates.shape[1])[None] % count, axis=1)
