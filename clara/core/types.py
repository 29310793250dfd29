"""What crosses function borders: axis letters, and the tuples that `mx.compile` can take apart.

Axes, used in every docstring: B batch, T decoder tokens, S document tokens, N documents or candidates, K selected
documents, M memory tokens, A answer positions, D hidden, R rank, V vocabulary. Masks are bool, True = keep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from clara.core.config import Layout

Adapter = dict[str, dict[str, mx.array]]
"""One LoRA adapter: module path → {"lora_a": float[in, R], "lora_b": float[R, out]}."""

Params = dict[str, Any]
"""The trained leaves: {"adapters": {name: Adapter}, "memory_embeddings": float[M, D]}.

Anchored memory adds "anchor_gain": float[D], its learned pooling "anchor_query": float[D], mapped pooling both and, for
each of the P places in a part of a document and for the state, "anchor_map_a": float[P + 1, D, R'] and "anchor_map_b":
float[P + 1, R', D].
"""

Term = tuple[mx.array, mx.array]
"""A loss before division: (sum, count), both float32 scalars."""


class Base(NamedTuple):
    """A frozen language model and what CLaRa adds beside it."""

    module: nn.Module
    """An mlx-lm model; never changed."""
    layout: Layout
    """Ids and counts of the special tokens."""
    special_embeddings: mx.array
    """float[2, D]: input embeddings of `<ENC>` and `<SEP>`, frozen; further rows are kept for exchange, not used."""
    embedding_rms: mx.array
    """float[]: root mean square of the embedding table; the scale of anchored memory."""
    head_rows: mx.array | None = None
    """float[X, D]: head rows of special tokens that a converted checkpoint brings; the softmax then runs over V + X."""
    head_size: int | None = None
    """Rows of the base's own head that the softmax runs over; None for all. A converted checkpoint may have fewer."""


class Documents(NamedTuple):
    """Tokenised documents, padded on the right."""

    tokens: mx.array
    """int32[N, S]: prefix, document, suffix, then padding with room for M memory tokens."""
    lengths: mx.array
    """int32[N]: tokens before the memory slots; 0 marks a filler row."""


class InBatch(NamedTuple):
    """A choice of each question among all documents of a batch, those of other questions included."""

    positives: mx.array
    """bool[B, U]: documents that hold the answer."""
    mask: mx.array
    """bool[B, U]: documents that are chosen among; not fillers, nor what answers the same question elsewhere."""


class Retrieval(NamedTuple):
    """What the questions of a batch choose by."""

    questions: Documents
    """The questions, framed like documents, one row an example."""
    positives: mx.array
    """bool[B, N]: candidates that hold the answer."""
    in_batch: InBatch | None = None
    """The choice with in-batch negatives, which the contrastive loss may be over."""


class Teacher(NamedTuple):
    """The rows in which the questions of a batch are asked of its documents as text, with the same answers."""

    tokens: mx.array
    """int32[B, T']: prompts and answers; T' is a length of their own."""
    target_index: mx.array
    """int32[B, A]: positions in these rows whose next token is that of the batch's `targets`."""
    mask: mx.array
    """bool[B, A]: False on padding, and where an example has no such row."""


class Batch(NamedTuple):
    """Everything one step reads, its randomness included."""

    documents: Documents | mx.array
    """The distinct documents, as tokens, or as memories that were computed before: float[U, M, D].

    Of a micro-batch with in-batch negatives, those of the whole batch.
    """
    candidates: mx.array
    """int32[B, N]: each example's documents, as rows of `documents`; −1 where it has fewer."""
    tokens: mx.array
    """int32[B, T]: prompts and answers; ids from `layout.first_slot` on stand for memory vectors (see `slot_index`)."""
    target_index: mx.array
    """int32[B, A]: decoder positions whose next token is an answer token."""
    targets: mx.array
    """int32[B, A]: those next tokens."""
    target_mask: mx.array
    """bool[B, A]: False on padding."""
    key: mx.array
    """uint32[2]: the key of this step's dropout."""
    retrieval: Retrieval | None = None
    """What the stages `retrieval` and `end_to_end` choose by."""
    teacher: Teacher | None = None
    """What a teacher reads whose next tokens `pretrain` and `instruct` learn to match."""

    @property
    def document_rows(self) -> int:
        """Rows of `documents`, fillers included; 0 where no example of the batch has a document."""
        return (self.documents if isinstance(self.documents, mx.array) else self.documents.tokens).shape[0]


class StepResult(NamedTuple):
    """What `train_step` returns; unpacks as `loss, metrics, grads`."""

    loss: mx.array
    metrics: dict[str, mx.array]
    grads: Params


class TrainState(NamedTuple):
    """All that changes during training."""

    params: Params
    optimizer_state: dict[str, Any]
    step: mx.array
    """int32[]: updates done."""


class Optimizer(NamedTuple):
    """An optimizer as two pure functions."""

    init: Callable[[Params], dict[str, Any]]
    update: Callable[[Params, dict[str, Any], Params], tuple[Params, dict[str, Any]]]
    """(grads, state, params) → (params, state)."""
