"""The parts of linear layers that were cut, with adapters on them, make up the whole in value and gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from groups import Member
from mlx.nn.layers.distributed import shard_linear
from tiny import assert_close, assert_same, normal

from clara.core.bind import linear_shape
from clara.core.lora import Joint, joint, lora_linears
from clara.core.shard import adapted_call, own_layer, own_pair, whole_shape

RANKS, SIZE_IN, SIZE_OUT, TOLERANCE = 2, 128, 96, 1e-5
BOTH = pytest.mark.parametrize("quantized", [False, True], ids=["float", "4bit"])
DROPOUT = pytest.mark.parametrize("dropout", [0.0, 0.4])
HOW = {"scale": 0.7, "dequantize_rows": 0}
Call = Callable[[mx.array], list[mx.array]]


@pytest.fixture(autouse=True)
def summed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Yield the shapes of what processes would sum; each keeps its own part, and tests add these up."""
    shapes: list[tuple[int, ...]] = []

    def all_sum(array: mx.array, group: Any) -> mx.array:
        shapes.append(array.shape)
        return array

    monkeypatch.setattr(mx.distributed, "all_sum", all_sum)
    yield shapes


def linear(seed: int, quantized: bool, bias: bool = True) -> nn.Module:
    layer = nn.Linear(SIZE_IN, SIZE_OUT, bias=bias)
    rng = np.random.default_rng(seed)
    layer.weight = 0.1 * normal(rng, SIZE_OUT, SIZE_IN)
    if bias:
        layer.bias = normal(rng, SIZE_OUT)
    return nn.QuantizedLinear.from_linear(layer, 32, 4) if quantized else layer


def pair(seed: int, rank: int = 4) -> dict[str, mx.array]:
    rng = np.random.default_rng(seed)
    return {"lora_a": 0.1 * normal(rng, SIZE_IN, rank), "lora_b": normal(rng, rank, SIZE_OUT)}


def cut(layers: Sequence[nn.Module], way: str, rank: int) -> list[nn.Module]:
    member = Member(rank, RANKS)
    return [shard_linear(layer, way, group=member) for layer in layers]  # type: ignore[no-untyped-call]


def gradients(
    call_of: Callable[[list[dict[str, mx.array]]], Call], x: mx.array, pairs: list[dict[str, mx.array]], cotangents: Any
) -> tuple[list[mx.array], list[mx.array]]:
    """Return (outputs, gradients of x and then of every A and B)."""
    flat = [leaf for each in pairs for leaf in each.values()]

    def run(x: mx.array, *leaves: mx.array) -> list[mx.array]:
        ups = iter(leaves)
        return call_of([{"lora_a": a, "lora_b": next(ups)} for a in ups])(x)

    return mx.vjp(run, [x, *flat], cotangents)


def added(parts: Sequence[Sequence[mx.array]]) -> list[mx.array]:
    return [sum(each[1:], each[0]) for each in zip(*parts, strict=True)]


@BOTH
@DROPOUT
def test_layers_that_are_cut_by_their_outputs(quantized: bool, dropout: float, summed: list[tuple[int, ...]]) -> None:
    layers, pairs = [linear(i, quantized) for i in range(2)], [pair(i) for i in range(2)]
    rng = np.random.default_rng(9)
    x, cotangents = normal(rng, 2, 5, SIZE_IN), [normal(rng, 2, 5, SIZE_OUT) for _ in layers]
    how = {**HOW, "dropout": dropout, "key": mx.random.key(3)}
    wanted, slopes = gradients(lambda p: lambda x: lora_linears(layers, x, joint(p), **how), x, pairs, cotangents)
    outs, grads = [], []
    for rank in range(RANKS):
        own = cut(layers, "all-to-sharded", rank)
        each = [mx.split(one, RANKS, axis=-1)[rank] for one in cotangents]
        out, grad = gradients(lambda p, own=own: adapted_call(own, p, **how), x, pairs, each)
        outs.append(out)
        grads.append(grad)
    assert_close([mx.concatenate(each, axis=-1) for each in zip(*outs, strict=True)], wanted, TOLERANCE)
    assert_close(added(grads), slopes, TOLERANCE)
    assert summed == [x.shape] * RANKS, "the gradient of the input, once for both layers"


