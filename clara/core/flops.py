"""How many floating-point operations a pass takes, and how many bytes it moves at least: arithmetic from shapes.

A multiplication and an addition count as two. Counted are the products of the blocks' linear layers, of attention
over the causal half, of adapters, and of the head where logits are computed; not norms, rotations, activations,
anchors, or what is computed a second time to save memory. The base is frozen: its weights have no gradient, so that a
linear layer's backward pass is one product, not two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from clara.core.bind import anatomy, part_of
from clara.core.config import StepConfig
from clara.core.measure import measure_base
from clara.core.types import Batch

TRAINED_BYTES = 32
"""Of a trained float32 parameter: it, its gradient and AdamW's two moments, each read once and written once."""


class Shape(NamedTuple):
    """What the cost of a base depends on."""

    weights: int
    """Sum of in · out over the linear layers of the blocks."""
    widths: int
    """Sum of in + out over them: an adapter has rank times as many parameters."""
    layers: int
    attention: int
    """Heads times the width of one."""
    cached: int
    """Numbers that one position leaves in one layer's cache: its key and its value."""
    hidden: int
    vocabulary: int
    block_bytes: int
    """Of the blocks as stored."""
    head_bytes: int
    """Of the embedding table as stored, which is that of the head."""


class Cost(NamedTuple):
    """What a piece of work takes at least."""

    flops: float
    bytes: float
    """Weights read, and parameters, their gradients and the optimizer's state read and written; no activations."""


def shape_of(module: nn.Module) -> Shape:
    """Return the shape of a base. Raises ValueError for an architecture that cannot be bound."""
    size, parts, args = measure_base(module), anatomy(module), getattr(module, "args", None)
    heads = getattr(args, "num_attention_heads", None) or 1
    width = getattr(args, "head_dim", None) or size.hidden // heads
    keys = getattr(args, "num_key_value_heads", None) or heads
    return Shape(
        sum(rows * columns for rows, columns in size.linears.values()),
        sum(rows + columns for rows, columns in size.linears.values()),
        size.layers,
        heads * width,
        2 * keys * width,
        size.hidden,
        size.vocabulary,
        stored_bytes(part_of(module, parts.layers)),
        stored_bytes(part_of(module, parts.embedding)),
    )


def stored_bytes(tree: Any) -> int:
    """Return the bytes of all arrays in a tree of modules."""
    return sum(leaf.nbytes for _, leaf in tree_flatten(tree) if isinstance(leaf, mx.array))


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    parts = list(costs)
    return Cost(sum(part.flops for part in parts), sum(part.bytes for part in parts))


def forward(shape: Shape, rows: int, length: int, rank: int = 0, logits: int = 0) -> Cost:
    """Return the cost of a causal pass over rows · length positions, with logits at `logits` of them.

    rank: of an adapter on every linear layer; 0 for none.
    """
    head = 2 * shape.hidden * shape.vocabulary * logits
    flops = linear_flops(shape, rows * length) + attention_flops(shape, rows, length) + head
    read = shape.block_bytes + (shape.head_bytes if logits else 0) + 4 * rank * shape.widths
    return Cost(flops + adapter_flops(shape, rows * length, rank), read)


def training(shape: Shape, rows: int, length: int, rank: int, logits: int = 0) -> Cost:
    """Return the cost of that pass, of its backward pass, and of one optimizer step on the adapter.

    Backward, a frozen product costs what it cost forward; attention's two products become four, and an adapter's,
    whose factors both have gradients, too.
    """
    head = 2 * shape.hidden * shape.vocabulary * logits
    frozen = linear_flops(shape, rows * length) + head
    learnt = attention_flops(shape, rows, length) + adapter_flops(shape, rows * length, rank)
    read = shape.block_bytes + (shape.head_bytes if logits else 0)
    return Cost(2 * frozen + 3 * learnt, 2 * read + TRAINED_BYTES * rank * shape.widths)


def decoding(shape: Shape, context: int, rank: int = 0, width: int = 2) -> Cost:
    """Return the cost of one more token after `context` others, whose keys and values have `width` bytes a number."""
    attention = 4 * shape.attention * (context + 1) * shape.layers
    head = 2 * shape.hidden * shape.vocabulary
    flops = linear_flops(shape, 1) + attention + head + adapter_flops(shape, 1, rank)
    cache = shape.cached * (context + 1) * shape.layers * width
    return Cost(flops, shape.block_bytes + shape.head_bytes + 4 * rank * shape.widths + cache)


def linear_flops(shape: Shape, positions: int) -> int:
    """Return the operations of the blocks' linear layers, forward."""
    return 2 * shape.weights * positions


def adapter_flops(shape: Shape, positions: int, rank: int) -> int:
    """Return the operations of one adapter, forward."""
    return 2 * rank * shape.widths * positions


def attention_flops(shape: Shape, rows: int, length: int) -> int:
    """Return the operations of causal attention, forward: two products over each pair of a position and one before."""
    pairs = length * (length + 1) // 2
    return 4 * shape.attention * pairs * rows * shape.layers


def stage_cost(shape: Shape, config: StepConfig, batch: Batch) -> Cost:
    """Return the cost of one training step of the configured stage with its optimizer, padding included."""
    rank, parts = config.lora.rank, []
    if not isinstance(batch.documents, mx.array):
        passed = training if config.trains_compressor else forward
        rows, length = batch.documents.tokens.shape
        parts.append(passed(shape, rows, length, rank))
    if batch.retrieval is not None:
        rows, length = batch.retrieval.questions.tokens.shape
        parts.append(training(shape, rows, length, rank))
    if config.loss.next_token_weight:
        rows, length = batch.tokens.shape
        parts.append(training(shape, rows, length, rank, logits=batch.target_index.size))
    return total(parts)
