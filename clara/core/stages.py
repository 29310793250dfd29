"""The training stages, each a pure loss: (base, config, params, batch) → named terms (sum, count).

`pretrain` and `instruct` read every document of an example; `retrieval` and `end_to_end` choose among candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from clara.core.bind import head, hidden_states
from clara.core.compress import Compressed, compress, embed
from clara.core.config import CHOOSING, StepConfig
from clara.core.losses import alignment_loss, chunked_divergence, chunked_next_token_loss, contrastive_loss
from clara.core.memory import place_memory, slot_index
from clara.core.select import (
    Lens,
    pairwise_scores,
    ranking_terms,
    relevance_scores,
    select_memory,
    straight_through_top_k,
)
from clara.core.types import Base, Batch, Params, Retrieval, Teacher, Term

Terms = dict[str, Term]

LENS = ("relevance_center", "relevance_map")
"""The parameters of pooled relevance."""


def trained_leaves(config: StepConfig, params: Params, compresses: bool = True) -> tuple[Params, Params]:
    """Return (trained, frozen): params in two trees, as the stage has it.

    `pretrain` and `instruct` train the generator and the compressor, with all leaves beside the adapters (memory
    embeddings; gain, query and maps of anchors); `retrieval` the reasoner; `end_to_end` reasoner and generator; both
    also the lens of pooled relevance, and the compressor where `train_compressor` says so. compresses: False where
    documents are read as text, and no compressor is needed.
    """
    names = {"retrieval": {"reasoner"}, "end_to_end": {"reasoner", "generator"}}.get(config.stage, {"generator"})
    whole = config.trains_compressor and compresses
    names = names | {"compressor"} if whole else names
    adapters = params["adapters"]
    rest = {name: leaf for name, leaf in params.items() if name != "adapters"}
    own = {name for name in rest if (config.has_lens if name in LENS else whole)}
    trained = {"adapters": {name: leaf for name, leaf in adapters.items() if name in names}}
    frozen = {"adapters": {name: leaf for name, leaf in adapters.items() if name not in names}}
    trained |= {name: leaf for name, leaf in rest.items() if name in own}
    return trained, frozen | {name: leaf for name, leaf in rest.items() if name not in own}


def joined(first: Params, second: Params) -> Params:
    """Return two trees of parameters as one; where both have a leaf, the first one's."""
    return {**second, **first, "adapters": {**second.get("adapters", {}), **first["adapters"]}}


def stage_counts(config: StepConfig, batch: Batch) -> dict[str, mx.array]:
    """Return the count of every term of `stage_terms` whose weight is not zero, from the batch alone.

    Raises ValueError where the batch was collated for another stage.
    """
    counts = {"next_token": batch.target_mask.sum(), "alignment": read_documents(batch).sum()}
    if config.stage in CHOOSING:
        counts["contrastive"] = (choice_of(batch).positives & (batch.candidates >= 0)).any(axis=-1).sum()
    if config.loss.distillation_weight:
        counts["distillation"] = teacher_of(batch).mask.sum()
    return {name: counts[name].astype(mx.float32) for name, weight in config.loss.weights.items() if weight}


def stage_terms(base: Base, config: StepConfig, params: Params, batch: Batch, train: bool = True) -> Terms:
    """Return the terms of the configured stage. Terms of weight zero are not computed. train: apply dropout.

    Evaluation (train False) adds how the candidates rank, where the stage has any.
    """
    keys = mx.random.split(batch.key, 3) if train and config.lora.dropout else [None] * 3
    if config.stage in CHOOSING:
        return choosing_terms(base, config, params, batch, keys, train)
    return reading_terms(base, config, params, batch, keys)


def reading_terms(base: Base, config: StepConfig, params: Params, batch: Batch, keys: Any) -> Terms:
    """Return the terms of `pretrain` and `instruct`: compress the documents, place their memory, predict the answers.

    One document or several in a prompt, any number. keys: of the dropout in compressor, generator; None for none.
    Raises ValueError where the batch was collated for a choosing stage, whose slots are counted otherwise, or without
    the rows of a teacher that the loss wants.
    """
    if batch.retrieval is not None:
        raise ValueError(f"the batch was collated with top_k, but stage {config.stage} chooses nothing: wanted none")
    compressed = compress_documents(base, config, params, batch, keys[0])
    memory = gather_memory(compressed.memory, batch.candidates)
    terms = answer_terms(base, config, params, batch, memory, keys[1])
    if config.loss.alignment_weight:
        terms["alignment"] = documents_alignment(compressed, batch)
    return terms


