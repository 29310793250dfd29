"""Loading a base: where it may lie, what it becomes on a CPU and a GPU, and what tells two bases apart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.switch_layers import SwitchLinear
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from clara.io import base
from clara.io import base as bases
from clara.io.base import dequantize_module, fingerprint, load_base, load_base_tokenizer
from clara.io.errors import ClaraError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 260,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}
TOKENS = mx.array([[3, 200, 17, 17, 90]])


def tiny_module(seed: int = 0) -> nn.Module:
    """Return a tiny random llama."""
    mx.random.seed(seed)
    module: nn.Module = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    return module


def write_base(folder: Path, module: nn.Module, **config: Any) -> Path:
    """Return a folder in Hugging Face's layout."""
    folder.mkdir(exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({token: i for i, token in enumerate(["<end>", *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    write_weights(folder / "model.safetensors", dict(tree_flatten(module.parameters())))
    return folder


def write_weights(path: Path, weights: dict[str, mx.array]) -> None:
    """Write a safetensors file, or replace one that MLX may still hold open."""
    path.unlink(missing_ok=True)
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})


def read_weights(path: Path) -> dict[str, mx.array]:
    """Return the tensors of a safetensors file, in memory."""
    weights: dict[str, mx.array] = mx.load(str(path))  # type: ignore[assignment]
    mx.eval(weights)
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tiny float base."""
    return write_base(tmp_path / "tiny", tiny_module())


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """Return a folder with the same base in 4 bits."""
    module = tiny_module()
    nn.quantize(module, group_size=32, bits=4)
    return write_base(tmp_path / "tiny-4bit", module, quantization={"group_size": 32, "bits": 4})


@pytest.fixture
def on_cpu() -> Any:
    """Make the CPU the default device for a test."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def dtypes(module: nn.Module) -> set[mx.Dtype]:
    """Return the dtypes of a module's weights."""
    return {array.dtype for _, array in tree_flatten(module.parameters())}


def test_a_folder_gives_the_module_that_was_saved(folder: Path) -> None:
    loaded = load_base(str(folder), dtype=mx.float32)
    np.testing.assert_array_equal(np.array(loaded.module(TOKENS)), np.array(tiny_module()(TOKENS)))
    assert loaded.name == str(folder) and loaded.config["hidden_size"] == 64
    assert loaded.tokenizer.eos_id == 0


def test_a_base_is_frozen_and_in_eval_mode(folder: Path) -> None:
    module = load_base(str(folder)).module
    assert not tree_flatten(module.trainable_parameters())
    assert not any(child.training for child in module.modules())


def test_on_a_cpu_a_quantised_base_becomes_float32(quantized: Path, on_cpu: None) -> None:
    loaded = load_base(str(quantized))
    kept = load_base(str(quantized), dequantize=False)
    assert dtypes(loaded.module) == {mx.float32}
    assert "quantization" not in loaded.config and "quantization" in kept.config
    assert isinstance(kept.module.model.embed_tokens, nn.QuantizedEmbedding)
    np.testing.assert_allclose(np.array(loaded.module(TOKENS)), np.array(kept.module(TOKENS)), rtol=1e-4, atol=1e-5)


def test_on_a_cpu_bfloat16_becomes_float32(tmp_path: Path, on_cpu: None) -> None:
    module = tiny_module()
    module.set_dtype(mx.bfloat16)
    assert dtypes(load_base(str(write_base(tmp_path / "half", module))).module) == {mx.float32}


def test_on_a_gpu_a_small_quantised_base_becomes_bfloat16(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: "a gpu")
    loaded = load_base(str(quantized))
    assert dtypes(loaded.module) == {mx.bfloat16} and "quantization" not in loaded.config


def test_on_a_gpu_a_large_base_stays_as_stored(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: "a gpu")
    monkeypatch.setattr(bases, "SMALL_BYTES", 100)
    loaded = load_base(str(quantized))
    stored = read_weights(quantized / "model.safetensors")
    for name, array in tree_flatten(loaded.module.parameters()):
        assert mx.array_equal(array, stored[name]), name


def test_dtype_casts_floating_weights_only(quantized: Path) -> None:
    assert dtypes(load_base(str(quantized), dtype=mx.bfloat16, dequantize=False).module) == {
        mx.bfloat16,
        mx.uint32,
    }
    assert dtypes(load_base(str(quantized), dtype=mx.float16, dequantize=True).module) == {mx.float16}


def test_dequantising_covers_biases_and_expert_layers() -> None:
    mx.random.seed(1)
    plain = nn.Sequential(nn.Linear(32, 32, bias=True), SwitchLinear(32, 32, 3, bias=True))
    module = nn.Sequential(*(layer.to_quantized(group_size=32, bits=8) for layer in plain.layers))
    dequantize_module(module, mx.float32)
    assert [type(layer) for layer in module.layers] == [nn.Linear, SwitchLinear]
    for layer, original in zip(module.layers, plain.layers, strict=True):
        np.testing.assert_allclose(np.array(layer.weight), np.array(original.weight), atol=2e-3)
        np.testing.assert_array_equal(np.array(layer.bias), np.array(original.bias))


def test_dequantising_without_a_dtype_keeps_that_of_the_scales() -> None:
    layer = nn.Linear(64, 32, bias=False)
    layer.set_dtype(mx.float16)
    affine = nn.Sequential(layer.to_quantized(group_size=32, bits=4))
    microscaled = nn.Sequential(layer.to_quantized(group_size=32, bits=4, mode="mxfp4"))
    assert dtypes(dequantize_module(affine)) == {mx.float16}
    assert dtypes(dequantize_module(microscaled)) == {mx.bfloat16}


def test_dequantising_leaves_a_plain_module_alone() -> None:
    module = tiny_module()
    assert dequantize_module(module, mx.float16) is module and dtypes(module) == {mx.float32}


def test_the_fingerprint_is_that_of_what_is_stored(quantized: Path) -> None:
    prints = {load_base(str(quantized), dequantize=choice).fingerprint for choice in (True, False)}
    assert prints == {fingerprint(quantized)}


def test_the_fingerprint_knows_neither_place_nor_shards_nor_the_writing_program(folder: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "elsewhere", tiny_module(), transformers_version="9.9")
    weights = read_weights(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    names = sorted(weights)
    write_weights(other / "model-00001-of-00002.safetensors", {name: weights[name] for name in names[::2]})
    write_weights(other / "model-00002-of-00002.safetensors", {name: weights[name] for name in names[1::2]})
    assert fingerprint(other) == fingerprint(folder)


def test_the_fingerprint_changes_with_any_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = read_weights(path)
    prints = {fingerprint(folder)}
    for name, array in weights.items():
        write_weights(path, weights | {name: array + 1})
        prints.add(fingerprint(folder))
    assert len(prints) == len(weights) + 1


@pytest.mark.parametrize("change", [{"rope_theta": 5.0}, {"num_attention_heads": 2}])
def test_the_fingerprint_changes_with_the_configuration(folder: Path, change: dict[str, float]) -> None:
    before = fingerprint(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    assert fingerprint(folder) != before


def test_of_a_large_tensor_the_fingerprint_covers_both_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "WHOLE_BYTES", 256)
    monkeypatch.setattr(base, "SAMPLE_BYTES", 8)
    path = folder / "model.safetensors"
    weights = read_weights(path)
    flat = np.array(weights["model.embed_tokens.weight"])
    prints = {fingerprint(folder)}
    for place in ((0, 0), (-1, -1)):
        changed = flat.copy()
        changed[place] += 1
        write_weights(path, weights | {"model.embed_tokens.weight": mx.array(changed)})
        prints.add(fingerprint(folder))
    assert len(prints) == 3


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_what_a_folder_lacks_is_named(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ClaraError, match=f"no {lost.replace('model.', 'model.*')}"):
        load_base(str(folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ClaraError, match=r"no model-00002-of-00002\.safetensors\."):
        load_base(str(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [({"model_type": "nothing"}, "Model type nothing not supported"), ({"hidden_size": 32}, "shape")],
)
def test_what_mlx_lm_refuses_is_quoted(folder: Path, config: dict[str, Any], message: str) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    with pytest.raises(ClaraError, match=f"(?s)tiny: mlx-lm cannot load this base: .*{message}"):
        load_base(str(folder))


@pytest.mark.parametrize("name", ["smollm3", "./absent", "/absent/base", "~/absent", "absent.gguf", "a/b/c"])
def test_a_name_that_is_nothing_is_refused_without_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_download", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(ClaraError, match=r"no such folder or \.gguf file, no built-in base"):
        load_base(name)


def test_a_file_in_a_folder_is_not_a_base(folder: Path) -> None:
    with pytest.raises(ClaraError, match="give the folder"):
        load_base(str(folder / "model.safetensors"))


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Path:
        raise ConnectionError("name not known\nlong story")

    monkeypatch.setattr(base.mlx_lm_utils, "_download", unreachable)
    with pytest.raises(ClaraError, match=r"owner/base: .*\(name not known\).*hf auth login.*smollm2-135m"):
        load_base("owner/base", progress=False)


def test_a_hub_id_is_loaded_from_where_the_hub_puts_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.mlx_lm_utils, "_download", lambda *_, **__: folder)
    loaded = load_base("owner/base")
    assert loaded.name == "owner/base" and loaded.fingerprint == fingerprint(folder)


def test_a_tokenizer_alone_is_that_of_the_base_and_needs_no_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_base(str(folder)).tokenizer
    (folder / "model.safetensors").unlink()
    asked = list[Any]()

    def download(name: str | Path, allow_patterns: list[str] | None = None) -> Path:
        asked.extend([name, *(allow_patterns or [])])
        return folder

    monkeypatch.setattr(base.mlx_lm_utils, "_download", download)
    for name in (str(folder), "owner/base"):
        alone = load_base_tokenizer(name)
        assert alone.plain.to_str() == whole.plain.to_str() and alone.eos_ids == whole.eos_ids
    assert {"owner/base", "tokenizer*"} <= set(asked) and not any("safetensors" in str(each) for each in asked)


@pytest.mark.slow
@pytest.mark.skipif("CLARA_SMOLLM2_WHEEL" not in os.environ, reason="needs CLARA_SMOLLM2_WHEEL")
def test_smollm2_knows_the_capital_of_france() -> None:
    from mlx_lm import generate

    smollm2 = load_base("smollm2-135m")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = smollm2.tokenizer.hf.apply_chat_template(messages, add_generation_prompt=True)
    answer = generate(smollm2.module, smollm2.tokenizer.hf, prompt, max_tokens=20)
    assert answer == "The capital of France is Paris."
    assert smollm2.fingerprint == "b179c9523d0e6a0f"
