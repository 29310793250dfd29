"""Reads llama-architecture GGUF files into mlx-lm's names, layout and configuration."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from clara.io.errors import ClaraError

GROUP_SIZE = 32  # of every quantised block that `mx.load` keeps quantised
ADVICE = "give the base as a folder with config.json and safetensors instead"
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Gguf(NamedTuple):
    """What a GGUF file holds: mlx-lm's configuration, weights by mlx-lm's names, and the raw metadata."""

    config: dict[str, Any]
    weights: dict[str, mx.array]
    metadata: dict[str, Any]


def load_gguf(path: Path | str) -> Gguf:
    """Return configuration, weights and metadata of a llama-architecture GGUF file.

    Q4_0, Q4_1 and Q8_0 tensors stay quantised (`weight: uint32[out, in * bits / 32]`, `scales` and `biases:
    float16[out, in / 32]`), other block formats arrive as float16. Rows of q and k are put back into the
    order of the Hugging Face weights. `config["quantization"]` has one entry for each quantised module.
    Raises ClaraError for a file that is missing, damaged or of another architecture.
    """
    tensors, metadata = _read(Path(path))
    architecture = metadata.get("general.architecture")
    if architecture != "llama" or metadata_value(metadata, "llama.expert_count", 0):
        found = "llama with experts" if architecture == "llama" else repr(architecture)
        raise ClaraError(f"{path}: architecture {found}; only dense llama GGUF is read, so {ADVICE}")
    config = _config(tensors, metadata, str(path))
    return Gguf(config, _rename(tensors, config, str(path)), metadata)


def metadata_value(metadata: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return a scalar of GGUF metadata as a Python value, or the default if the key is absent."""
    value = metadata.get(key, default)
    if not isinstance(value, mx.array):
        return value
    item = value.item()
    # float32 as written in the original configuration: 1e-05, not 9.999999747378752e-06
    return float(f"{item:.7g}") if isinstance(item, float) else item


def unpermute_rows(rows: mx.array, heads: int) -> mx.array:
    """Return q or k rows from llama.cpp's rotary order in halves: (heads, D/2, 2) → (heads, 2, D/2).

    `rows: any[heads * D, ...]`, a weight, its scales, its quantisation biases or a bias alike.
    """
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def _read(path: Path) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Return the tensors and the metadata of a GGUF file as MLX reads them."""
    if not path.is_file():
        raise ClaraError(f"{path}: no such file; a .gguf file is wanted")
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ClaraError(f"{path}: begins with {magic!r} where a GGUF file begins with b'GGUF'; fetch it again")
    try:
        loaded: Any = mx.load(str(path), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise ClaraError(f"{path}: MLX cannot read this GGUF file ({error}); fetch it again, or {ADVICE}") from error
    tensors, metadata = loaded
    return tensors, metadata


def _config(tensors: dict[str, mx.array], metadata: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the configuration that mlx-lm's llama wants, in Hugging Face's words."""
    names = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "max_position_embeddings": "context_length",
    }
    missing = [f"llama.{key}" for key in names.values() if f"llama.{key}" not in metadata]
    missing += [name for name in ("token_embd.weight", "output_norm.weight") if name not in tensors]
    if missing:
        raise ClaraError(f"{path}: lacks {', '.join(missing)}; the file is not a whole llama model, so {ADVICE}")
    config = {name: metadata_value(metadata, f"llama.{key}") for name, key in names.items()}
    heads = config["num_attention_heads"]
    config |= {
        "model_type": "llama",
        "num_key_value_heads": metadata_value(metadata, "llama.attention.head_count_kv", heads),
        "head_dim": metadata_value(metadata, "llama.attention.key_length", config["hidden_size"] // heads),
        "rope_theta": metadata_value(metadata, "llama.rope.freq_base", 10000.0),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "bos_token_id": metadata_value(metadata, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata_value(metadata, "tokenizer.ggml.eos_token_id"),
    }
    if scaling := _rope_scaling(tensors, metadata, config, path):
        config["rope_scaling"] = scaling
    if quantization := _quantization(tensors):
        config["quantization"] = quantization
    return config


def _quantization(tensors: dict[str, mx.array]) -> dict[str, Any]:
    """Return mlx-lm's quantisation entry, one item a module; empty where nothing is quantised."""
    modules = {}
    for name, scales in tensors.items():
        if name.endswith(".scales"):
            stem = name.removesuffix(".scales")
            bits = tensors[f"{stem}.weight"].shape[-1] // scales.shape[-1]
            modules[_module_name(stem) or stem] = {"group_size": GROUP_SIZE, "bits": bits}
    return {"group_size": GROUP_SIZE, "bits": 4, **modules} if modules else {}


def _rope_scaling(
    tensors: dict[str, mx.array], metadata: dict[str, Any], config: dict[str, Any], path: str
) -> dict[str, Any] | None:
    """Return the rotary scaling: none, linear, or Llama 3's, of which GGUF keeps a factor per frequency."""
    if ROPE_FACTORS in tensors:
        stored: list[float] = tensors[ROPE_FACTORS].tolist()  # type: ignore[assignment]
        expected = llama3_rope_factors(config["rope_theta"], config["head_dim"], max(stored))
        if len(stored) == len(expected) and all(map(lambda a, b: math.isclose(a, b, rel_tol=1e-3), stored, expected)):
            return {"rope_type": "llama3", "factor": round(max(stored), 4), **LLAMA3_ROPE}
        raise ClaraError(f"{path}: {ROPE_FACTORS} are not Llama 3's rotary factors; {ADVICE}")
    kind = metadata_value(metadata, "llama.rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata_value(metadata, "llama.rope.scaling.factor", 1.0)}
    if kind != "none":
        raise ClaraError(f"{path}: rotary scaling {kind!r}; none, linear and Llama 3's are read, so {ADVICE}")
    return None


def llama3_rope_factors(theta: float, head_dim: int, factor: float) -> list[float]:
    """Return by how much Llama 3.1 and later slow each of the head_dim / 2 rotary frequencies down."""
    low, high, old = LLAMA3_ROPE.values()
    factors = []
    for i in range(0, head_dim, 2):
        turns = old / (2 * math.pi * theta ** (i / head_dim))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _rename(tensors: dict[str, mx.array], config: dict[str, Any], path: str) -> dict[str, mx.array]:
    """Return the tensors under mlx-lm's names, with q and k unpermuted."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights, unknown = {}, []
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        module = _module_name(stem)
        if module is None:
            unknown += [name] if name != ROPE_FACTORS else []
            continue
        kind = stem.rpartition(".")[2]
        weights[f"{module}.{part}"] = unpermute_rows(tensor, heads[kind]) if kind in heads else tensor
    if unknown:
        listed = ", ".join(sorted(unknown)[:5])
        raise ClaraError(f"{path}: {len(unknown)} tensors that mlx-lm's llama has no place for ({listed}); {ADVICE}")
    return weights


def _module_name(stem: str) -> str | None:
    """Return mlx-lm's name for a GGUF module such as `blk.3.attn_q`, or None for an unknown one."""
    if stem in OUTER:
        return OUTER[stem]
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    return f"model.layers.{block[1]}.{BLOCK[block[2]]}" if block and block[2] in BLOCK else None
