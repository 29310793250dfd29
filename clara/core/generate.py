"""The generator as a model that mlx-lm can decode with: memory slots are ids, so a prompt is plain token ids."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from clara.core.bind import bind
from clara.core.compress import embed
from clara.core.config import Layout, StepConfig
from clara.core.memory import place_memory, slot_index
from clara.core.types import Base, Params


def bind_generator(base: Base, config: StepConfig, params: Params, memory: mx.array) -> nn.Module:
    """Return the base with the generator adapter, whose embedding reads memory slots from memory: float[..., D].

    Id `layout.first_slot + i` stands for row i of the flattened memory. The model's logits cover the base's own
    vocabulary only, so no slot is ever generated. It works with mlx-lm's caches, samplers and batches.
    """
    first = base.layout.first_slot
    dtype = embed(base, mx.zeros((1, 1), dtype=mx.int32)).dtype
    return bind(
        base.module,
        tree_map(lambda leaf: leaf.astype(dtype), params["adapters"]["generator"]),  # once, not for every token
        scale=config.lora.scale,
        embed=lambda tokens: place_memory(embed(base, tokens), memory, slot_index(tokens, first)),
    )


def shift_slots(tokens: Sequence[int], layout: Layout, documents: int) -> list[int]:
    """Return a prompt's tokens with its memory slots counted on after those of `documents` others.

    Prompts that are decoded together read one memory, float[sum of K, M, D], in which each has its own rows.
    """
    shift = documents * layout.num_memory_tokens
    return [token + shift if token >= layout.first_slot else token for token in tokens]
