"""Trained leaves as a few long vectors: one cast, one norm, one optimizer step and one message for hundreds of arrays.

A small base has some hundred adapter matrices; what is done to each of them alone costs more time than all products of
a step. Packed, they are {"lora_a", "lora_b", "anchor", "other"}: float32 vectors, whose parts are views at no cost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from clara.core.types import Params

ADAPTERS = ("lora_a", "lora_b")
ANCHOR, OTHER = "anchor", "other"
ANCHORS = ("anchor_gain", "anchor_query", "anchor_map_a", "anchor_map_b")
"""Leaves that share a vector, since they may be trained at a rate of their own."""


class Packing(NamedTuple):
    """Where each leaf is in its vector."""

    numbers: Params
    """The tree of leaves, each as its number in the order of `tree_flatten`."""
    shapes: tuple[tuple[int, ...], ...]
    """Of each leaf."""
    groups: dict[str, tuple[int, ...]]
    """The numbers of the leaves in each vector, in order."""


def packing_of(params: Params) -> Packing:
    """Return how a tree of leaves is packed: all `lora_a` in one vector, all `lora_b`, the anchors', and the others."""
    leaves = tree_flatten(params)
    kinds = [group_of(name.rpartition(".")[2]) for name, _ in leaves]
    groups = {group: tuple(i for i, kind in enumerate(kinds) if kind == group) for group in (*ADAPTERS, ANCHOR, OTHER)}
    number = itertools.count()
    return Packing(
        tree_map(lambda _: next(number), params),
        tuple(tuple(leaf.shape) for _, leaf in leaves),
        {group: members for group, members in groups.items() if members},
    )


def group_of(name: str) -> str:
    """Return the vector that a leaf of this name goes into."""
    return name if name in ADAPTERS else ANCHOR if name in ANCHORS else OTHER


def pack(packing: Packing, params: Params) -> dict[str, mx.array]:
    """Return the leaves of a tree as vectors: float32[P] by group."""
    leaves = [leaf.reshape(-1) for _, leaf in tree_flatten(params)]
    return {group: mx.concatenate([leaves[i] for i in members]) for group, members in packing.groups.items()}


def unpack(packing: Packing, packed: dict[str, mx.array], dtype: mx.Dtype | None = None, scale: float = 1.0) -> Params:
    """Return the tree of leaves as views into the vectors.

    dtype: the adapters' type, cast vector by vector; theirs is kept without one. scale: multiplies every `lora_b`.
    """
    leaves: dict[int, mx.array] = {}
    for group, members in packing.groups.items():
        vector = packed[group]
        vector = vector * scale if group == "lora_b" and scale != 1 else vector
        vector = vector.astype(dtype) if dtype is not None and group in ADAPTERS else vector
        leaves |= dict(zip(members, parts_of(vector, [packing.shapes[i] for i in members]), strict=True))
    return tree_map(lambda number: leaves[number], packing.numbers)  # type: ignore[no-any-return]


def parts_of(vector: mx.array, shapes: Sequence[tuple[int, ...]]) -> Sequence[mx.array]:
    """Return a vector's consecutive parts in the given shapes.

    Their gradient is put together once. That of slices would be one vector of zeros, and one sum, for each part.
    """
    ends = list(itertools.accumulate(map(math.prod, shapes)))

    @mx.custom_function
    def cut(vector: mx.array) -> list[mx.array]:
        parts = mx.split(vector, ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    @cut.vjp
    def cut_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return mx.concatenate([grad.reshape(-1) for grad in cotangents])

    return cast(Sequence[mx.array], cut(vector))


def pack_state(packing: Packing, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state over the tree of leaves as its state over their vectors.

    Each leaf's entry is a dict such as {"m", "v"}; entries that belong to no leaf, such as `step`, stay as they are.
    """
    trees = {name: value for name, value in state.items() if name in packing.numbers}
    kinds = sorted({name.rpartition(".")[2] for name, _ in tree_flatten(trees)})
    vectors = {kind: pack(packing, entry_of(packing.numbers, trees, kind)) for kind in kinds}
    rest = {name: value for name, value in state.items() if name not in packing.numbers}
    return rest | {group: {kind: vectors[kind][group] for kind in kinds} for group in packing.groups}


def unpack_state(packing: Packing, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state over vectors as its state over the tree of leaves: the inverse of `pack_state`."""
    rest = {name: value for name, value in state.items() if name not in packing.groups}
    kinds = list(state[next(iter(packing.groups))])
    trees = [unpack(packing, {group: state[group][kind] for group in packing.groups}) for kind in kinds]
    joined: Params = tree_map(lambda *leaves: dict(zip(kinds, leaves, strict=True)), *trees)
    return rest | joined


def entry_of(numbers: Params, state: Params, kind: str) -> Params:
    """Return, in the shape of `numbers`, one kind of entry of every leaf's state."""
    if not isinstance(numbers, dict):
        return state[kind]  # type: ignore[no-any-return]
    return {name: entry_of(below, state[name], kind) for name, below in numbers.items()}
