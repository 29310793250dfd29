"""Packed leaves give the numbers of a tree: their values, gradients, optimizer states and whole training steps."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map
from tiny import TOP_K, assert_close, assert_same, choosing_examples, tiny_base, tiny_batch, tiny_config, tiny_params

from clara.core.config import CHOOSING, OptimizerConfig, StepConfig
from clara.core.optim import adamw
from clara.core.packing import pack, pack_state, packing_of, parts_of, unpack, unpack_state
from clara.core.stages import trained_leaves
from clara.core.step import make_eval_step, make_train_step, make_update
from clara.core.types import Batch, Params, TrainState

BASE = tiny_base(num_hidden_layers=1)
CONFIGS = {
    "pretrain": tiny_config(),
    "anchored, with dropout": tiny_config(anchored=True, dropout=0.2),
    "mapped anchors": tiny_config(anchored=True, anchor_pooling="mapped"),
    "instruct": tiny_config(stage="instruct"),
    "retrieval": tiny_config(stage="retrieval"),
    "end_to_end": tiny_config(stage="end_to_end"),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
TRAINING = OptimizerConfig(learning_rate=1e-2)


def leaves_of(config: StepConfig) -> tuple[Params, Params, Batch]:
    """Return (trained, frozen, batch) of a stage."""
    trained, frozen = trained_leaves(config, tiny_params(BASE, config))
    batch = tiny_batch(*choosing_examples(), top_k=TOP_K) if config.stage in CHOOSING else tiny_batch()
    return trained, frozen, batch


@every_config
def test_unpacking_is_the_inverse_of_packing(config: StepConfig) -> None:
    trained, _, _ = leaves_of(config)
    packing = packing_of(trained)
    assert_same(unpack(packing, pack(packing, trained)), trained)


def test_a_tree_becomes_four_vectors_by_kind() -> None:
    trained, _, _ = leaves_of(CONFIGS["mapped anchors"])
    packed = pack(packing_of(trained), trained)
    sizes = {"lora_a": 0, "lora_b": 0, "anchor": 0, "other": 0}
    kinds = {"lora_a": "lora_a", "lora_b": "lora_b"}
    kinds |= dict.fromkeys(("anchor_gain", "anchor_query", "anchor_map_a", "anchor_map_b"), "anchor")
    assert {"anchor_map_a", "anchor_query"} < trained.keys()
    for name, leaf in tree_flatten(trained):
        sizes[kinds.get(name.rpartition(".")[2], "other")] += leaf.size
    assert {name: vector.shape for name, vector in packed.items()} == {name: (size,) for name, size in sizes.items()}


def test_a_kind_that_a_stage_does_not_train_has_no_vector() -> None:
    trained, _, _ = leaves_of(CONFIGS["retrieval"])
    assert pack(packing_of(trained), trained).keys() == {"lora_a", "lora_b"}


def test_adapters_come_cast_and_scaled_and_other_leaves_as_they_are() -> None:
    trained, _, _ = leaves_of(CONFIGS["pretrain"])
    packing = packing_of(trained)
    found = dict(tree_flatten(unpack(packing, pack(packing, trained), mx.bfloat16, 2.0)))
    for name, leaf in tree_flatten(trained):
        wanted = {"lora_a": leaf.astype(mx.bfloat16), "lora_b": (leaf * 2).astype(mx.bfloat16)}
        assert_same(found[name], wanted.get(name.rpartition(".")[2], leaf))


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6))
def test_the_gradient_of_parts_is_put_back_in_place(shapes: list[tuple[int, ...]]) -> None:
    size = sum(int(np.prod(shape)) for shape in shapes)
    vector, weights = mx.arange(size, dtype=mx.float32), np.random.default_rng(size).random(size).astype(np.float32)
    parts = parts_of(vector, shapes)
    assert [part.shape for part in parts] == shapes
    assert np.concatenate([np.array(part).reshape(-1) for part in parts]).tolist() == list(range(size))

    def loss(vector: mx.array) -> mx.array:
        flat = mx.concatenate([part.reshape(-1) for part in parts_of(vector, shapes)])
        return (flat * mx.array(weights)).sum()

    assert np.allclose(mx.grad(loss)(vector), weights)


@every_config
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_a_packed_step_is_a_step(config: StepConfig, compiled: bool) -> None:
    trained, frozen, batch = leaves_of(config)
    packing = packing_of(trained)
    step: Any = make_train_step(BASE, config, frozen, packing=packing)
    loss, metrics, grads = (mx.compile(step) if compiled else step)(pack(packing, trained), batch)
    expected = make_train_step(BASE, config, frozen)(trained, batch)
    assert_close((loss, metrics), (expected.loss, expected.metrics), 1e-6)
    assert_close(unpack(packing, grads), expected.grads, 1e-5)


def test_a_packed_step_takes_micro_batches() -> None:
    trained, frozen, batch = leaves_of(CONFIGS["pretrain"])
    packing = packing_of(trained)
    step = make_train_step(BASE, CONFIGS["pretrain"], frozen, packing=packing)
    twice, once = step(pack(packing, trained), [batch, batch]), step(pack(packing, trained), batch)
    assert_close((twice.loss, twice.grads), (once.loss, once.grads), 1e-5)


@every_config
def test_a_packed_evaluation_is_an_evaluation(config: StepConfig) -> None:
    trained, frozen, batch = leaves_of(config)
    packing = packing_of(trained)
    found = make_eval_step(BASE, config, frozen, packing=packing)(pack(packing, trained), batch)
    assert_close(found, make_eval_step(BASE, config, frozen)(trained, batch), 1e-6)


def updated(config: StepConfig, packed: bool, steps: int = 3) -> tuple[Params, dict[str, Any]]:
    """Return (parameters, optimizer state) as trees after some steps, made with packed leaves or without."""
    trained, frozen, batch = leaves_of(config)
    optimizer, packing = adamw(TRAINING, steps), packing_of(trained)
    start = pack(packing, trained) if packed else trained
    update = make_update(make_train_step(BASE, config, frozen, packing=packing if packed else None), optimizer)
    state = TrainState(start, optimizer.init(start), mx.array(0))
    for _ in range(steps):
        state, _ = update(state, batch)
    if not packed:
        return state.params, state.optimizer_state
    return unpack(packing, state.params), unpack_state(packing, state.optimizer_state)


def test_packed_training_is_training() -> None:
    config = CONFIGS["pretrain"]
    (params, state), (expected, expected_state) = updated(config, packed=True), updated(config, packed=False)
    assert_close(params, expected, 1e-4)
    assert state.keys() == expected_state.keys()
    assert_close(state, expected_state, 1e-3)


def test_an_optimizer_state_goes_there_and_back() -> None:
    config = CONFIGS["anchored, with dropout"]
    _, state = updated(config, packed=True)
    packing = packing_of(leaves_of(config)[0])
    packed = pack_state(packing, state)
    assert set(packed) == {"step", "learning_rate", "lora_a", "lora_b", "anchor", "other"}
    assert_same(unpack_state(packing, packed), state)
    shapes = tree_map(lambda leaf: leaf.shape, packed["lora_a"])
    assert shapes["m"] == shapes["v"] == pack(packing, leaves_of(config)[0])["lora_a"].shape
