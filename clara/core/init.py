"""Start values: the special tokens' embeddings and the trained parameters of a new run."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from clara.core.bind import adapted_linears, anatomy, part_of
from clara.core.config import Layout, MemoryConfig, StepConfig
from clara.core.lora import init_adapter
from clara.core.types import Base, Params

SAMPLED_ROWS = 4096
"""Rows of the embedding table that its statistics are taken from, evenly spaced: enough, and quick on any table."""


def table_rows(module: nn.Module) -> mx.array:
    """Return float32[rows, D]: evenly spaced rows of the base's embedding table, dequantised."""
    table = part_of(module, anatomy(module).embedding)
    count = table.weight.shape[0]
    index = mx.arange(0, count, max(count // SAMPLED_ROWS, 1))
    return table(index).astype(mx.float32)


def init_base(module: nn.Module, layout: Layout, seed: int = 0) -> Base:
    """Return a base with new `<ENC>` and `<SEP>` embeddings, drawn from the table's mean and deviation.

    seed: the special embeddings are a function of it and of the table, so that they need not be stored.
    """
    rows = table_rows(module)
    rms = mx.sqrt(mx.mean(mx.square(rows)))
    return Base(module, layout, like_rows(mx.random.key(seed), rows, 2), rms)


def like_rows(key: mx.array, rows: mx.array, count: int) -> mx.array:
    """Return float32[count, D]: normal draws with the mean and standard deviation of rows: float32[n, D], by column."""
    mean, deviation = rows.mean(axis=0), mx.sqrt(rows.var(axis=0))
    return mean + deviation * mx.random.normal((count, rows.shape[1]), key=key)


def init_params(
    base: Base, config: StepConfig, seed: int, adapters: Sequence[str] = ("compressor", "generator")
) -> Params:
    """Return the trained leaves of a new run, float32: adapters that change nothing yet, and memory embeddings."""
    *keys, last = mx.random.split(mx.random.key(seed), len(adapters) + 1)
    shapes = adapted_linears(base.module)
    params: Params = {
        "adapters": {name: init_adapter(keys[i], shapes, config.lora.rank) for i, name in enumerate(adapters)},
        "memory_embeddings": like_rows(last, table_rows(base.module), config.memory.num_memory_tokens),
    }
    if config.memory.anchored:
        params["anchor_gain"] = mx.full((base.special_embeddings.shape[1],), config.memory.anchor_gain)
    return add_pooling(params, config.memory, seed)


def add_pooling(params: Params, memory: MemoryConfig, seed: int) -> Params:
    """Return params with what their anchors are pooled by: what they have, or a start that changes nothing yet.

    seed: of the run; the first factors of maps are drawn as those of adapters are, with a key of their own.
    """
    size, rank, count = params["memory_embeddings"].shape[1], memory.anchor_map_rank, memory.anchor_places + 1
    new: Params = {} if memory.anchor_pooling == "mean" else {"anchor_query": mx.zeros((size,))}
    if memory.anchor_pooling == "mapped":
        bound, key = size**-0.5, mx.random.split(mx.random.key(seed))[0]
        new["anchor_map_a"] = mx.random.uniform(-bound, bound, (count, size, rank), key=key)
        new["anchor_map_b"] = mx.zeros((count, rank, size))
    return {**new, **params}


def resample_memory(params: Params, memory: MemoryConfig) -> Params:
    """Return params for another compression rate: the mean of rows that become one, copies of one that several.

    So training can begin at a low compression rate, which a generator learns to read sooner, and go on at a higher. A
    place in a longer or shorter part takes the map of the place as far along in it.
    """
    rows = params["memory_embeddings"]
    before, after = rows.shape[0], memory.num_memory_tokens
    if before == after:
        return params
    first = [j * before // after for j in range(after)]
    last = [max((j + 1) * before // after, first[j] + 1) for j in range(after)]
    own = {"memory_embeddings": mx.stack([rows[a:b].mean(axis=0) for a, b in zip(first, last, strict=True)])}
    if "anchor_map_a" in params:
        places = memory.anchor_places
        had = params["anchor_map_a"].shape[0] - 1
        index = mx.array([*(place * had // places for place in range(places)), had])
        own |= {name: params[name][index] for name in ("anchor_map_a", "anchor_map_b")}
    return {**params, **own}


def add_lens(params: Params) -> Params:
    """Return params with what mean memories are compared through: what they have, or an identity around zero."""
    if "relevance_map" in params:
        return params
    size = params["memory_embeddings"].shape[1]
    return {**params, "relevance_center": mx.zeros((size,)), "relevance_map": mx.eye(size)}


def add_reasoner(params: Params) -> Params:
    """Return params with a reasoner: the one they have, or a copy of the compressor (arXiv 2511.18659, section 2.2)."""
    adapters = params["adapters"]
    if "reasoner" in adapters:
        return params
    return {**params, "adapters": {**adapters, "reasoner": adapters["compressor"]}}