def choosing_terms(base: Base, config: StepConfig, params: Params, batch: Batch, keys: Any, train: bool) -> Terms:
    """Return the terms of `retrieval` and `end_to_end`: score the candidates, choose, answer from the chosen.

    A frozen compressor gets neither gradient nor dropout. keys: of the dropout in compressor, generator, reasoner.
    """
    retrieval = choice_of(batch)
    mask = batch.candidates >= 0
    compressed = compress_documents(base, config, params, batch, keys[0])
    memory = gather_memory(compressed.memory, batch.candidates)
    query = compress(base, config, params, retrieval.questions, keys[2], adapter="reasoner").memory
    scores = relevance_scores(query, memory, config.retrieval.relevance, lens_of(params))
    terms: Terms = {}
    if config.loss.next_token_weight:
        how = config.retrieval
        weights, indices = straight_through_top_k(scores, mask, how.top_k, how.temperature, how.taken_share)
        chosen = select_memory(weights, indices, memory)
        terms |= answer_terms(base, config, params, batch, chosen, keys[1])
    if config.loss.alignment_weight:
        terms["alignment"] = documents_alignment(compressed, batch)
    if config.loss.contrastive_weight:
        terms["contrastive"] = choice_loss(config, params, batch, query, compressed.memory, scores)
    return terms if train else terms | ranking_terms(scores, retrieval.positives, mask, config.retrieval.top_k)


def lens_of(params: Params) -> Lens | None:
    """Return what mean memories are compared through; None where the parameters have none."""
    return Lens(*(params[name] for name in LENS)) if LENS[0] in params else None


def choice_loss(
    config: StepConfig, params: Params, batch: Batch, query: mx.array, memory: mx.array, scores: mx.array
) -> Term:
    """Return the contrastive loss over each question's candidates, or, with `in_batch_negatives`, all documents.

    query: float[B, M, D]; memory: float[U, M, D], of the documents; scores: float32[B, N], of the candidates. Raises
    ValueError where the batch was collated without what `in_batch_negatives` wants.
    """
    how, retrieval = config.retrieval, choice_of(batch)
    if not how.in_batch_negatives:
        return contrastive_loss(scores, retrieval.positives, batch.candidates >= 0, how.temperature)
    if retrieval.in_batch is None:
        raise ValueError("in_batch_negatives: collate the batch with a table of the documents to choose among")
    wide = pairwise_scores(query, memory, how.relevance, lens_of(params))
    return contrastive_loss(wide, *retrieval.in_batch, how.temperature)


def choice_of(batch: Batch) -> Retrieval:
    """Return what the batch's questions choose by. Raises ValueError where it was collated for another stage."""
    if batch.retrieval is None:
        raise ValueError("the batch has no questions to choose by: collate it with top_k, as a choosing stage wants it")
    return batch.retrieval


def compress_documents(
    base: Base, config: StepConfig, params: Params, batch: Batch, key: mx.array | None
) -> Compressed:
    """Return the memories of a batch's documents, computed unless it carries them; of a frozen compressor, constants.

    Nothing is computed for a batch without documents, as of one that reads them as text.
    Raises ValueError where the batch carries memories but the alignment loss wants the states behind them.
    """
    none = mx.zeros((0,))
    if not batch.document_rows:
        return Compressed(mx.zeros((0, base.layout.num_memory_tokens, base.special_embeddings.shape[1])), none, none)
    if isinstance(batch.documents, mx.array):
        if config.loss.alignment_weight:
            raise ValueError("alignment_weight is not 0, but the batch carries memories: wanted documents as tokens")
        return Compressed(batch.documents, none, none)
    if config.trains_compressor:
        return compress(base, config, params, batch.documents, key)
    done = compress(base, config, params, batch.documents)
    return Compressed(*(mx.stop_gradient(part) for part in done))


