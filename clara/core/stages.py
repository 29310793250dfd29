"""The training stages, each a pure loss: (base, config, params, batch) → named terms (sum, count)."""

from __future__ import annotations

import mlx.core as mx

from clara.core.bind import head, hidden_states
from clara.core.compress import compress, embed
from clara.core.config import StepConfig
from clara.core.losses import alignment_loss, chunked_next_token_loss
from clara.core.memory import place_memory, slot_index
from clara.core.types import Base, Batch, Params, Term


def adapter_names() -> tuple[str, ...]:
    """Return the adapters that `pretrain` trains."""
    return ("compressor", "generator")


def pretrain_counts(config: StepConfig, batch: Batch) -> dict[str, mx.array]:
    """Return the count of every term of `pretrain_terms` whose weight is not zero, from the batch alone."""
    counts = {}
    if config.loss.next_token_weight:
        counts["next_token"] = batch.target_mask.sum().astype(mx.float32)
    if config.loss.alignment_weight:
        counts["alignment"] = (batch.documents.lengths > 0).sum().astype(mx.float32)
    return counts


def pretrain_terms(base: Base, config: StepConfig, params: Params, batch: Batch, train: bool = True) -> dict[str, Term]:
    """Return the terms of stage `pretrain`: compress the documents, place their memory, predict the answers.

    One document or several in a prompt, any number. Terms of weight zero are not computed. train: apply dropout.
    """
    keys = mx.random.split(batch.key, 2) if train and config.lora.dropout else (None, None)
    compressed = compress(base, config, params, batch.documents, keys[0])
    terms: dict[str, Term] = {}
    if config.loss.next_token_weight:
        slots = slot_index(batch.tokens, base.layout.first_slot)
        embeddings = place_memory(embed(base, batch.tokens), compressed.memory, slots)
        terms["next_token"] = answer_loss(base, config, params, batch, embeddings, keys[1])
    if config.loss.alignment_weight:
        mask = batch.documents.lengths > 0
        terms["alignment"] = alignment_loss(compressed.memory_mean, compressed.document_mean, mask)
    return terms


def answer_loss(
    base: Base, config: StepConfig, params: Params, batch: Batch, embeddings: mx.array, key: mx.array | None
) -> Term:
    """Return the generator's next-token loss over the answer positions of embeddings: float[B, T, D]."""
    hidden = hidden_states(
        base.module,
        embeddings,
        params["adapters"]["generator"],
        scale=config.lora.scale,
        dropout=config.lora.dropout,
        key=key,
        grad_checkpoint=config.compute.grad_checkpoint,
    )
    hidden = mx.take_along_axis(hidden, batch.target_index[..., None], axis=1)
    own = head(base.module)

    def logits(hidden: mx.array) -> mx.array:
        if base.head_rows is None:
            return own(hidden)
        return mx.concatenate([own(hidden), hidden @ base.head_rows.astype(hidden.dtype).T], axis=-1)

    return chunked_next_token_loss(logits, hidden, batch.targets, batch.target_mask, config.compute.logits_chunk)
