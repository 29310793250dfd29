"""Low-rank adapters (LoRA, arXiv 2106.09685): start values, forward pass, merging."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

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


def lora_linear(
    linear: Callable[[mx.array], mx.array],
    x: mx.array,
    pair: Mapping[str, mx.array],
    scale: float,
    dropout: float = 0.0,
    key: mx.array | None = None,
) -> mx.array:
    """Return float[..., out] = linear(x) + scale · (x A) B for x: float[..., in], in the dtype of x.

    With a key: uint32[2], each entry of x is dropped from the adapter's path with probability `dropout`.
    """
    low = drop(x, dropout, key) @ pair["lora_a"].astype(x.dtype)
    base = linear(x)
    return mx.addmm(base, low * scale, pair["lora_b"].astype(base.dtype))


def drop(x: mx.array, rate: float, key: mx.array | None) -> mx.array:
    """Return x with each entry zero at probability `rate` and the others divided by 1 − rate; x without a key."""
    if key is None or rate == 0:
        return x
    keep = mx.random.bernoulli(1 - rate, x.shape, key=key)
    return mx.where(keep, x * (1 / (1 - rate)), mx.zeros((), dtype=x.dtype))


def merge_lora(weight: mx.array, pair: Mapping[str, mx.array], scale: float) -> mx.array:
    """Return float[out, in]: a linear layer's weight with the adapter added, W + scale · (A B)ᵀ, in W's dtype."""
    delta = (pair["lora_a"] @ pair["lora_b"]).T * scale
    return (weight.astype(mx.float32) + delta).astype(weight.dtype)
