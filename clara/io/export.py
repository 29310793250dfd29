"""Writes a trained adapter for other tools: as mlx-lm's adapter, as PEFT's, or merged into a whole base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_flatten
from mlx_lm.utils import save_config, save_model

from clara.core.bind import LINEARS, linear_shape, share
from clara.core.config import LoraConfig
from clara.core.lora import merge_lora
from clara.core.types import Adapter
from clara.io.base import LoadedBase, dequantize_module
from clara.io.errors import ClaraError
from clara.io.files import staged
from clara.io.tokens import Tokenizer

IN_BLOCK = re.compile(r".+?\.(?P<block>\d+)\.(?P<key>.+)")
SAME_IN_TRANSFORMERS = re.compile(
    r"model\.layers\.\d+\.(?:"
    r"self_attn\.(?:q_proj|k_proj|v_proj|o_proj|qkv_proj|dense)"
    r"|mlp\.(?:gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|c_fc|c_proj))"
)
"""Linear layers that are at one path, with one weight, in mlx-lm's and in Hugging Face's models."""


def write_mlx_lm_adapter(folder: Path, adapter: Adapter, lora: LoraConfig, layers: int) -> None:
    """Write an adapter as mlx-lm has it: `mlx_lm.load(base, adapter_path=folder)` then computes with it.

    layers: blocks of the base. mlx-lm names layers within a block, and puts an adapter on each layer of such a name;
    where this adapter has none, that one stays at its start and changes nothing.
    Raises ClaraError for an adapter of another rank or base, a folder that is not empty, and a failed write.
    """
    _require_rank(adapter, lora.rank)
    keys = {_key(path, layers) for path in adapter}
    parameters = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout, "keys": sorted(keys)}
    weights = {f"{path}.{name}": pair[name] for path, pair in adapter.items() for name in ("lora_a", "lora_b")}
    with _written(folder) as place:
        _write_json(
            place / "adapter_config.json",
            {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters},
        )
        mx.save_safetensors(str(place / "adapters.safetensors"), weights, metadata={"format": "mlx"})


def write_peft_adapter(folder: Path, adapter: Adapter, lora: LoraConfig, base_name: str) -> None:
    """Write an adapter as PEFT has it, for the base of Hugging Face id or folder `base_name` in transformers.

    Each layer has `lora_A.weight: float[R, in]` and `lora_B.weight: float[out, R]`.
    Raises ClaraError for layers that transformers keeps elsewhere or otherwise than mlx-lm (experts and routers,
    the language part of a model with vision, …), and otherwise as `write_mlx_lm_adapter`.
    """
    _require_rank(adapter, lora.rank)
    if odd := sorted(path for path in adapter if not SAME_IN_TRANSFORMERS.fullmatch(path)):
        raise ClaraError(
            f"{folder}: PEFT's format names layers as transformers does, which is not known to have {odd[0]!r} of "
            f"mlx-lm ({len(odd)} of {len(adapter)} layers); write mlx-lm's format, or a fused base, instead"
        )
    weights = {
        f"base_model.model.{path}.{theirs}.weight": pair[ours].T
        for path, pair in adapter.items()
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B"))
    }
    with _written(folder) as place:
        _write_json(place / "adapter_config.json", _peft_config(adapter, lora, base_name))
        mx.save_safetensors(str(place / "adapter_model.safetensors"), weights, metadata={"format": "pt"})


def write_fused(
    folder: Path, loaded: LoadedBase, adapter: Adapter | None, lora: LoraConfig, dequantize: bool = False
) -> None:
    """Write a base with the adapter merged into its weights, as a folder that mlx-lm and `load_base` open.

    Every weight keeps its dtype and its quantisation; with `dequantize` all are plain, and nothing of the adapter is
    lost to rounding in few bits. The base in memory stays as it is. Tokenizer, chat template and end tokens go with
    it. An adapter of None gives the base itself.
    Raises ClaraError for an adapter of another rank or base, a quantisation that cannot be undone though it was
    asked for, a folder that is not empty, and a failed write.
    """
    adapter = adapter or {}
    if adapter:
        _require_rank(adapter, lora.rank)
        _require_fit(loaded, adapter)
    module = fuse(loaded.module, adapter, lora.scale, dequantize)
    if dequantize and (packed := _packed(module)):
        raise ClaraError(f"{loaded.name}: {packed} is quantised in a way that cannot be undone; fuse it as it is")
    config = _fused_config(loaded, dequantize)
    with _written(folder) as place:
        # Donated, so that no more than one file's worth of merged weights exists at a time.
        save_model(place, module, donate_model=True)
        save_config(config, place / "config.json", keep_vision_config="vision_tower" in module.get("model", {}))
        _save_tokenizer(loaded.tokenizer, place)


def fuse(module: nn.Module, adapter: Adapter, scale: float, dequantize: bool = False) -> nn.Module:
    """Return a module with the adapter merged into its linear layers; `module` stays as it is.

    It shares every other array with `module`, unless `dequantize` makes those plain too.
    """
    parts = dict(module.named_modules())
    merged = {path: merge_linear(parts[path], pair, scale, dequantize) for path, pair in adapter.items()}
    twin = share(module, merged)
    return dequantize_module(twin) if dequantize else twin


def merge_linear(
    linear: nn.Module, pair: Mapping[str, mx.array], scale: float, dequantize: bool = False
) -> nn.Linear | nn.QuantizedLinear:
    """Return a linear layer of weight W + scale · (A B)ᵀ, merged in float32, in the dtype of the one given.

    A quantised one is quantised again as in `quantize_like`, or plain with `dequantize`.
    """
    if not isinstance(linear, nn.QuantizedLinear):
        merged: nn.Linear = share(linear, {})
        merged.weight = merge_lora(linear.weight, pair, scale)
        return merged
    plain: nn.Linear = dequantize_module(nn.Sequential(linear), mx.float32).layers[0]
    plain.weight = merge_lora(plain.weight, pair, scale)
    if not dequantize:
        return quantize_like(linear, plain.weight)
    plain.weight = plain.weight.astype(dequantize_module(nn.Sequential(linear)).layers[0].weight.dtype)
    return plain


def quantize_like(layer: nn.QuantizedLinear, weight: mx.array) -> nn.QuantizedLinear:
    """Return the layer with weight: float32[out, in] in its own bits, group size, mode and dtype.

    Each group of an affine layer has `mx.quantize`'s scale and bias, or keeps those it had where that comes nearer:
    weights that hardly moved lie on the old grid, and a new one, seldom the same, would blur all of them.
    """
    how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    twin: nn.QuantizedLinear = share(layer, {})
    packed, *grid = mx.quantize(weight, **how)
    if layer.mode != "affine":
        twin.weight, twin.scales = packed, grid[0]
        return twin
    scales, biases = grid[0].astype(layer.scales.dtype), grid[1].astype(layer.biases.dtype)
    kept = _on_grid(weight, layer.scales, layer.biases, layer.bits)

    def distance(codes: mx.array, steps: mx.array, zeros: mx.array) -> mx.array:
        off = mx.dequantize(codes, steps.astype(mx.float32), zeros.astype(mx.float32), **how) - weight
        return mx.square(off).reshape(*steps.shape, -1).sum(axis=-1)

    keep = distance(kept, layer.scales, layer.biases) <= distance(packed, scales, biases)
    words = mx.where(keep[..., None], *(part.reshape(*keep.shape, -1) for part in (kept, packed)))
    twin.weight = words.reshape(packed.shape)
    twin.scales, twin.biases = mx.where(keep, layer.scales, scales), mx.where(keep, layer.biases, biases)
    return twin


def _on_grid(weight: mx.array, scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    """Return uint32[out, in · bits / 32]: the nearest codes of weight: float[out, in] to given scales and biases."""
    steps, zeros = (part.astype(mx.float32)[..., None] for part in (scales, biases))
    codes = mx.round((weight.reshape(*scales.shape, -1) - zeros) / mx.where(steps == 0, 1, steps))
    places = mx.clip(codes, 0, 2**bits - 1).astype(mx.uint32).reshape(len(weight), -1, 32)
    words = [mx.zeros(places.shape[:2], mx.uint32)] * (bits + 1)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        words[word] = words[word] | (places[..., i] << shift)
        if shift + bits > 32:
            words[word + 1] = words[word + 1] | (places[..., i] >> (32 - shift))
    return mx.stack(words[:bits], axis=-1).reshape(len(weight), -1)


def _require_rank(adapter: Adapter, rank: int) -> None:
    """Raise ClaraError for an adapter without layers or of another rank."""
    if not adapter:
        raise ClaraError("the adapter has no layers: there is nothing to write")
    for path, pair in adapter.items():
        found = {pair["lora_a"].shape[1], pair["lora_b"].shape[0]}
        if found != {rank}:
            raise ClaraError(f"the adapter's {path} has rank {min(found - {rank})}; its configuration says {rank}")


def _require_fit(loaded: LoadedBase, adapter: Adapter) -> None:
    """Raise ClaraError for an adapter of layers that the base does not have in that shape."""
    parts = dict(loaded.module.named_modules())
    for path, pair in adapter.items():
        if type(parts.get(path)) not in LINEARS:
            raise ClaraError(f"{loaded.name}: the adapter names {path!r}, which is no linear layer of this base")
        found = pair["lora_a"].shape[0], pair["lora_b"].shape[1]
        if found != (wanted := linear_shape(parts[path])):
            raise ClaraError(f"{loaded.name}: the adapter's {path} maps {found}; the base's layer maps {wanted}")


def _key(path: str, layers: int) -> str:
    """Return the part of a layer's path that is within its block."""
    found = IN_BLOCK.fullmatch(path)
    if found is None or int(found["block"]) >= layers:
        raise ClaraError(f"the adapter names {path!r}, which is in none of the base's {layers} blocks")
    return found["key"]


