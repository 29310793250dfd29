"""Exported adapters: other tools compute with them what clara computes, or nothing at all is written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from folders import CHAT_TEMPLATE, SPECIAL, VOCAB_SIZE, tiny_folder
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tiny import COMMON, assert_same, difference, same_bits, snapshot, tiny_adapter, tiny_module
from tiny import SPECIAL as PARTICULAR
from tokenizers import pre_tokenizers

from clara.core.bind import adapted_linears, anatomy, bind, head, hidden_states, part_of
from clara.core.config import LoraConfig
from clara.core.lora import lora_linear, merge_lora
from clara.core.types import Adapter
from clara.io.base import LoadedBase, load_base
from clara.io.errors import ClaraError
from clara.io.export import fuse, merge_linear, quantize_like, write_fused, write_mlx_lm_adapter, write_peft_adapter
from clara.io.tokens import encode

LAYERS, GROUP_SIZE = 2, 32
LORA = LoraConfig(rank=4, alpha=6.0, dropout=0.1)
TOKENS = mx.array([[3, 200, 17, 17, 90, 41, 5]])
UNEVEN = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj", "model.layers.1.self_attn.q_proj")
CONVERSATION = [{"role": "user", "content": "Which <|im_end|> lamp?"}]


def base_folder(path: Path, model_type: str = "llama", bits: int = 0, dtype: mx.Dtype = mx.float32) -> Path:
    """Return the folder of a tiny random base: in `dtype`, and where bits are given quantised as a GGUF file's is."""
    tiny_folder(path)
    module = tiny_module(model_type, vocab_size=VOCAB_SIZE)
    module.set_dtype(dtype)
    config: dict[str, Any] = COMMON | PARTICULAR.get(model_type, {})
    config |= {"model_type": model_type, "tie_word_embeddings": True, "vocab_size": VOCAB_SIZE, "eos_token_id": 2}
    if bits:
        each = {name: {"group_size": GROUP_SIZE, "bits": bits} for name in adapted_linears(module)}
        each[anatomy(module).embedding] = {"group_size": GROUP_SIZE, "bits": 8}
        nn.quantize(module, class_predicate=lambda name, _: each.get(name, False))
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": bits, **each}
    (path / "config.json").write_text(json.dumps(config))
    # MLX may still have an older file of this name open: take a new one.
    (path / "model.safetensors").unlink()
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(module.parameters())))
    return path


def as_stored(path: Path) -> LoadedBase:
    """Return the base of a folder with its weights in the dtypes that they have there."""
    module, config = mlx_lm_utils.load_model(path)
    return load_base(str(path))._replace(module=module, config=config)


def stored(path: Path) -> dict[str, mx.array]:
    """Return all tensors of a folder, in memory."""
    tensors: dict[str, Any] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= mx.load(str(file))  # type: ignore[arg-type]
    mx.eval(tensors)
    return tensors


def logits(module: nn.Module, adapter: Adapter | None = None) -> mx.array:
    """Return float[1, T, V]: what clara computes of `TOKENS`."""
    embeddings = part_of(module, anatomy(module).embedding)(TOKENS)
    return head(module)(hidden_states(module, embeddings, adapter, scale=LORA.scale))


def some_of(adapter: Adapter) -> Adapter:
    """Return the part of an adapter that is on a few layers, others in each block."""
    return {path: adapter[path] for path in UNEVEN}


def muted(adapter: Adapter) -> Adapter:
    """Return an adapter that changes nothing."""
    return {path: {**pair, "lora_b": mx.zeros_like(pair["lora_b"])} for path, pair in adapter.items()}


