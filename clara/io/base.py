"""Loads a frozen base with its tokenizer: from a folder, a GGUF file, the hub, or by a built-in name."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from mlx.utils import tree_unflatten
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from clara.core.measure import storage_formats
from clara.io.download import BUILTIN, fetch_builtin
from clara.io.errors import ClaraError
from clara.io.gguf import load_gguf
from clara.io.shard import shard_base
from clara.io.tokens import Tokenizer, load_tokenizer, tokenizer_from_gguf

SMALL_BYTES = 1 << 30
"""A quantised base that takes no more than this in bfloat16 is dequantised on a GPU."""

WHOLE_BYTES = 4 << 20
SAMPLES, SAMPLE_BYTES = 16, 64 << 10
TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "tokenizer*")
VOLATILE_KEYS = ("_name_or_path", "transformers_version")
PLAIN = {
    nn.QuantizedLinear: nn.Linear,
    nn.QuantizedEmbedding: nn.Embedding,
    QuantizedSwitchLinear: SwitchLinear,
    QuantizedMultiLinear: MultiLinear,
}


class LoadedBase(NamedTuple):
    """A frozen base: its module, tokenizer, name as given, configuration of the module, and fingerprint."""

    module: nn.Module
    tokenizer: Tokenizer
    name: str
    config: dict[str, Any]
    fingerprint: str
    formats: tuple[str, ...]
    """How the weights are stored, before any dequantising: "bfloat16", "4 bits, groups of 64, affine"."""


def load_base(
    name: str,
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
    progress: bool = True,
    group: Any = None,
) -> LoadedBase:
    """Return a base, frozen and in eval mode, with its weights in memory.

    `name` is a folder in Hugging Face's or MLX's layout, a .gguf file, a built-in name or a Hugging Face id.
    `dtype` is what floating weights are cast to. Unless told otherwise, a base is dequantised to float32 on
    a CPU, where only float32 products are fast, and a quantised one of up to `SMALL_BYTES` to bfloat16 on a
    GPU, which multiplies small packed weights no faster; any other stays as stored. A dequantised base has no
    "quantization" in its config. `group` is one of MLX's processes, over which the blocks are cut: only this
    process's parts are then kept.
    Raises ClaraError that says what is missing or wrong, and where.
    """
    path = locate_base(name, progress)
    module, config, tokenizer = _load_file(path) if path.is_file() else _load_folder(path)
    formats = storage_formats(module)
    usual = default_dtype(module)
    dequantize = usual is not None if dequantize is None else dequantize
    dtype = usual if dtype is None and dequantize else dtype
    if dequantize:
        dequantize_module(module, dtype)
        config = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    if dtype is not None:
        module.set_dtype(dtype)
    if group is not None:
        shard_base(module, name, group)
    module.freeze()
    module.eval()
    mx.eval(module.parameters())
    return LoadedBase(module, tokenizer, name, config, fingerprint(path), formats)


def default_dtype(module: nn.Module) -> mx.Dtype | None:
    """Return what a base is dequantised to where nothing else is asked for: float32, bfloat16, or None for not at all.

    float32 on a CPU; bfloat16 on a GPU for a quantised base that then takes at most `SMALL_BYTES`.
    """
    if mx.default_device() == mx.cpu:
        return mx.float32
    packed = [part for part in module.modules() if type(part) in PLAIN]
    size = sum(part.weight.size * 32 // part.bits * mx.bfloat16.size for part in packed)
    return mx.bfloat16 if packed and size <= SMALL_BYTES else None


def load_base_tokenizer(name: str, progress: bool = True) -> Tokenizer:
    """Return the tokenizer of a base, as `load_base` has it; of a Hugging Face id no weights are fetched for that."""
    path = locate_base(name, progress, TOKENIZER_FILES)
    return tokenizer_from_gguf(load_gguf(path).metadata, str(path)) if path.is_file() else load_tokenizer(path)


def locate_base(name: str, progress: bool = True, patterns: Sequence[str] | None = None) -> Path:
    """Return the folder or .gguf file of a base, fetched if it is a built-in name or a Hugging Face id.

    patterns: of the files that are fetched from the hub, where not all are wanted.
    """
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ClaraError(f"{path}: a base is a folder or a .gguf file; give the folder that this file is in")
    if name in BUILTIN:
        return fetch_builtin(name, progress)
    if name.startswith(("/", ".", "~")) or path.suffix == ".gguf" or name.count("/") != 1:
        raise ClaraError(
            f"{name}: no such folder or .gguf file, no built-in base ({', '.join(sorted(BUILTIN))}) "
            "and no Hugging Face id, which has the form owner/name"
        )
    return _download(name, progress, patterns)


def dequantize_module(module: nn.Module, dtype: mx.Dtype | None = None) -> nn.Module:
    """Return the module, changed in place: its quantised layers are plain ones with weights of `dtype`.

    Without a dtype they get that of their scales, or bfloat16 where scales are bytes. Layers that mlx-lm
    quantises in a way of their own are left.
    """
    replaced = [
        (name, _dequantize_layer(layer, dtype)) for name, layer in module.named_modules() if type(layer) in PLAIN
    ]
    if replaced:
        module.update_modules(tree_unflatten(replaced))
    return module


def fingerprint(path: Path) -> str:
    """Return 16 hexadecimal digits that identify the base stored in a folder or a .gguf file.

    They are the beginning of a SHA-256. Of a GGUF file it covers every byte. Of a folder it covers
    config.json, but for the keys in `VOLATILE_KEYS`, and of each tensor in model*.safetensors, in the order
    of their names: name, dtype, shape, and content, which is every byte of a tensor of up to 4 MiB and of a
    larger one 16 blocks of 64 KiB at even distances, first and last included. How tensors are spread over
    files does not matter.
    """
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as stream:
            while chunk := stream.read(WHOLE_BYTES):
                digest.update(chunk)
        return digest.hexdigest()[:16]
    config = json.loads((path / "config.json").read_bytes())
    kept = {key: value for key, value in config.items() if key not in VOLATILE_KEYS}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    tensors = [entry for file in path.glob("model*.safetensors") for entry in _tensor_places(file)]
    for name, about, file, start, size in sorted(tensors):
        digest.update(f"\n{name} {about} {size}\n".encode())
        for block in _sampled(file, start, size):
            digest.update(block)
    return digest.hexdigest()[:16]


def _tensor_places(file: Path) -> Iterator[tuple[str, str, Path, int, int]]:
    """Yield (name, dtype and shape, file, first byte, bytes) of each tensor in a safetensors file."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            yield name, f"{entry['dtype']} {entry['shape']}", file, 8 + length + first, last - first


