"""What a base is: its size, how it is stored, and which of its layers adapters go on."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from clara.core.bind import EMBEDDINGS, LINEARS, adapted_linears, anatomy, linear_shape, part_of


class Size(NamedTuple):
    """How large a base is."""

    parameters: int
    bytes: int
    layers: int
    hidden: int
    vocabulary: int
    """Rows of the embedding table."""
    linears: dict[str, tuple[int, int]]
    """(in, out) of the linear layers that adapters go on, by path."""


def measure_base(module: nn.Module) -> Size:
    """Return the size of a base; quantised weights count as the parameters that they stand for.

    Raises ValueError for an architecture that cannot be bound.
    """
    parts = anatomy(module)
    table = part_of(module, parts.embedding)
    weights = [part for _, part in module.named_modules() if isinstance(part, (*LINEARS, *EMBEDDINGS))]
    names = ("weight", "scales", "biases")
    counted = {id(part[name]) for part in weights for name in names if name in part}
    leaves = [leaf for _, leaf in tree_flatten(module.parameters())]
    return Size(
        sum(rows * columns for rows, columns in map(linear_shape, weights))
        + sum(leaf.size for leaf in leaves if id(leaf) not in counted),
        sum(leaf.nbytes for leaf in leaves),
        len(part_of(module, parts.layers)),
        table(mx.array([0])).shape[-1],
        table.weight.shape[0],
        adapted_linears(module),
    )


def storage_formats(module: nn.Module) -> tuple[str, ...]:
    """Return how linear layers and embeddings are stored, such as "bfloat16" or "4 bits, groups of 64, affine"."""
    parts = [part for _, part in module.named_modules() if isinstance(part, (*LINEARS, *EMBEDDINGS))]
    return tuple(
        sorted(
            {
                f"{part.bits} bits, groups of {part.group_size}, {getattr(part, 'mode', 'affine')}"
                if hasattr(part, "bits")
                else str(part.weight.dtype).removeprefix("mlx.core.")
                for part in parts
            }
        )
    )