@pytest.mark.parametrize("choose", [dict, some_of], ids=["all layers", "some layers"])
@pytest.mark.parametrize(("model_type", "bits"), [("llama", 0), ("qwen3", 0), ("llama", 4)])
def test_mlx_lm_computes_with_the_adapter_what_clara_does(
    model_type: str, bits: int, choose: Callable[[Adapter], Adapter], tmp_path: Path
) -> None:
    base = base_folder(tmp_path / "base", model_type, bits)
    module = as_stored(base).module
    adapter = choose(tiny_adapter(module))
    write_mlx_lm_adapter(tmp_path / "adapter", adapter, LORA, LAYERS)
    theirs, _ = mlx_lm.load(str(base), adapter_path=str(tmp_path / "adapter"))
    assert difference(theirs(TOKENS), logits(module, adapter)) < 1e-5
    assert difference(logits(module), logits(module, adapter)) > 0.1


def test_mlx_lm_s_adapter_has_its_names_and_numbers(tmp_path: Path) -> None:
    adapter = some_of(tiny_adapter(tiny_module()))
    write_mlx_lm_adapter(tmp_path / "adapter", adapter, LORA, LAYERS)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes()) == {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {
            "rank": 4,
            "scale": 1.5,
            "dropout": 0.1,
            "keys": ["mlp.gate_proj", "self_attn.q_proj"],
        },
    }
    expected = {f"{path}.{name}": leaf for path, pair in adapter.items() for name, leaf in pair.items()}
    assert_same(stored(tmp_path / "adapter"), expected)


@pytest.mark.parametrize("path", ["model.layers.2.mlp.up_proj", "lm_head", "model.layers.0"])
def test_a_layer_outside_the_blocks_is_refused(path: str, tmp_path: Path) -> None:
    adapter = {path: tiny_adapter(tiny_module())[UNEVEN[0]]}
    with pytest.raises(ClaraError, match=f"'{path}', which is in none of the base's 2 blocks"):
        write_mlx_lm_adapter(tmp_path / "adapter", adapter, LORA, LAYERS)
    assert list(tmp_path.iterdir()) == []


@given(rank=st.integers(1, 6), alpha=st.floats(0.25, 64), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_peft_s_formula_gives_what_clara_computes(
    rank: int, alpha: float, size: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    pair = {"lora_a": mx.random.normal((size[0], rank)), "lora_b": mx.random.normal((rank, size[1]))}
    lora = LoraConfig(rank=rank, alpha=alpha)
    write_peft_adapter(folder, {UNEVEN[0]: pair}, lora, "owner/base")
    config, tensors = json.loads((folder / "adapter_config.json").read_bytes()), stored(folder)
    down, up = (tensors[f"base_model.model.{UNEVEN[0]}.lora_{name}.weight"] for name in "AB")
    assert (down.shape, up.shape, len(tensors)) == ((rank, size[0]), (size[1], rank), 2)
    x = mx.random.normal((3, size[0]))
    theirs = (x @ down.T @ up.T) * (config["lora_alpha"] / config["r"])
    ours = lora_linear(lambda _: mx.zeros((3, size[1])), x, pair, lora.scale)
    assert difference(theirs, ours) < 1e-5


def test_peft_s_configuration_is_complete(tmp_path: Path) -> None:
    write_peft_adapter(tmp_path / "adapter", some_of(tiny_adapter(tiny_module())), LORA, "owner/base")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "owner/base",
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "target_modules": ["gate_proj", "q_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    found: Any = mx.load(str(tmp_path / "adapter" / "adapter_model.safetensors"), return_metadata=True)
    assert found[1] == {"format": "pt"}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "olmo2"])
def test_architectures_with_the_names_of_transformers_are_written_whole(model_type: str, tmp_path: Path) -> None:
    adapter = tiny_adapter(tiny_module(model_type))
    write_peft_adapter(tmp_path / "adapter", adapter, LORA, "owner/base")
    names = {f"base_model.model.{path}.lora_{part}.weight" for path in adapter for part in "AB"}
    assert stored(tmp_path / "adapter").keys() == names


@pytest.mark.parametrize(
    "path",
    [
        "model.layers.0.mlp.switch_mlp.up_proj",
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.shared_experts.up_proj",
        "language_model.model.layers.0.self_attn.q_proj",
        "model.h.0.attn.q_proj",
        "model.layers.0.self_attn.q_proj.linear",
    ],
)
def test_what_transformers_keeps_otherwise_is_refused(path: str, tmp_path: Path) -> None:
    adapter = tiny_adapter(tiny_module())
    with pytest.raises(ClaraError, match=rf"adapter: PEFT's format .* '{path}' of mlx-lm \(1 of 15 layers\)"):
        write_peft_adapter(tmp_path / "adapter", adapter | {path: adapter[UNEVEN[0]]}, LORA, "owner/base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3", "olmo2", "granite"])
