"""Low-rank adapters (LoRA, arXiv 2106.09685): start values, forward pass, merging."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from clara.core.types import Adapter


def init_adapter(key: mx.array, shapes: Mapping[str, tuple[int, int]], rank: int) -> Adapter:
    """Return a new adapter for linear layers {path: (in, out)}, float32, that changes nothing yet.

    lora_a: float[in, R] uniform in ±1/√in, lora_b: float[R, out] zero. key: uint32[2].
    """
    keys = mx.random.split(key, max(len(shapes), 1))
    return {
        path: {
            "lora_a": mx.random.uniform(-(size_in**-0.5), size_in**-0.5, (size_in, rank), key=keys[i]),
            "lora_b": mx.zeros((rank, size_out)),
        }
        for i, (path, (size_in, size_out)) in enumerate(shapes.items())
    }


class Layer(NamedTuple):
    """A frozen linear layer, as a sum of products sees it."""

    forward: Callable[[mx.array], mx.array]
    """float[n, in] → float[n, out]."""
    weight: Callable[[mx.array], mx.array] | None
    """The weight, float[out, in], to be ready once an array is; None where only `forward` knows it."""


class Joint(NamedTuple):
    """Adapters of layers that read the same input."""

    lora_a: mx.array
    """float[R + R …, in]: all A, transposed, one below the other."""
    lora_b: tuple[mx.array, ...]
    """float[R, out] of each."""


def joint(pairs: Sequence[Mapping[str, mx.array]]) -> Joint:
    """Return the adapters of layers that read the same input, put together."""
    every = [pair["lora_a"].T for pair in pairs]
    return Joint(mx.concatenate(every) if len(every) > 1 else every[0], tuple(pair["lora_b"] for pair in pairs))


def lora_linear(
    linear: Callable[[mx.array], mx.array],
    x: mx.array,
    pair: Mapping[str, mx.array],
    scale: float,
    dropout: float = 0.0,
    key: mx.array | None = None,
    dequantize_rows: int = 0,
) -> mx.array:
    """Return float[..., out] = linear(x) + scale · (x A) B for x: float[..., in], in the dtype of x.

    With a key: uint32[2], each entry of x is dropped from the adapter's path with probability `dropout`. A quantised
    layer that is given `dequantize_rows` rows of x or more is dequantised for a plain product; 0 for never.
    """
    return lora_linears([linear], x, joint([pair]), scale, dropout, key, dequantize_rows)[0]


def lora_linears(
    linears: Sequence[Callable[[mx.array], mx.array]],
    x: mx.array,
    pairs: Joint,
    scale: float,
    dropout: float = 0.0,
    key: mx.array | None = None,
    dequantize_rows: int = 0,
    place: tuple[int, int] = (0, 1),
) -> list[mx.array]:
    """Return `lora_linear` of layers that read the same x, such as queries, keys and values: one product with all A.

    What dropout drops of x is the same for all of them. place: which of how many parts of a wider x this is, by its
    entries; what is dropped is what would be of the whole.
    """
    rows = x.reshape(-1, x.shape[-1])
    layers = [layer_of(linear, 0 < dequantize_rows <= rows.shape[0]) for linear in linears]
    inputs = [rows] if key is None or dropout == 0 else [rows, drop(rows, dropout, key, place)]
    matrices = [matrix.astype(x.dtype) for matrix in (pairs.lora_a, *pairs.lora_b)]
    *outs, _ = adapted_products(layers, scale)(*inputs, *matrices)
    return [out.reshape(*x.shape[:-1], -1) for out in outs]


def layer_of(linear: Any, dequantize: bool) -> Layer:
    """Return a linear layer with its weight; a quantised one only if it is to be dequantised, anew for each product."""
    if type(linear) is nn.Linear:
        return Layer(linear, lambda _: linear.weight)
    if not (dequantize and isinstance(linear, nn.QuantizedLinear)):
        return Layer(linear, None)

    def weight(when: mx.array) -> mx.array:
        packed = mx.depends([linear.weight], [when])[0]
        how = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
        return mx.dequantize(packed, linear.scales, linear.get("biases"), **how).astype(when.dtype)

    def forward(x: mx.array) -> mx.array:
        out = x @ weight(x).T
        return out + linear.bias if "bias" in linear else out

    return Layer(forward, weight)


def adapted_products(layers: Sequence[Layer], scale: float) -> Callable[..., Sequence[mx.array]]:
    """Return (x, kept, A, B…) → (layer(x) + scale · (A keptᵀ)ᵀ B …, A keptᵀ): x, kept: float[n, in]; A, B: of `Joint`.

    Without dropout there is no kept, and x stands for it. Value and gradient are written as products that add onto one
    another, with no sum or copy in between: x is one matrix, and all A are one. The layers themselves have no gradient.
    """

    @mx.custom_function
    def products(*primals: mx.array) -> tuple[mx.array, ...]:
        inputs, lora_a, lora_b = taken_apart(primals, len(layers))
        low = lora_a @ inputs[-1].T
        outs = [
            mx.addmm(layer.forward(inputs[0]), part.T, up, alpha=scale)
            for layer, part, up in zip(layers, parts_of(low, lora_b), lora_b, strict=True)
        ]
        return (*outs, low)

    @products.vjp
    def products_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        inputs, lora_a, lora_b = taken_apart(primals, len(layers))
        *grads, _ = cotangents
        grad_low = mx.concatenate([up @ grad.T for up, grad in zip(lora_b, grads, strict=True)])
        grad_x = below(layers, grads, inputs[0])
        if len(inputs) == 1:
            grad_inputs = [mx.addmm(grad_x, grad_low.T, lora_a, alpha=scale)]
        else:
            grad_inputs = [grad_x, times(grad_low.T @ lora_a, scale)]
        grad_a = times(grad_low @ inputs[-1], scale)
        parts = parts_of(outputs[-1], lora_b)
        grad_b = [times(part @ grad, scale) for part, grad in zip(parts, grads, strict=True)]
        # Products of this layer before those of the layer below: else the gradients of all outputs wait for them.
        return (*mx.depends(grad_inputs, [grad_a, *grad_b]), grad_a, *grad_b)

    return cast(Callable[..., Sequence[mx.array]], products)


def taken_apart(primals: Sequence[mx.array], layers: int) -> tuple[list[mx.array], mx.array, list[mx.array]]:
    """Return the inputs, the joint A and all B among the primals of `adapted_products`."""
    place = len(primals) - layers - 1
    return list(primals[:place]), primals[place], list(primals[place + 1 :])


def parts_of(low: mx.array, lora_b: Sequence[mx.array]) -> Sequence[mx.array]:
    """Return float[R, n] for each of some lora_b: float[R, out], of low: float[R + R …, n]."""
    ends = list(itertools.accumulate(matrix.shape[0] for matrix in lora_b))
    return cast(Sequence[mx.array], mx.split(low, ends[:-1], axis=0))


def below(layers: Sequence[Layer], grads: Sequence[mx.array], x: mx.array) -> mx.array:
    """Return float[n, in]: the gradient of x: float[n, in] through frozen layers, from those of their outputs."""
    total: mx.array | None = None
    for layer, grad in zip(layers, grads, strict=True):
        if layer.weight is None:
            part = mx.vjp(layer.forward, [x], [grad])[1][0]
            total = part if total is None else total + part
        else:
            weight = layer.weight(grad)
            total = grad @ weight if total is None else mx.addmm(total, grad, weight)
    assert total is not None
    return total


def times(values: mx.array, factor: float) -> mx.array:
    """Return values · factor, at no cost for 1."""
    return values if factor == 1 else values * factor


def drop(x: mx.array, rate: float, key: mx.array | None, place: tuple[int, int] = (0, 1)) -> mx.array:
    """Return x with each entry zero at probability `rate` and the others divided by 1 − rate; x without a key.

    place: (i, n) for x as the i-th of n equal parts along the last axis of an array, of which the same is dropped.
    """
    if key is None or rate == 0:
        return x
    (i, count), width = place, x.shape[-1]
    keep = mx.random.bernoulli(1 - rate, (*x.shape[:-1], width * count), key=key)
    # Not `mx.split`: mx.compile fails on one of which a recomputed layer leaves outputs unused.
    keep = keep[..., i * width : (i + 1) * width] if count > 1 else keep
    return mx.where(keep, x * (1 / (1 - rate)), mx.zeros((), dtype=x.dtype))


def merge_lora(weight: mx.array, pair: Mapping[str, mx.array], scale: float) -> mx.array:
    """Return float[out, in]: a linear layer's weight with the adapter added, W + scale · (A B)ᵀ, in W's dtype."""
    delta = (pair["lora_a"] @ pair["lora_b"]).T * scale
    return (weight.astype(mx.float32) + delta).astype(weight.dtype)
