"""Documents to memory: one causal pass of the base with the compressor adapter (arXiv 2511.18659, section 2.1)."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from clara.core.bind import anatomy, hidden_states, part_of
from clara.core.config import Layout, StepConfig
from clara.core.memory import (
    AnchorMaps,
    Chunks,
    anchor_memory,
    anchors,
    document_chunks,
    document_slots,
    learned_anchors,
    mapped_anchors,
    masked_mean,
    place_memory,
    read_memory,
)
from clara.core.types import Base, Documents, Params


class Compressed(NamedTuple):
    """What the compressor makes of N documents."""

    memory: mx.array
    """float[N, M, D]: the memory vectors, as the generator is given them."""
    memory_mean: mx.array
    """float32[N, D]: mean final hidden state over the memory tokens."""
    document_mean: mx.array
    """float32[N, D]: mean final hidden state over the document's own tokens, its frame included."""


def embed(base: Base, tokens: mx.array) -> mx.array:
    """Return float[B, T, D]: input embeddings of tokens: int32[B, T], `<ENC>` and `<SEP>` included.

    Ids of memory slots get some finite embedding, to be replaced by `place_memory`.
    """
    table = part_of(base.module, anatomy(base.module).embedding)
    size = base.layout.vocab_size
    own = table(mx.where(tokens < size, tokens, 0))
    special = base.special_embeddings[mx.clip(tokens - size, 0, base.special_embeddings.shape[0] - 1)]
    return mx.where((tokens < size)[..., None], own, special.astype(own.dtype))


def compress(
    base: Base,
    config: StepConfig,
    params: Params,
    documents: Documents,
    key: mx.array | None = None,
    adapter: str = "compressor",
) -> Compressed:
    """Return the memories of documents, with params["adapters"][adapter]; key: uint32[2] turns dropout on."""
    tokens, lengths = documents
    layout = base.layout
    slots = document_slots(lengths, layout.num_memory_tokens, tokens.shape[1])
    embeddings, inputs = embed(base, tokens), params["memory_embeddings"]
    chunks = text_chunks(layout, lengths, tokens.shape[1])
    if config.memory.anchored:
        anchor = anchors(embeddings, chunks)
        inputs, slots = inputs + anchor, offset_by_row(slots, layout.num_memory_tokens)
    hidden = hidden_states(
        base.module,
        place_memory(embeddings, inputs, slots),
        params["adapters"][adapter],
        scale=config.lora.scale,
        dropout=config.lora.dropout,
        key=key,
        grad_checkpoint=config.compute.recomputed,
        dequantize_rows=config.compute.dequantize_rows,
    )
    memory = read_memory(hidden, lengths, layout.num_memory_tokens)
    before = mx.arange(tokens.shape[1])[None] < lengths[:, None]
    means = masked_mean(memory, mx.ones(memory.shape[:2], dtype=mx.bool_)), masked_mean(hidden, before)
    if config.memory.anchor_pooling == "learned":
        anchor = learned_anchors(embeddings, hidden, params["anchor_query"], chunks)
    maps = AnchorMaps(params["anchor_map_a"], params["anchor_map_b"]) if config.memory.anchor_places else None
    if maps:
        anchor = mapped_anchors(embeddings, hidden, params["anchor_query"], maps, chunks)
    if config.memory.anchored:
        memory = anchor_memory(memory, anchor, params["anchor_gain"], base.embedding_rms, maps)
    return Compressed(memory, *means)


def text_chunks(layout: Layout, lengths: mx.array, width: int) -> Chunks:
    """Return the chunks of documents of lengths: int32[N] tokens in rows of `width`, their frames left out."""
    start, frame = len(layout.prefix), len(layout.prefix) + len(layout.suffix)
    count = mx.maximum(lengths - frame, 0)
    return document_chunks(mx.full(lengths.shape, start), count, layout.num_memory_tokens, width)


def offset_by_row(slots: mx.array, num_memory_tokens: int) -> mx.array:
    """Return int32[N, S]: slots: int32[N, S] of each row, counted through the memories of all rows; −1 stays."""
    rows = mx.arange(slots.shape[0])[:, None] * num_memory_tokens
    return mx.where(slots >= 0, slots + rows, -1)
