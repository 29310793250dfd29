"""The compressor's pass: what is placed, what is read, and what does not leak from row to row."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from tiny import HIDDEN, MEMORY_TOKENS, VOCABULARY, as_numpy, assert_close, tiny_base, tiny_config, tiny_params

from clara.core.bind import hidden_states
from clara.core.collate import frame_document, pad
from clara.core.compress import compress, embed, offset_by_row
from clara.core.config import MemoryConfig, StepConfig
from clara.core.init import init_params
from clara.core.types import Documents


def documents(base, lengths: tuple[int, ...], width: int = 24) -> Documents:
    rng = np.random.default_rng(3)
    rows = [frame_document(rng.integers(3, VOCABULARY, n).tolist(), base.layout, 12) for n in lengths]
    return Documents(pad(rows, len(rows), width), mx.array([len(row) for row in rows]))


def test_embed_reads_the_table_below_its_size_and_the_special_rows_above() -> None:
    base = tiny_base()
    got = embed(base, mx.array([[5, VOCABULARY, VOCABULARY + 1]]))
    assert_close(got[0, 0], base.module.model.embed_tokens.weight[5], 0)
    assert_close(got[0, 1:], base.special_embeddings, 0)


def test_offset_by_row_counts_slots_through_all_rows() -> None:
    assert offset_by_row(mx.array([[-1, 0, 1], [0, 1, -1]]), 2).tolist() == [[-1, 0, 1], [2, 3, -1]]


def test_memory_is_the_last_states_of_document_and_memory_tokens() -> None:
    base, config = tiny_base(), tiny_config()
    params = tiny_params(base, config)
    given = documents(base, (7,))
    length = given.lengths.item()
    inputs = mx.concatenate([embed(base, given.tokens[:, :length]), params["memory_embeddings"][None]], axis=1)
    states = hidden_states(base.module, inputs, params["adapters"]["compressor"], scale=config.lora.scale)
    compressed = compress(base, config, params, given)
    assert_close(compressed.memory, states[:, length:], 1e-5)
    assert_close(compressed.memory_mean, states[:, length:].mean(axis=1), 1e-5)
    assert_close(compressed.document_mean, states[:, :length].mean(axis=1), 1e-5)


@pytest.mark.parametrize("anchored", [False, True])
def test_a_document_alone_and_among_others_has_the_same_memory(anchored: bool) -> None:
    base, config = tiny_base(), tiny_config(anchored=anchored)
    params = tiny_params(base, config)
    together = documents(base, (3, 12, 7), width=40)
    memory = compress(base, config, params, together).memory
    for i, length in enumerate(together.lengths.tolist()):
        alone = Documents(together.tokens[i : i + 1, : length + MEMORY_TOKENS], together.lengths[i : i + 1])
        assert_close(memory[i], compress(base, config, params, alone).memory[0], 1e-5)


@pytest.mark.parametrize("anchored", [False, True])
def test_a_filler_row_is_finite(anchored: bool) -> None:
    base, config = tiny_base(), tiny_config(anchored=anchored)
    filler = Documents(mx.zeros((1, 8), dtype=mx.int32), mx.array([0]))
    memory = compress(base, config, tiny_params(base, config), filler).memory
    assert memory.shape == (1, MEMORY_TOKENS, HIDDEN)
    assert mx.isfinite(memory).all().item()


def test_anchors_without_gain_are_the_mean_embeddings_of_the_text_between_its_frame() -> None:
    base, config = tiny_base(), tiny_config(anchored=True)
    params = tiny_params(base, config) | {"anchor_gain": mx.zeros((HIDDEN,))}
    given = documents(base, (12,))
    text = embed(base, given.tokens)[0, 2:14]
    assert_close(compress(base, config, params, given).memory[0], text.reshape(MEMORY_TOKENS, 3, -1).mean(axis=1), 1e-5)


LEARNED = tiny_config(anchored=True, anchor_pooling="learned")
MAPPED = tiny_config(anchored=True, anchor_pooling="mapped")


def test_learned_anchors_are_pooled_by_the_states_of_a_pass_with_mean_anchors() -> None:
    base = tiny_base()
    params = tiny_params(base, LEARNED)
    given = documents(base, (12,))
    length = given.lengths.item()
    own = embed(base, given.tokens[:, :length])
    inputs = params["memory_embeddings"] + own[0, 2:14].reshape(MEMORY_TOKENS, 3, -1).mean(axis=1)
    row = mx.concatenate([own, inputs[None]], axis=1)
    states = hidden_states(base.module, row, params["adapters"]["compressor"], scale=LEARNED.lora.scale)
    hidden, table, query = (as_numpy(each) for each in (states[0], own[0], params["anchor_query"]))
    weights = np.exp(hidden[2:14] @ query).reshape(MEMORY_TOKENS, 3, 1)
    anchor = (weights * table[2:14].reshape(MEMORY_TOKENS, 3, -1)).sum(axis=1) / weights.sum(axis=1)
    state = hidden[length:]
    unit = state / np.sqrt((state**2).mean(axis=-1, keepdims=True) + 1e-6)
    expected = anchor + as_numpy(params["anchor_gain"]) * base.embedding_rms.item() * unit
    assert_close(compress(base, LEARNED, params, given).memory[0], expected, 1e-5)


def test_learned_pooling_starts_as_the_mean() -> None:
    base, mean = tiny_base(), tiny_config(anchored=True)
    query = init_params(base, LEARNED, seed=0)["anchor_query"]
    assert_close(query, mx.zeros((HIDDEN,)), 0)
    assert "anchor_query" not in init_params(base, mean, seed=0)
    params, given = tiny_params(base, mean), documents(base, (3, 12, 0), width=40)
    expected = compress(base, mean, params, given).memory
    start = params | {"anchor_query": query}
    assert_close(compress(base, LEARNED, start, given).memory, expected, 1e-6)
    grads = mx.grad(lambda p: mx.square(compress(base, LEARNED, p, given).memory).sum())(start)
    assert mx.abs(grads["anchor_query"]).min().item() > 0, "it could never leave its start"


@pytest.mark.parametrize("config", [LEARNED, MAPPED], ids=["learned", "mapped"])
def test_pooling_knows_no_other_row_and_stays_finite_in_a_filler_row(config: StepConfig) -> None:
    base = tiny_base()
    params, together = tiny_params(base, config), documents(base, (3, 12), width=40)
    memory = compress(base, config, params, together).memory
    alone = Documents(together.tokens[:1, : 6 + MEMORY_TOKENS], together.lengths[:1])
    assert_close(memory[0], compress(base, config, params, alone).memory[0], 1e-5)
    filler = Documents(mx.zeros((1, 8), dtype=mx.int32), mx.array([0]))
    grads = mx.grad(lambda p: compress(base, config, p, filler).memory.sum())(params)
    assert mx.isfinite(grads["anchor_query"]).all().item()


@pytest.mark.parametrize("pooling", ["learned", "mapped"])
def test_pooling_that_is_learnt_needs_anchors(pooling: Literal["learned", "mapped"]) -> None:
    with pytest.raises(ValueError, match=f"anchor_pooling {pooling}: memory has no anchors to pool; wanted anchored"):
        MemoryConfig(anchor_pooling=pooling)


def test_mapped_pooling_is_learned_pooling_of_embeddings_and_states_that_took_their_maps() -> None:
    base, given = tiny_base(), documents(tiny_base(), (12,))
    params = tiny_params(base, MAPPED)
    expected = as_numpy(compress(base, without_maps(MAPPED), params, given).memory[0])
    length, own = given.lengths.item(), embed(base, given.tokens)
    inputs = params["memory_embeddings"] + own[0, 2:14].reshape(MEMORY_TOKENS, 3, -1).mean(axis=1)
    row = mx.concatenate([own[:, :length], inputs[None]], axis=1)
    states = as_numpy(hidden_states(base.module, row, params["adapters"]["compressor"], scale=MAPPED.lora.scale))[0]
    weights = np.exp(states[2:14] @ as_numpy(params["anchor_query"])).reshape(MEMORY_TOKENS, 3)
    weights = weights / weights.sum(axis=1, keepdims=True)
    maps = as_numpy(params["anchor_map_a"]) @ as_numpy(params["anchor_map_b"])
    text = as_numpy(own)[0, 2:14].reshape(MEMORY_TOKENS, 3, -1)
    for place in range(3):
        expected = expected + weights[:, place, None] * (text[:, place] @ maps[place])
    unit = states[length:] / np.sqrt((states[length:] ** 2).mean(axis=-1, keepdims=True) + 1e-6)
    expected = expected + base.embedding_rms.item() * unit @ maps[-1]
    assert_close(compress(base, MAPPED, params, given).memory[0], expected, 1e-5)


def test_mapped_pooling_starts_as_the_mean_and_can_leave_it() -> None:
    base, mean, given = tiny_base(), tiny_config(anchored=True), documents(tiny_base(), (3, 12, 0), width=40)
    new = {name: leaf for name, leaf in init_params(base, MAPPED, seed=0).items() if name.startswith("anchor_")}
    places = MAPPED.memory.anchor_places
    assert new["anchor_map_a"].shape == (places + 1, HIDDEN, 3) and new["anchor_map_b"].shape == (places + 1, 3, HIDDEN)
    params = tiny_params(base, mean)
    start = new | params
    assert_close(compress(base, MAPPED, start, given).memory, compress(base, mean, params, given).memory, 1e-6)
    grads = mx.grad(lambda p: mx.square(compress(base, MAPPED, p, given).memory).sum())(start)
    assert mx.abs(grads["anchor_map_b"][[0, 1, 2, -1]]).min().item() > 0, "they could never leave their start"


def text_of(count: int, memory: int) -> Documents:
    """Return one framed document of so many tokens, however many it may have, with room for its memory tokens."""
    tokens = [VOCABULARY, 1, *range(3, 3 + count), 2, *[0] * memory]
    return Documents(mx.array([tokens], dtype=mx.int32), mx.array([count + 3]))


def without_maps(config: StepConfig) -> StepConfig:
    """Return the configuration with anchors that are weighed alone."""
    return msgspec.structs.replace(config, memory=msgspec.structs.replace(config.memory, anchor_pooling="learned"))


@pytest.mark.parametrize(("longest", "places"), [(12, 3), (14, 4), (15, 3)])
def test_a_document_of_the_greatest_length_has_a_map_for_each_of_its_places(longest: int, places: int) -> None:
    memory = msgspec.structs.replace(MAPPED.memory, doc_max_tokens=longest)
    config, count = msgspec.structs.replace(MAPPED, memory=memory), memory.num_memory_tokens
    base = tiny_base()
    base = base._replace(layout=msgspec.structs.replace(base.layout, num_memory_tokens=count))
    params, given = tiny_params(base, config), text_of(longest, count)
    assert len(params["anchor_map_b"]) == places + 1
    grads = mx.grad(lambda p: mx.square(compress(base, config, p, given).memory).sum())(params)
    assert mx.abs(grads["anchor_map_b"]).max(axis=(1, 2)).min().item() > 0


@pytest.mark.parametrize("count", [12, 40])
def test_without_maps_a_text_of_any_length_has_the_memory_of_weights_alone(count: int) -> None:
    base, given = tiny_base(), text_of(count, MEMORY_TOKENS)
    params = tiny_params(base, MAPPED)
    no_maps = params | {"anchor_map_b": mx.zeros_like(params["anchor_map_b"])}
    expected = compress(base, without_maps(MAPPED), params, given).memory
    assert_close(compress(base, MAPPED, no_maps, given).memory, expected, 1e-5)
