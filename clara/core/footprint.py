"""How much memory a training step takes at most, and how many layers to recompute so that it fits.

Arithmetic from shapes, checked against measured peaks (tests/core/test_footprint.py). What counts is what the backward
pass reads: of each linear layer of a block its input, once where several read the same, and its output, which is a
residual, a norm's input, or what attention and activations take; two more of the widest for the activation (its gate,
squashed and multiplied); the input of each norm beyond two; of attention the weights of all pairs of positions, which
only a fused backward pass would not keep: MLX has none on a CPU or on Metal.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from clara.core.bind import anatomy, own_shape, part_of, siblings
from clara.core.config import StepConfig
from clara.core.measure import measure_base
from clara.core.shard import CUT
from clara.core.types import Adapter

FLOAT32 = 4
"""Bytes of a trained parameter, and of a logit."""

HEAD_WIDTH = 64
"""Of an attention head, where a base does not say how many it has; few are narrower."""

LOGIT_COPIES, OTHER_LOGITS = 4, 1
"""Logits of a chunk: as the head gives them, as float32, their softmax, and their gradient; and of the other chunks."""

EDGE_COPIES = 8
"""States of a position outside the blocks: embeddings, with memory placed, before and after the last norm, read."""

READ_LOGITS = 6
"""Further logits of a chunk where a teacher is matched: its own, logarithms and probabilities of both, and products."""

MEMORY_COPIES = 4
"""Of each memory vector of a batch: as given, gathered, compared, and chosen."""


class Block(NamedTuple):
    """What one block makes of a position, as numbers."""

    inputs: int
    """Of its linear layers; an input that several read counts once."""
    outputs: int
    inner: int
    """The widest input."""
    linears: int
    """Its linear layers, each of which has a pair of LoRA matrices."""
    norms: int
    """Its norms beyond two, whose inputs are no residuals."""


class Shapes(NamedTuple):
    """What the memory of a step on a base depends on."""

    blocks: tuple[Block, ...]
    pairs: int
    """Numbers that a block keeps of a pair of positions: one for each head, two where scores are capped."""
    hidden: int
    vocabulary: int
    width: int
    """Bytes of a number of its states."""
    bytes: int
    """Of all its weights."""


class Load(NamedTuple):
    """A micro-batch, at its largest, and what is trained."""

    passes: tuple[tuple[int, int], ...]
    """(rows, positions) of each pass through the base that gradients run through, in any order."""
    answers: int
    """Decoder positions whose logits are computed."""
    memories: int
    """Memory vectors of its documents, each as often as an example has it."""
    trained: int
    """Trained parameters."""
    frozen: int
    """Further parameters that the step reads."""
    several: bool = False
    """Whether a step has several micro-batches, whose gradients are added up."""
    taught: tuple[int, int] | None = None
    """(rows, positions) of a teacher's pass, which no gradient runs through; None without a teacher."""


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a base; of one that is cut over processes those of this one's part.

    Raises ValueError for an architecture that cannot be bound.
    """
    size, parts = measure_base(module), anatomy(module)
    args = getattr(module, "args", None)
    heads = getattr(args, "num_attention_heads", None) or -(-size.hidden // HEAD_WIDTH)
    heads //= max((part.group.size() for part in module.modules() if isinstance(part, CUT)), default=1)
    capped = bool(getattr(args, "attn_logit_softcapping", None))
    own: list[dict[str, tuple[int, int]]] = [{} for _ in range(size.layers)]
    for path in size.linears:
        layer = int(path.removeprefix(f"{parts.layers}.").partition(".")[0])
        own[layer][path] = own_shape(part_of(module, path))
    blocks = [block_of(one, block) for one, block in zip(own, part_of(module, parts.layers), strict=True)]
    width = part_of(module, parts.embedding)(mx.array([0])).dtype.size
    return Shapes(tuple(blocks), heads * (1 + capped), size.hidden, size.vocabulary, width, size.bytes)


def block_of(linears: dict[str, tuple[int, int]], layer: nn.Module) -> Block:
    """Return what a block with these linear layers, {path: (in, out)}, makes of a position."""
    inputs = [linears[paths[0]][0] for paths in siblings(cast(Adapter, linears))]
    norms = sum(type(part).__name__.endswith("Norm") for part in layer.modules())
    outputs = sum(out for _, out in linears.values())
    return Block(sum(inputs), outputs, max(inputs, default=0), len(linears), max(norms - 2, 0))


def step_bytes(shapes: Shapes, config: StepConfig, load: Load, every: int) -> int:
    """Return the bytes that are in use at the peak of a training step, at most: of base, parameters and states.

    every: each every-th layer is recomputed, 0 for none. At the peak all that the backward pass has yet to read is
    there, and beside it the logits of a chunk, or what one layer's backward pass makes.
    """
    passes = [(rows, length) for rows, length in load.passes if rows]
    kept = sum(kept_bytes(shapes, config, one, every) for one in passes)
    layer = max((layer_bytes(shapes, config, one, every) for one in passes), default=0)
    chunk = min(config.compute.logits_chunk, load.answers)
    copies = LOGIT_COPIES * chunk + OTHER_LOGITS * (load.answers - chunk)
    logits = FLOAT32 * (copies + (READ_LOGITS * chunk if load.taught else 0)) * shapes.vocabulary
    edges = EDGE_COPIES * FLOAT32 * shapes.hidden * sum(rows * length for rows, length in passes)
    memories = MEMORY_COPIES * FLOAT32 * shapes.hidden * load.memories
    states = kept + max(layer, logits, read_bytes(shapes, config, load.taught)) + edges + memories
    return shapes.bytes + parameter_bytes(load, states)


def parameter_bytes(load: Load, states: int) -> int:
    """Return the bytes of parameters, optimizer and gradients, and of states, which are gone before an update.

    A trained parameter has two moments. In the backward pass it also has a copy as layers read it, and its gradient;
    in the update, when states are gone, the gradient twice (clipped), two steps on the way, and all three anew.
    """
    before = 2 * load.trained + (load.trained if load.several else 0)
    return FLOAT32 * (3 * load.trained + 2 * load.frozen) + max(states + FLOAT32 * before, 7 * FLOAT32 * load.trained)


def kept_bytes(shapes: Shapes, config: StepConfig, one: tuple[int, int], every: int) -> int:
    """Return the bytes that a pass over (rows, positions) keeps for its backward pass: recomputed layers little."""
    rows, length = one
    position = shapes.hidden * shapes.width
    return sum(
        rows * length * (position + (block.inputs if config.lora.dropout else 0))
        if every and i % every == 0
        else block_bytes(shapes, config, block, one)
        for i, block in enumerate(shapes.blocks)
    )


def block_bytes(shapes: Shapes, config: StepConfig, block: Block, one: tuple[int, int]) -> int:
    """Return the bytes that a block keeps of a pass over (rows, positions); with dropout also what was dropped."""
    rows, length = one
    numbers = block.inputs + block.outputs + 2 * block.inner + block.norms * shapes.hidden
    numbers += config.lora.rank * block.linears
    dropped = block.inputs if config.lora.dropout else 0
    return rows * length * (numbers * shapes.width + dropped) + pair_bytes(shapes, one)


def pair_bytes(shapes: Shapes, one: tuple[int, int]) -> int:
    """Return the bytes of attention's weights in one layer, for a pass over (rows, positions)."""
    rows, length = one
    return rows * shapes.pairs * length**2 * shapes.width