def _sampled(file: Path, start: int, size: int) -> Iterator[bytes]:
    """Yield the whole of a small tensor, and blocks at even distances of a large one."""
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            stream.seek(start)
            yield stream.read(size)
            return
        for i in range(SAMPLES):
            stream.seek(start + i * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            yield stream.read(SAMPLE_BYTES)


def _load_file(path: Path) -> tuple[nn.Module, dict[str, Any], Tokenizer]:
    """Return module, configuration and tokenizer of a GGUF file, quantised as stored."""
    config, weights, metadata = load_gguf(path)
    tokenizer = tokenizer_from_gguf(metadata, str(path))
    model_class, arguments = mlx_lm_utils._get_classes(config)
    module: nn.Module = model_class(arguments.from_dict(config))
    modules = config.get("quantization", {})
    nn.quantize(module, class_predicate=lambda name, _: modules.get(name, False))
    try:
        module.load_weights(list(weights.items()))
    except ValueError as error:
        raise ClaraError(f"{path}: its tensors do not fit its metadata ({error}); fetch the file again") from error
    return module, config, tokenizer


def _load_folder(folder: Path) -> tuple[nn.Module, dict[str, Any], Tokenizer]:
    """Return module, configuration and tokenizer of a folder, quantised as stored."""
    missing = [what for what, found in _contents(folder) if not found]
    if missing:
        raise ClaraError(
            f"{folder}: not a whole base: no {', no '.join(missing)}. "
            "Copy what is missing from where the base came from"
        )
    try:
        module, config = mlx_lm_utils.load_model(folder, lazy=True)
    except Exception as error:  # mlx-lm's models raise whatever their config parsing meets
        raise ClaraError(f"{folder}: mlx-lm cannot load this base: {error or type(error).__name__}") from error
    return module, config, load_tokenizer(folder)


def _contents(folder: Path) -> Iterable[tuple[str, bool]]:
    """Yield (what a base's folder needs, whether it is there)."""
    yield "config.json", (folder / "config.json").is_file()
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for shard in sorted(set(json.loads(index.read_bytes())["weight_map"].values())):
            yield shard, (folder / shard).is_file()
    else:
        yield "model*.safetensors", any(folder.glob("model*.safetensors"))
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    yield "tokenizer.json", any((folder / name).is_file() for name in names)


def _dequantize_layer(layer: Any, dtype: mx.Dtype | None) -> nn.Module:
    """Return the plain counterpart of a quantised layer."""
    floating = mx.issubdtype(layer.scales.dtype, mx.floating)
    if dtype is None:
        dtype = layer.scales.dtype if floating else mx.bfloat16
    # Scales are cast before they are multiplied: a product of float16 would be rounded.
    scales = layer.scales.astype(dtype) if floating else layer.scales
    biases = None if layer.get("biases") is None else layer.biases.astype(dtype)
    weight = mx.dequantize(
        layer.weight,
        scales,
        biases,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
        dtype=dtype,
    )
    plain: nn.Module = PLAIN[type(layer)](*[1] * (2 if weight.ndim == 2 else 3))
    plain.weight = weight
    if isinstance(layer, nn.QuantizedLinear | QuantizedSwitchLinear):
        plain.pop("bias", None)
        if "bias" in layer:
            plain.bias = layer.bias
    return plain


def _download(name: str, progress: bool, patterns: Sequence[str] | None) -> Path:
    """Return the folder of a Hugging Face id, downloaded or from the hub's cache."""
    quiet = not progress and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        return Path(mlx_lm_utils._download(name, allow_patterns=patterns and list(patterns)))
    except Exception as error:  # of the hub's client, its HTTP library or the system
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ClaraError(
            f"{name}: neither a local folder nor to be had from the Hugging Face hub ({said}). "
            "Check the name and the network, run `hf auth login` for a gated base, "
            f"give a local folder, or use {', '.join(sorted(BUILTIN))}"
        ) from error
    finally:
        if quiet:
            enable_progress_bars()