def gather_memory(memory: mx.array, candidates: mx.array) -> mx.array:
    """Return float[B, N, M, D]: memory: float[U, M, D] at candidates: int32[B, N]; zero where that is −1."""
    if memory.shape[0] == 0:
        return mx.zeros((*candidates.shape, *memory.shape[1:]), dtype=memory.dtype)
    return mx.where((candidates >= 0)[..., None, None], memory[mx.maximum(candidates, 0)], 0)


def documents_alignment(compressed: Compressed, batch: Batch) -> Term:
    """Return the alignment loss over every document of every example."""
    rows = mx.maximum(batch.candidates, 0)
    return alignment_loss(compressed.memory_mean[rows], compressed.document_mean[rows], read_documents(batch))


def read_documents(batch: Batch) -> mx.array:
    """Return bool[B, N]: which candidates are documents, and not empty ones, which have no states to align with."""
    there = batch.candidates >= 0
    if isinstance(batch.documents, mx.array) or not batch.document_rows:
        return there
    return there & (batch.documents.lengths[mx.maximum(batch.candidates, 0)] > 0)


def answer_terms(
    base: Base, config: StepConfig, params: Params, batch: Batch, memory: mx.array, key: mx.array | None
) -> Terms:
    """Return the terms of the generator's answers, `next_token` and `distillation`, of weights that are not zero.

    Its slots are filled from memory: float[B, K, M, D]. The teacher is params["adapters"]["teacher"] on the base, or
    the base itself where there is none.
    """
    loss, chunk, terms = config.loss, config.compute.logits_chunk, Terms()
    if not (loss.next_token_weight or loss.distillation_weight):
        return terms
    states, logits = answer_states(base, config, params, batch, memory, key), answer_head(base)
    if loss.next_token_weight:
        terms["next_token"] = chunked_next_token_loss(logits, states, batch.targets, batch.target_mask, chunk)
    if loss.distillation_weight:
        taught = teacher_states(base, config, params, batch)
        terms["distillation"] = chunked_divergence(logits, states, taught, teacher_of(batch).mask, chunk)
    return terms


def answer_states(
    base: Base, config: StepConfig, params: Params, batch: Batch, memory: mx.array, key: mx.array | None
) -> mx.array:
    """Return float[B, A, D]: the generator's states before each answer token, its slots filled from memory."""
    slots = slot_index(batch.tokens, base.layout.first_slot)
    hidden = hidden_states(
        base.module,
        place_memory(embed(base, batch.tokens), memory, slots),
        params["adapters"]["generator"],
        scale=config.lora.scale,
        dropout=config.lora.dropout,
        key=key,
        grad_checkpoint=config.compute.recomputed,
        dequantize_rows=config.compute.dequantize_rows,
    )
    return mx.take_along_axis(hidden, batch.target_index[..., None], axis=1)


def teacher_states(base: Base, config: StepConfig, params: Params, batch: Batch) -> mx.array:
    """Return float[B, A, D]: the teacher's states before each answer token, constants, without dropout."""
    rows = teacher_of(batch)
    hidden = hidden_states(
        base.module,
        embed(base, rows.tokens),
        params["adapters"].get("teacher"),
        scale=config.lora.scale,
        dequantize_rows=config.compute.dequantize_rows,
    )
    return mx.stop_gradient(mx.take_along_axis(hidden, rows.target_index[..., None], axis=1))


def teacher_of(batch: Batch) -> Teacher:
    """Return the rows that a batch's teacher reads. Raises ValueError where it was collated without them."""
    if batch.teacher is None:
        raise ValueError(
            "distillation_weight is not 0, but the batch has no rows for a teacher: collate examples with taught rows"
        )
    return batch.teacher


def answer_head(base: Base) -> Callable[[mx.array], mx.array]:
    """Return float[1, n, D] → float[1, n, V]: the logits that answers are learnt from, with a checkpoint's own rows."""
    own = head(base.module)

    def logits(hidden: mx.array) -> mx.array:
        rows = own(hidden)[..., : base.head_size]
        if base.head_rows is None:
            return rows
        return mx.concatenate([rows, hidden @ base.head_rows.astype(hidden.dtype).T], axis=-1)

    return logits