def layer_bytes(shapes: Shapes, config: StepConfig, one: tuple[int, int], every: int) -> int:
    """Return the bytes that the backward pass of one layer takes besides what is kept.

    That is about as much again as the layer keeps, with scores of attention and their gradient beside its weights; for
    a recomputed layer also what it would have kept.
    """
    largest = max((block_bytes(shapes, config, block, one) for block in shapes.blocks), default=0)
    return largest * (2 if every else 1) + 2 * pair_bytes(shapes, one)


def read_bytes(shapes: Shapes, config: StepConfig, one: tuple[int, int] | None) -> int:
    """Return the bytes that a pass over (rows, positions) takes which keeps nothing: those of its largest layer.

    They are what the layer would keep, its scores of attention, and the states before and after it.
    """
    if one is None:
        return 0
    largest = max((block_bytes(shapes, config, block, one) for block in shapes.blocks), default=0)
    edges = EDGE_COPIES * FLOAT32 * shapes.hidden * one[0] * one[1]
    return largest + pair_bytes(shapes, one) + edges


def recomputed_layers(shapes: Shapes, config: StepConfig, load: Load, limit: float) -> int:
    """Return how a step is to recompute layers so that it takes at most `limit` bytes: the cheapest way that fits.

    0 for none, n for every n-th, as few as fit; 1, for every layer, also where nothing fits.
    """
    ways = (0, *range(len(shapes.blocks), 0, -1))
    return next((every for every in ways if step_bytes(shapes, config, load, every) <= limit), 1)