def test_a_fused_base_computes_what_base_and_adapter_do(model_type: str, tmp_path: Path) -> None:
    loaded = as_stored(base_folder(tmp_path / "base", model_type))
    adapter = tiny_adapter(loaded.module)
    write_fused(tmp_path / "fused", loaded, adapter, LORA)
    theirs, _ = mlx_lm.load(str(tmp_path / "fused"))
    expected = logits(loaded.module, adapter)
    assert difference(theirs(TOKENS), expected) < 1e-5
    assert difference(load_base(str(tmp_path / "fused")).module(TOKENS), expected) < 1e-5


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_every_weight_is_the_base_s_or_the_merged_one_bit_for_bit(dtype: mx.Dtype, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", dtype=dtype)
    loaded = as_stored(base)
    adapter = some_of(tiny_adapter(loaded.module))
    write_fused(tmp_path / "fused", loaded, adapter, LORA)
    merged = {
        f"{path}.weight": merge_lora(part_of(loaded.module, path).weight, pair, LORA.scale)
        for path, pair in adapter.items()
    }
    assert {leaf.dtype for leaf in merged.values()} == {dtype}
    assert_same(stored(tmp_path / "fused"), stored(base) | merged)


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("mute", [False, True], ids=["no adapter", "an adapter of zeros"])
def test_where_nothing_changes_the_base_comes_out_bit_for_bit(mute: bool, bits: int, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", bits=bits, dtype=mx.float16)
    loaded = as_stored(base)
    adapter = muted(tiny_adapter(loaded.module)) if mute else None
    write_fused(tmp_path / "fused", loaded, adapter, LORA)
    assert_same(stored(tmp_path / "fused"), stored(base))


def test_a_quantised_base_stays_quantised_as_it_was(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", bits=4, dtype=mx.bfloat16)
    loaded = as_stored(base)
    adapter = some_of(tiny_adapter(loaded.module))
    write_fused(tmp_path / "fused", loaded, adapter, LORA)
    before, after = stored(base), stored(tmp_path / "fused")
    forms = [{name: (leaf.shape, leaf.dtype) for name, leaf in each.items()} for each in (before, after)]
    assert forms[0] == forms[1]
    changed = {name for name in before if not same_bits(before[name], after[name])}
    assert changed <= {f"{path}.{part}" for path in adapter for part in ("weight", "scales", "biases")}
    assert changed >= {f"{path}.weight" for path in adapter}
    again = as_stored(tmp_path / "fused")
    assert again.config["quantization"] == loaded.config["quantization"]
    assert_same(again.module.parameters(), fuse(loaded.module, adapter, LORA.scale).parameters())


def quantized_layer(bits: int, group_size: int = GROUP_SIZE, mode: str = "affine") -> nn.QuantizedLinear:
    """Return a random quantised layer with a bias; what can be bfloat16 is."""
    layer = nn.Linear(128, 5)
    layer.weight = mx.random.normal((5, 128), key=mx.random.key(bits))
    layer.set_dtype(mx.bfloat16)
    return nn.QuantizedLinear.from_linear(layer, group_size, bits, mode=mode)


def mlx_s_own(layer: nn.QuantizedLinear, weight: mx.array) -> nn.QuantizedLinear:
    """Return the layer with a weight that MLX quantised, its scales and biases in the layer's dtype."""
    plain = nn.Linear(128, 5, bias=False)
    plain.weight = weight
    fresh = nn.QuantizedLinear.from_linear(plain, layer.group_size, layer.bits, mode=layer.mode)
    fresh.bias = layer.bias
    for name in ("scales", "biases"):
        if fresh.get(name) is not None:
            fresh[name] = fresh[name].astype(layer[name].dtype)
    return fresh


def opened(layer: nn.QuantizedLinear) -> mx.array:
    """Return float32[out, in]: the exact weight of a quantised layer."""
    grid = [part if part is None or part.dtype == mx.uint8 else part.astype(mx.float32) for part in grid_of(layer)]
    how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode, "dtype": mx.float32}
    return mx.dequantize(layer.weight, *grid, **how)


def grid_of(layer: nn.QuantizedLinear) -> tuple[mx.array, mx.array | None]:
    """Return the scales and biases of a quantised layer."""
    return layer.scales, layer.get("biases")


def by_group(layer: nn.QuantizedLinear, array: mx.array) -> mx.array:
    """Return any[out, groups, …]: weights or packed words by their groups."""
    return array.reshape(*layer.scales.shape, -1)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_weight_on_the_old_grid_keeps_its_codes(bits: int, group_size: int) -> None:
    layer = quantized_layer(bits, group_size)
    assert_same(quantize_like(layer, opened(layer)).parameters(), layer.parameters())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_weight_far_from_the_old_grid_is_quantised_as_mlx_does(bits: int) -> None:
    layer = quantized_layer(bits)
    weight = 9 * mx.random.normal((5, 128))
    assert_same(quantize_like(layer, weight).parameters(), mlx_s_own(layer, weight).parameters())


@pytest.mark.parametrize(("mode", "group_size", "bits"), [("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)])
def test_a_mode_without_biases_is_quantised_as_mlx_does(mode: str, group_size: int, bits: int) -> None:
    layer = quantized_layer(bits, group_size, mode)
    weight = opened(layer) + 0.1 * mx.random.normal((5, 128))
    assert_same(quantize_like(layer, weight).parameters(), mlx_s_own(layer, weight).parameters())


@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), move=st.floats(0.001, 2), seed=st.integers(0, 99))
def test_each_group_is_mlx_s_own_or_nearer_on_the_old_grid(bits: int, move: float, seed: int) -> None:
    layer = quantized_layer(bits)
    weight = opened(layer) + move * mx.random.normal((5, 128), key=mx.random.key(seed))
    found, fresh = quantize_like(layer, weight), mlx_s_own(layer, weight)
    words = mx.all(by_group(found, found.weight) == by_group(fresh, fresh.weight), axis=-1)
    is_fresh = words & (found.scales == fresh.scales) & (found.biases == fresh.biases)
    on_old = (found.scales == layer.scales) & (found.biases == layer.biases)
    assert mx.all(is_fresh | on_old)
    steps, zeros = (part.astype(mx.float32)[..., None] for part in (layer.scales, layer.biases))
    nearest = mx.clip(mx.round((by_group(layer, weight) - zeros) / steps), 0, 2**bits - 1) * steps + zeros
    choices = [by_group(found, opened(found)), by_group(fresh, opened(fresh)), nearest]
    errors = [mx.square(choice - by_group(layer, weight)).sum(axis=-1) for choice in choices]
    assert mx.all(errors[0] <= mx.minimum(errors[1], errors[2]) * (1 + 1e-5))


def test_a_group_of_one_value_only_is_no_division_by_zero() -> None:
    layer = quantized_layer(4)
    layer.scales[0, 0] = 0
    assert same_bits(opened(quantize_like(layer, opened(layer))), opened(layer))
    weight = opened(layer) + 0.3
    moved = opened(quantize_like(layer, weight))
    assert mx.max(mx.abs(moved - weight)) < 0.4


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_dequantised_everything_is_plain_and_keeps_the_dtype(dtype: mx.Dtype, tmp_path: Path) -> None:
    loaded = as_stored(base_folder(tmp_path / "base", bits=4, dtype=dtype))
    adapter = tiny_adapter(loaded.module)
    write_fused(tmp_path / "fused", loaded, adapter, LORA, dequantize=True)
    config = json.loads((tmp_path / "fused" / "config.json").read_bytes())
    assert not {"quantization", "quantization_config"} & config.keys()
    tensors = stored(tmp_path / "fused")
    assert {leaf.dtype for leaf in tensors.values()} == {dtype}
    for path, pair in adapter.items():
        exact = merge_lora(opened(part_of(loaded.module, path)), pair, LORA.scale)
        assert same_bits(tensors[f"{path}.weight"], exact.astype(dtype)), path
    if dtype == mx.float32:
        theirs, _ = mlx_lm.load(str(tmp_path / "fused"))
        assert difference(theirs(TOKENS), logits(loaded.module, adapter)) < 1e-5


def test_a_layer_keeps_its_bias() -> None:
    pair = {"lora_a": mx.random.normal((128, 4)), "lora_b": mx.random.normal((4, 5))}
    layer, x = quantized_layer(8), mx.random.normal((3, 128))
    plain = merge_linear(layer, pair, 0.5, dequantize=True)
    packed = merge_linear(layer, pair, 0.5)
    expected = lora_linear(layer, x, pair, 0.5)
    assert difference(plain(x), expected) < 0.01 and difference(packed(x), expected) < 0.02
    assert difference(merge_linear(plain, muted({"": pair})[""], 0.5)(x), plain(x)) == 0


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("bits", [0, 4])
def test_the_base_in_memory_stays_as_it_is(bits: int, dequantize: bool, tmp_path: Path) -> None:
    loaded = as_stored(base_folder(tmp_path / "base", bits=bits))
    before = snapshot(loaded.module), json.dumps(loaded.config)
    write_fused(tmp_path / "fused", loaded, tiny_adapter(loaded.module), LORA, dequantize)
    assert (snapshot(loaded.module), json.dumps(loaded.config)) == before


def test_the_tokenizer_goes_with_the_base(tmp_path: Path) -> None:
    loaded = as_stored(base_folder(tmp_path / "base"))
    write_fused(tmp_path / "fused", loaded, None, LORA)
    again = load_base(str(tmp_path / "fused")).tokenizer
    assert_tokenizers_agree(again, loaded.tokenizer)
    assert again.hf.chat_template == CHAT_TEMPLATE


def assert_tokenizers_agree(found: Any, wanted: Any) -> None:
    """Assert that two tokenizers give the same ids."""
    for name in ("vocab_size", "bos_id", "eos_id", "eos_ids", "pad_id", "chat_template"):
        assert getattr(found, name) == getattr(wanted, name), name
    text = "Héllo <|im_end|> 12\n\tworld \U0001f4a1"
    assert encode(found, text) == encode(wanted, text)
    chats = [each.hf.apply_chat_template(CONVERSATION, add_generation_prompt=True) for each in (found, wanted)]
    assert chats[0] == chats[1]


def write_gguf(path: Path) -> Path:
    """Return a GGUF file of a tiny llama whose turns end with another token than its texts."""
    block = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    block |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}
    shapes = {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()}
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    shapes |= {"token_embd": (len(names), 32), "output_norm": (32,)}
    numbers = {"embedding_length": 32, "feed_forward_length": 64, "block_count": LAYERS, "context_length": 128}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    metadata: dict[str, Any] = {f"llama.{key}": mx.array(value, mx.uint32) for key, value in numbers.items()}
    metadata |= {"general.architecture": "llama", "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5)}
    tokenizer: dict[str, Any] = {"ggml.model": "gpt2", "ggml.pre": "smollm", "ggml.tokens": names}
    tokenizer |= {"ggml.merges": ["h e"], "chat_template": CHAT_TEMPLATE}
    tokenizer["ggml.token_type"] = mx.array([3 if name in SPECIAL else 1 for name in names], mx.int32)
    for role, id_ in {"bos": 1, "eos": 0, "eot": 2, "padding": 0}.items():
        tokenizer[f"ggml.{role}_token_id"] = mx.array(id_, mx.uint32)
    metadata |= {f"tokenizer.{key}": value for key, value in tokenizer.items()}
    tensors = {f"{name}.weight": 0.3 * mx.random.normal(shape) for name, shape in shapes.items()}
    mx.save_gguf(str(path), tensors, metadata)
    return path


def test_a_base_out_of_a_gguf_file_becomes_a_folder(tmp_path: Path) -> None:
    loaded = load_base(str(write_gguf(tmp_path / "tiny.gguf")))
    assert loaded.tokenizer.eos_ids == {0, 2}
    adapter = tiny_adapter(loaded.module)
    write_fused(tmp_path / "fused", loaded, adapter, LORA)
    again = load_base(str(tmp_path / "fused"))
    assert_tokenizers_agree(again.tokenizer, loaded.tokenizer)
    assert difference(again.module(TOKENS), logits(loaded.module, adapter)) < 1e-5
    theirs, tokenizer = mlx_lm.load(str(tmp_path / "fused"))
    assert difference(theirs(TOKENS), logits(loaded.module, adapter)) < 1e-5
    assert tokenizer.eos_token_ids == {0, 2}


def test_a_large_base_is_spread_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = as_stored(base_folder(tmp_path / "base"))
    shards = mlx_lm_utils.make_shards
    monkeypatch.setattr(
        mlx_lm_utils, "make_shards", lambda tensors: [s for t in tensors for s in shards({t: tensors[t]})]
    )
    adapter = tiny_adapter(loaded.module)
    write_fused(tmp_path / "fused", loaded, adapter, LORA)
    assert len(list((tmp_path / "fused").glob("model-*-of-*.safetensors"))) == len(stored(tmp_path / "base"))
    assert difference(load_base(str(tmp_path / "fused")).module(TOKENS), logits(loaded.module, adapter)) < 1e-5


def write_mlx_lm(folder: Path, loaded: LoadedBase, adapter: Adapter) -> None:
    """Write mlx-lm's adapter."""
    write_mlx_lm_adapter(folder, adapter, LORA, LAYERS)


def write_peft(folder: Path, loaded: LoadedBase, adapter: Adapter) -> None:
    """Write PEFT's adapter."""
    write_peft_adapter(folder, adapter, LORA, "owner/base")


def write_base(folder: Path, loaded: LoadedBase, adapter: Adapter) -> None:
    """Write a fused base."""
    write_fused(folder, loaded, adapter, LORA)


WRITERS = pytest.mark.parametrize("write", [write_mlx_lm, write_peft, write_base])


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedBase:
    """Return a tiny base."""
    return as_stored(base_folder(tmp_path / "base"))


@WRITERS
def test_an_adapter_of_another_rank_is_refused(write: Callable[..., None], loaded: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=r"mlp\.down_proj has rank 8; its configuration says 4"):
        write(tmp_path / "out", loaded, tiny_adapter(loaded.module, rank=8))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [write_mlx_lm, write_peft])
def test_an_adapter_without_layers_is_refused(write: Callable[..., None], loaded: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match="no layers"):
        write(tmp_path / "out", loaded, {})


@pytest.mark.parametrize("path", ["model.layers.7.mlp.up_proj", "model.norm", "model.embed_tokens"])
def test_a_layer_that_the_base_does_not_have_is_refused(path: str, loaded: LoadedBase, tmp_path: Path) -> None:
    adapter = tiny_adapter(loaded.module)
    with pytest.raises(ClaraError, match=f"base: the adapter names '{path}', which is no linear layer"):
        write_fused(tmp_path / "out", loaded, adapter | {path: adapter[UNEVEN[0]]}, LORA)


def test_a_layer_of_another_size_is_refused(loaded: LoadedBase, tmp_path: Path) -> None:
    adapter = tiny_adapter(loaded.module)
    with pytest.raises(ClaraError, match=r"gate_proj maps \(64, 64\); the base's layer maps \(64, 96\)"):
        write_fused(tmp_path / "out", loaded, {UNEVEN[1]: adapter[UNEVEN[0]]}, LORA)


def test_a_quantisation_that_cannot_be_undone_is_refused(loaded: LoadedBase, tmp_path: Path) -> None:
    loaded.module.model.norm.weight = mx.zeros((64,), mx.uint8)
    with pytest.raises(ClaraError, match=r"base: model\.norm\.weight is quantised in a way that cannot be undone"):
        write_fused(tmp_path / "out", loaded, None, LORA, dequantize=True)
    write_fused(tmp_path / "out", loaded, None, LORA)
    assert stored(tmp_path / "out")["model.norm.weight"].dtype == mx.uint8


@WRITERS
def test_a_folder_with_something_in_it_is_left_alone(
    write: Callable[..., None], loaded: LoadedBase, tmp_path: Path
) -> None:
    adapter = tiny_adapter(loaded.module)
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", loaded, adapter)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ClaraError, match="out: holds something already"):
        write(tmp_path / "out", loaded, muted(adapter))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def full(error: Exception) -> Callable[..., None]:
    """Return a function that writes nothing any more."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


FAILURES = {
    "the weights": (mx, "save_safetensors", RuntimeError("[write] Unable to write 3088 bytes to file.")),
    "a file": (Path, "write_bytes", OSError(28, "No space left on device")),
    "the renaming": (os, "rename", OSError(28, "No space left on device")),
    "the index": (mlx_lm_utils.json, "dump", OSError(28, "No space left on device")),
    "the tokenizer": (TokenizerWrapper, "save_pretrained", Exception("File too large (os error 27)")),
}


@pytest.mark.parametrize(
    ("write", "failure"),
    [
        *((write, name) for write in (write_mlx_lm, write_peft) for name in ("the weights", "a file", "the renaming")),
        *((write_base, name) for name in ("the weights", "the renaming", "the index", "the tokenizer")),
    ],
)
def test_a_write_that_fails_leaves_nothing(
    write: Callable[..., None], failure: str, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, error = FAILURES[failure]
    monkeypatch.setattr(owner, name, full(error), raising=False)
    with pytest.raises(ClaraError, match="out: cannot be written"):
        write(tmp_path / "out", loaded, tiny_adapter(loaded.module))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@WRITERS
def test_a_disk_that_is_really_full_leaves_nothing(
    write: Callable[..., None], loaded: LoadedBase, tmp_path: Path
) -> None:
    adapter = tiny_adapter(loaded.module)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(ClaraError, match="out: cannot be written"):
            write(tmp_path / "out", loaded, adapter)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.slow
def test_mlx_lm_generates_with_the_adapter_from_its_command_line(loaded: LoadedBase, tmp_path: Path) -> None:
    adapter = tiny_adapter(loaded.module)
    write_mlx_lm_adapter(tmp_path / "adapter", adapter, LORA, LAYERS)
    base, prompt = tmp_path / "base", "Which lamp?"
    options = {"model": base, "adapter-path": tmp_path / "adapter", "prompt": prompt, "max-tokens": 12}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "mlx_lm", "generate", *flags]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    ids = loaded.tokenizer.hf.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    ours, plain = (
        mlx_lm.generate(module, loaded.tokenizer.hf, ids, max_tokens=12)
        for module in (bind(loaded.module, adapter, scale=LORA.scale), loaded.module)
    )
    assert f"==========\n{ours}\n==========" in ran.stdout
    assert ours != plain
