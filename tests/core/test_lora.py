"""Adapters: what they add, how they start, how they merge, what dropout does to them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import as_numpy, assert_close, assert_same, difference, normal

from clara.core.lora import drop, init_adapter, joint, layer_of, lora_linear, lora_linears, merge_lora

sizes, scales, seeds = st.integers(1, 40), st.floats(0.1, 8.0), st.integers(0, 2**31)


def random_pair(rng: np.random.Generator, size_in: int, rank: int, size_out: int) -> dict[str, mx.array]:
    return {"lora_a": normal(rng, size_in, rank) * size_in**-0.5, "lora_b": normal(rng, rank, size_out)}


def random_linear(rng: np.random.Generator, size_in: int, size_out: int) -> nn.Linear:
    linear = nn.Linear(size_in, size_out)
    linear.weight = normal(rng, size_out, size_in) * size_in**-0.5
    return linear


@given(sizes, sizes, st.integers(1, 9), st.integers(1, 5), scales, seeds)
def test_lora_linear_adds_the_scaled_product(
    size_in: int, size_out: int, rank: int, length: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    linear, pair = random_linear(rng, size_in, size_out), random_pair(rng, size_in, rank, size_out)
    x = normal(rng, 2, length, size_in)
    delta = as_numpy(x) @ as_numpy(pair["lora_a"]) @ as_numpy(pair["lora_b"])
    assert difference(lora_linear(linear, x, pair, scale), as_numpy(linear(x)) + scale * delta) <= 1e-5


@given(sizes, sizes, st.integers(1, 9), scales, seeds)
def test_merged_equals_applied(size_in: int, size_out: int, rank: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    linear, pair = random_linear(rng, size_in, size_out), random_pair(rng, size_in, rank, size_out)
    x = normal(rng, 3, size_in)
    applied = lora_linear(linear, x, pair, scale)
    linear.weight = merge_lora(linear.weight, pair, scale)
    assert difference(applied, linear(x)) <= 1e-5


@given(sizes, sizes, st.integers(1, 9), seeds)
def test_a_new_adapter_changes_nothing(size_in: int, size_out: int, rank: int, seed: int) -> None:
    linear = random_linear(np.random.default_rng(seed), size_in, size_out)
    pair = init_adapter(mx.random.key(seed), {"here": (size_in, size_out)}, rank)["here"]
    x = normal(np.random.default_rng(seed), 3, size_in)
    assert_same(lora_linear(linear, x, pair, 2.0), linear(x))


@given(sizes, sizes, st.integers(1, 9), seeds)
def test_a_new_adapter_has_the_shapes_of_its_layers(size_in: int, size_out: int, rank: int, seed: int) -> None:
    adapter = init_adapter(mx.random.key(seed), {"one": (size_in, size_out), "two": (size_out, size_in)}, rank)
    shapes = {path: (pair["lora_a"].shape, pair["lora_b"].shape) for path, pair in adapter.items()}
    assert shapes == {
        "one": ((size_in, rank), (rank, size_out)),
        "two": ((size_out, rank), (rank, size_in)),
    }


def test_a_new_adapter_is_float32() -> None:
    pair = init_adapter(mx.random.key(0), {"here": (4, 4)}, 2)["here"]
    assert {leaf.dtype for leaf in pair.values()} == {mx.float32}


def test_a_new_lora_a_is_uniform_within_the_root_of_its_inputs() -> None:
    lora_a = as_numpy(init_adapter(mx.random.key(0), {"here": (100, 4)}, 64)["here"]["lora_a"])
    assert np.abs(lora_a).max() == pytest.approx(0.1, rel=0.01)
    assert lora_a.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.03)
    assert lora_a.mean() == pytest.approx(0.0, abs=0.003)


def test_new_layers_of_one_adapter_start_differently() -> None:
    adapter = init_adapter(mx.random.key(0), {"one": (16, 4), "two": (16, 4)}, 4)
    assert difference(adapter["one"]["lora_a"], adapter["two"]["lora_a"]) > 0.5


def test_a_new_adapter_is_a_function_of_its_key() -> None:
    first, again, other = (init_adapter(mx.random.key(seed), {"here": (16, 4)}, 4) for seed in (1, 1, 2))
    assert_same(first, again)
    assert difference(other["here"]["lora_a"], first["here"]["lora_a"]) > 0.5


@pytest.mark.parametrize("quantized", [False, True])
def test_bfloat16_stays_bfloat16(quantized: bool) -> None:
    rng = np.random.default_rng(0)
    linear, pair = random_linear(rng, 64, 8), random_pair(rng, 64, 4, 8)
    linear.set_dtype(mx.bfloat16)
    layer = linear.to_quantized(32, 4) if quantized else linear
    out = lora_linear(layer, normal(rng, 3, 64).astype(mx.bfloat16), pair, 2.0, 0.5, mx.random.key(0))
    assert out.dtype == mx.bfloat16


def test_merging_keeps_the_dtype_of_the_weight() -> None:
    pair = random_pair(np.random.default_rng(0), 8, 2, 4)
    assert merge_lora(mx.zeros((4, 8), dtype=mx.bfloat16), pair, 1.0).dtype == mx.bfloat16


def test_merging_into_bfloat16_rounds_the_sum_once() -> None:
    rng = np.random.default_rng(0)
    weight, pair = normal(rng, 16, 32).astype(mx.bfloat16), random_pair(rng, 32, 4, 16)
    exact = as_numpy(weight) + 2.0 * (as_numpy(pair["lora_a"]) @ as_numpy(pair["lora_b"])).T
    error = np.abs(as_numpy(merge_lora(weight, pair, 2.0)) - exact)
    assert (error <= np.abs(exact) * 2**-8 + 1e-5).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drop_drops_at_the_rate(rate: float) -> None:
    kept = as_numpy(drop(mx.ones((400, 400)), rate, mx.random.key(0))) != 0
    assert 1 - kept.mean() == pytest.approx(rate, abs=0.005)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drop_keeps_the_mean(rate: float) -> None:
    x = 1 + mx.random.uniform(shape=(400, 400), key=mx.random.key(1))
    assert drop(x, rate, mx.random.key(0)).mean().item() == pytest.approx(x.mean().item(), rel=0.02)


def test_drop_scales_what_it_keeps() -> None:
    x = 1 + mx.random.uniform(shape=(40, 40), key=mx.random.key(1))
    out, given_x = as_numpy(drop(x, 0.25, mx.random.key(0))), as_numpy(x)
    np.testing.assert_allclose(out[out != 0], given_x[out != 0] / 0.75, rtol=1e-6)


def test_parts_drop_what_the_whole_drops() -> None:
    x, key = normal(np.random.default_rng(0), 3, 5, 24), mx.random.key(4)
    parts = [drop(part, 0.4, key, (i, 3)) for i, part in enumerate(mx.split(x, 3, axis=-1))]
    assert_same(mx.concatenate(parts, axis=-1), drop(x, 0.4, key))


def test_a_part_drops_in_a_recomputed_layer_that_is_compiled() -> None:
    x, key = normal(np.random.default_rng(0), 3, 8), mx.random.key(4)

    def gradient(x: mx.array, key: mx.array) -> mx.array:
        own = mx.random.split(key, 2)[0]
        return mx.grad(lambda x: mx.checkpoint(lambda x: mx.square(drop(x, 0.4, own, (1, 2))))(x).sum())(x)

    assert_close(mx.compile(gradient)(x, key), gradient(x, key), 1e-5)


def test_drop_keeps_bfloat16() -> None:
    assert drop(mx.ones((4,), dtype=mx.bfloat16), 0.5, mx.random.key(0)).dtype == mx.bfloat16


@pytest.mark.parametrize(("rate", "keyed"), [(0.5, False), (0.0, True)])
def test_drop_needs_both_a_rate_and_a_key(rate: float, keyed: bool) -> None:
    x = normal(np.random.default_rng(0), 9, 9)
    assert_same(drop(x, rate, mx.random.key(0) if keyed else None), x)


def test_dropout_touches_the_adapter_path_alone() -> None:
    rng = np.random.default_rng(0)
    linear, pair, x = random_linear(rng, 16, 16), random_pair(rng, 16, 4, 16), normal(rng, 5, 16)
    key = mx.random.key(4)
    expected = linear(x) + 2.0 * drop(x, 0.5, key) @ pair["lora_a"] @ pair["lora_b"]
    assert difference(lora_linear(linear, x, pair, 2.0, 0.5, key), expected) <= 1e-5


def plain_formula(linear: nn.Module, x: mx.array, pair: dict[str, mx.array], scale: float, kept: mx.array) -> mx.array:
    return linear(x) + scale * ((kept @ pair["lora_a"]) @ pair["lora_b"])


@pytest.mark.parametrize("bits", [0, 4], ids=["float", "4bit"])
@pytest.mark.parametrize("rate", [0.0, 0.4], ids=["whole", "dropout"])
@pytest.mark.parametrize("rows", [0, 6, 7], ids=["packed", "dequantised", "too few rows"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_value_and_gradients_are_those_of_the_formula(bits: int, rate: float, rows: int, compiled: bool) -> None:
    rng, key, scale = np.random.default_rng(0), mx.random.key(5), 1.5
    linear: nn.Module = random_linear(rng, 64, 32)
    linear = nn.QuantizedLinear.from_linear(linear, 32, bits) if bits else linear
    x, pair, weights = normal(rng, 2, 3, 64), random_pair(rng, 64, 4, 32), normal(rng, 2, 3, 32)

    def ours(x: mx.array, pair: dict[str, mx.array]) -> mx.array:
        return (lora_linear(linear, x, pair, scale, rate, key, rows) * weights).sum()

    def formula(x: mx.array, pair: dict[str, mx.array]) -> mx.array:
        kept = drop(x.reshape(6, 64), rate, key).reshape(x.shape)
        return (plain_formula(linear, x, pair, scale, kept) * weights).sum()

    step = mx.value_and_grad(ours, argnums=(0, 1))
    expected = mx.value_and_grad(formula, argnums=(0, 1))(x, pair)
    assert_close((mx.compile(step) if compiled else step)(x, pair), expected, 1e-5)


def test_a_dequantised_layer_keeps_its_bias() -> None:
    rng = np.random.default_rng(0)
    linear = nn.QuantizedLinear.from_linear(random_linear(rng, 64, 32), 32, 4)
    linear.bias = normal(rng, 32)
    x = normal(rng, 3, 64)
    assert difference(layer_of(linear, dequantize=True).forward(x), linear(x)) <= 1e-5


@pytest.mark.parametrize("rate", [0.0, 0.4], ids=["whole", "dropout"])
def test_layers_together_are_the_layers_one_by_one(rate: float) -> None:
    rng, key, scale = np.random.default_rng(0), mx.random.key(5), 1.5
    linears = [random_linear(rng, 24, out) for out in (8, 32, 16)]
    pairs = [random_pair(rng, 24, 4, out) for out in (8, 32, 16)]
    x, weights = normal(rng, 2, 3, 24), [normal(rng, 2, 3, out) for out in (8, 32, 16)]

    def together(x: mx.array, pairs: list[dict[str, mx.array]]) -> mx.array:
        outs = lora_linears(linears, x, joint(pairs), scale, rate, key)
        return sum((out * weight).sum() for out, weight in zip(outs, weights, strict=True))

    def alone(x: mx.array, pairs: list[dict[str, mx.array]]) -> mx.array:
        rows = zip(linears, pairs, weights, strict=True)
        return sum((lora_linear(linear, x, pair, scale, rate, key) * weight).sum() for linear, pair, weight in rows)

    found, expected = (mx.value_and_grad(each, argnums=(0, 1))(x, pairs) for each in (together, alone))
    assert_close(found, expected, 1e-5)
