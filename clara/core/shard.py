"""Linear layers of a base that mlx-lm cut over several processes (tensor parallel), with adapters on them.

Layers that read the residual stream, such as queries or the gate, compute a part of their outputs on each process.
Layers that write it read that part and sum their outputs over all processes, so that the stream is the same on all.
Adapters are whole everywhere; each process uses those rows of A or columns of B that belong to its part. The gradient
of the stream is the same on all processes too; that of an adapter is the sum over all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import sum_gradients

from clara.core.lora import joint, lora_linears

CUT_OUTPUTS = (nn.AllToShardedLinear, nn.QuantizedAllToShardedLinear)
"""Linear layers of which a process has some of the outputs."""

CUT_INPUTS = (nn.ShardedToAllLinear, nn.QuantizedShardedToAllLinear)
"""Linear layers of which a process has some of the inputs."""

CUT = (*CUT_OUTPUTS, *CUT_INPUTS)


def whole_shape(linear: nn.Module, shape: tuple[int, int]) -> tuple[int, int]:
    """Return (in, out) of a whole linear layer, of which this process has `shape`."""
    size_in, size_out = shape
    if isinstance(linear, CUT_OUTPUTS):
        return size_in, size_out * linear.group.size()
    return (size_in * linear.group.size(), size_out) if isinstance(linear, CUT_INPUTS) else shape


def adapted_call(
    linears: Sequence[nn.Module], pairs: Sequence[Mapping[str, mx.array]], **how: Any
) -> Callable[[mx.array], list[mx.array]]:
    """Return x: float[..., in] → `lora_linears` of layers that read the same x; pairs: whole, of each. how: as there.

    Of layers that are cut by their outputs x is whole, and the results are this process's parts; of those that are cut
    by their inputs it is the other way round.
    """
    if not isinstance(linears[0], CUT):
        return functools.partial(lora_linears, linears, pairs=joint(pairs), **how)
    group: Any = linears[0].group
    place = group.rank(), group.size()
    parts = joint([own_pair(linear, pair, place) for linear, pair in zip(linears, pairs, strict=True)])
    plain = [own_layer(linear) for linear in linears]
    if isinstance(linears[0], CUT_OUTPUTS):
        summed = sum_gradients(group)  # type: ignore[no-untyped-call]
        return lambda x: lora_linears(plain, summed(x), parts, **how)

    def call(x: mx.array) -> list[mx.array]:
        outs = [mx.distributed.all_sum(out, group=group) for out in lora_linears(plain, x, parts, place=place, **how)]
        return [out + each.bias if "bias" in each else out for out, each in zip(outs, linears, strict=True)]

    return call


def own_pair(linear: nn.Module, pair: Mapping[str, mx.array], place: tuple[int, int]) -> dict[str, mx.array]:
    """Return the part of an adapter's pair that belongs to a process's part of a cut layer; place: (rank, ranks)."""
    (lora_a, lora_b), (rank, count) = (pair["lora_a"], pair["lora_b"]), place
    if isinstance(linear, CUT_OUTPUTS):
        width = lora_b.shape[1] // count
        return {"lora_a": lora_a, "lora_b": lora_b[:, rank * width : (rank + 1) * width]}
    width = lora_a.shape[0] // count
    return {"lora_a": lora_a[rank * width : (rank + 1) * width], "lora_b": lora_b}


def own_layer(linear: nn.Module) -> nn.Module:
    """Return a process's part of a cut layer as a layer of its own, which shares the arrays and exchanges nothing.

    It has a bias only where that belongs to this part alone.
    """
    kind = nn.QuantizedLinear if hasattr(linear, "bits") else nn.Linear
    twin = kind.__new__(kind)
    twin.__dict__.update(vars(linear))
    left = ("bias",) if isinstance(linear, CUT_INPUTS) else ()
    dict.update(twin, {name: leaf for name, leaf in linear.items() if name not in left})
    return twin
