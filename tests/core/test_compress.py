"""The compressor's pass: what is placed, what is read, and what does not leak from row to row."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from tiny import HIDDEN, MEMORY_TOKENS, VOCABULARY, assert_close, tiny_base, tiny_config, tiny_params

from clara.core.bind import hidden_states
from clara.core.collate import frame_document, pad
from clara.core.compress import compress, embed, offset_by_row
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