def _peft_config(adapter: Adapter, lora: LoraConfig, base_name: str) -> dict[str, Any]:
    """Return what PEFT needs to know of an adapter; other fields have PEFT's defaults."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({path.rpartition(".")[2] for path in adapter}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _fused_config(loaded: LoadedBase, dequantize: bool) -> dict[str, Any]:
    """Return the base's configuration with all of its tokenizer's end tokens, and without quantisation if asked."""
    left_out = ("quantization", "quantization_config") if dequantize else ()
    config = {key: value for key, value in loaded.config.items() if key not in left_out}
    stated, ends = config.get("eos_token_id"), sorted(loaded.tokenizer.eos_ids)
    if set(stated if isinstance(stated, list) else [stated]) != set(ends):
        config["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return config


def _packed(module: nn.Module) -> str:
    """Return the name of a weight that is stored in packed integers, or an empty string."""
    leaves = tree_flatten(module.parameters())
    return next((name for name, leaf in leaves if leaf.dtype in (mx.uint8, mx.uint32)), "")


def _save_tokenizer(tokenizer: Tokenizer, place: Path) -> None:
    """Write a tokenizer and its chat template. Raises RuntimeError where that fails."""
    try:
        tokenizer.hf.save_pretrained(place)
    except Exception as error:  # tokenizers raises nothing more exact where a disk is full
        raise RuntimeError(f"the tokenizer: {error}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file for people to read, too."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """As `staged`; the RuntimeError that MLX raises where a disk is full becomes ClaraError too."""
    try:
        with staged(folder) as place:
            yield place
    except RuntimeError as error:
        raise ClaraError(f"{folder}: cannot be written ({error})") from error