@BOTH
@DROPOUT
def test_layers_that_are_cut_by_their_inputs(quantized: bool, dropout: float, summed: list[tuple[int, ...]]) -> None:
    layer, pairs = linear(0, quantized), [pair(0)]
    rng = np.random.default_rng(9)
    x, cotangent = normal(rng, 2, 5, SIZE_IN), normal(rng, 2, 5, SIZE_OUT)
    how = {**HOW, "dropout": dropout, "key": mx.random.key(3)}
    wanted, slopes = gradients(lambda p: lambda x: lora_linears([layer], x, joint(p), **how), x, pairs, [cotangent])
    outs, grads = [], []
    for rank in range(RANKS):
        own = cut([layer], "sharded-to-all", rank)
        part = mx.split(x, RANKS, axis=-1)[rank]
        (out,), grad = gradients(lambda p, own=own: adapted_call(own, p, **how), part, pairs, [cotangent])
        outs.append([out - layer.bias])
        grads.append(grad)
    assert_close([added(outs)[0] + layer.bias], wanted, TOLERANCE)
    assert_close(mx.concatenate([each[0] for each in grads], axis=-1), slopes[0], TOLERANCE)
    assert_close(added([each[1:] for each in grads]), slopes[1:], TOLERANCE)
    assert summed == [(2, 5, SIZE_OUT)] * RANKS, "the output, with the adapter's part in it"


@BOTH
@pytest.mark.parametrize("way", ["all-to-sharded", "sharded-to-all"])
def test_the_shape_of_a_layer_that_is_cut_is_the_wholes(way: str, quantized: bool) -> None:
    (own,) = cut([linear(0, quantized)], way, 1)
    assert linear_shape(own) == (SIZE_IN, SIZE_OUT)


def test_the_shape_of_a_whole_layer_is_its_own() -> None:
    assert whole_shape(linear(0, False), (3, 5)) == (3, 5)


def test_a_whole_layer_is_called_as_ever() -> None:
    layer, x = linear(0, False), normal(np.random.default_rng(9), 3, SIZE_IN)
    found = adapted_call([layer], [pair(0)], scale=0.7)(x)
    assert_same(found, lora_linears([layer], x, joint([pair(0)]), 0.7))


def test_a_process_uses_the_rows_or_columns_of_its_place() -> None:
    whole = pair(0)
    (outputs,), (inputs,) = (cut([linear(0, False)], way, 1) for way in ("all-to-sharded", "sharded-to-all"))
    assert_same(own_pair(outputs, whole, (1, 2)), {"lora_a": whole["lora_a"], "lora_b": whole["lora_b"][:, 48:]})
    assert_same(own_pair(inputs, whole, (1, 2)), {"lora_a": whole["lora_a"][64:], "lora_b": whole["lora_b"]})


@BOTH
def test_a_part_as_a_layer_of_its_own_shares_the_arrays_and_sums_nothing(
    quantized: bool, summed: list[tuple[int, ...]]
) -> None:
    layer = linear(0, quantized)
    (outputs,), (inputs,) = (cut([layer], way, 1) for way in ("all-to-sharded", "sharded-to-all"))
    first, second = own_layer(outputs), own_layer(inputs)
    assert type(first) is type(second) is (nn.QuantizedLinear if quantized else nn.Linear)
    assert first.weight is outputs.weight and first.bias is outputs.bias
    assert second.weight is inputs.weight and "bias" not in second and "bias" in inputs
    x = normal(np.random.default_rng(9), 3, SIZE_IN)
    assert_close(first(x), layer(x)[:, 48:], TOLERANCE)
    assert summed == []


def test_the_adapters_of_parts_are_joined_as_those_of_whole_layers() -> None:
    own = cut([linear(0, False), linear(1, False)], "all-to-sharded", 0)
    parts = joint([own_pair(each, pair(i), (0, 2)) for i, each in enumerate(own)])
    assert isinstance(parts, Joint) and parts.lora_a.shape == (8, SIZE_IN)
    assert [up.shape for up in parts.lora_b] == [(4, 48), (4, 48)]
