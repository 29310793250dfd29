"""Cuts a base over several processes by mlx-lm's own `shard`, after it was checked that adapters can follow the cut."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from clara.core.bind import adapted_linears, anatomy, linear_shape, part_of
from clara.core.shard import CUT_INPUTS, CUT_OUTPUTS
from clara.io.errors import ClaraError

OUTPUTS, INPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")
"""Names of linear layers that are cut by their outputs, and by their inputs."""

NORMS = (nn.RMSNorm, nn.LayerNorm)
"""What may stay whole in a block: it has no adapter."""


def shard_base(module: nn.Module, name: str, group: Any) -> None:
    """Cut the blocks of a base over the processes of a group, in place: this one keeps its parts of linear layers.

    Nothing is computed. Raises ClaraError where the architecture has no such cut, or one that adapters cannot follow,
    and where the parts would not be equal; then nothing was cut.
    """
    if not hasattr(module, "shard"):
        raise ClaraError(f"{name}: mlx-lm has no way to cut this architecture ({kind_of(module)}); leave --shard out")
    refuse_others(module, name, (*OUTPUTS, *INPUTS))
    ranks, sizes = group.size(), cut_sizes(module)
    common = math.gcd(*sizes.values())
    if common % ranks:
        what, size = next((what, size) for what, size in sizes.items() if size % ranks)
        numbers = [str(n) for n in range(2, common + 1) if common % n == 0]
        wanted = f"--shard wants {' or '.join(numbers)} ranks here" if numbers else "leave --shard out"
        raise ClaraError(f"{name}: its {what}, {size}, cannot be cut into {ranks} equal parts; {wanted}")
    module.shard(group)
    for kind, names in ((CUT_OUTPUTS, OUTPUTS), (CUT_INPUTS, INPUTS)):
        named = {path: part for path, part in linears_of(module).items() if path.endswith(names)}
        if wrong := [path for path, part in named.items() if not isinstance(part, kind)]:
            raise ClaraError(f"{name}: mlx-lm cuts {wrong[0]} in a way that adapters cannot follow; leave --shard out")


def kind_of(module: nn.Module) -> str:
    """Return the name of a base's architecture."""
    return str(getattr(module, "model_type", type(module).__name__))


def linears_of(module: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of a base's blocks by their paths."""
    return {path: part_of(module, path) for path in adapted_linears(module)}


def refuse_others(module: nn.Module, name: str, known: tuple[str, ...]) -> None:
    """Raise ClaraError where a block has weights in anything but norms and linear layers of the known names."""
    linears, prefix = linears_of(module), anatomy(module).layers + "."
    for path, part in module.named_modules():
        weights = [leaf for key, leaf in part.items() if isinstance(leaf, mx.array) and not key.startswith("_")]
        if not path.startswith(prefix) or not weights or type(part) in NORMS:
            continue
        if path not in linears or path.rpartition(".")[2] not in known:
            raise ClaraError(
                f"{name}: has {path}, which adapters cannot follow where it is cut: --shard takes blocks "
                f"of norms and {', '.join(known)} alone ({kind_of(module)}); leave it out"
            )


def cut_sizes(module: nn.Module) -> dict[str, int]:
    """Return all that is to be cut into equal parts: {what it is: how many there are}."""
    args = getattr(module, "args", None)
    heads = getattr(args, "num_attention_heads", 1)
    sizes = {"attention heads": heads, "key-value heads": getattr(args, "num_key_value_heads", None) or heads}
    for path, linear in linears_of(module).items():
        last, (size_in, size_out) = path.rpartition(".")[2], linear_shape(linear)
        if last in OUTPUTS:
            sizes[f"outputs of {path}"] = size_out
        elif hasattr(linear, "bits"):
            sizes[f"groups of {linear.group_size} quantised weights in {path}"] = size_in // linear.group_size
        else:
            sizes[f"inputs of {path}"] = size_in
    return sizes
