"""GGUF to mlx-lm: names, the rotary order of q and k, configuration, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from clara.io import gguf
from clara.io.errors import ClaraError
from clara.io.gguf import load_gguf, unpermute_rows

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCABULARY = 32, 4, 2, 8, 2, 40
Change = Callable[[dict[str, mx.array], dict[str, Any]], None]


def arguments(rope_theta: float = 5000.0, **changes: Any) -> llama.ModelArgs:
    """Return the configuration of a tiny llama."""
    return llama.ModelArgs(
        model_type="llama",
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=64,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
        rope_theta=rope_theta,
        **changes,
    )


def tensors_of_llama_cpp() -> dict[str, mx.array]:
    """Return random tensors under GGUF's names."""
    mx.random.seed(3)
    block = {
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_gate": (64, HIDDEN),
        "ffn_up": (64, HIDDEN),
        "ffn_down": (HIDDEN, 64),
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
    }
    shapes = {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()}
    shapes |= {"token_embd": (VOCABULARY, HIDDEN), "output_norm": (HIDDEN,)}
    return {f"{name}.weight": mx.random.normal(shape) * 0.3 for name, shape in shapes.items()}


def metadata_of_llama_cpp() -> dict[str, Any]:
    """Return the metadata that goes with the tensors."""
    numbers = {
        "embedding_length": HIDDEN,
        "feed_forward_length": 64,
        "block_count": LAYERS,
        "context_length": 128,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
    }
    metadata: dict[str, Any] = {f"llama.{key}": mx.array(value, mx.uint32) for key, value in numbers.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = mx.array(1e-5)
    metadata["llama.rope.freq_base"] = mx.array(5000.0)
    return metadata | {"general.architecture": "llama", "tokenizer.ggml.eos_token_id": mx.array(2, mx.uint32)}


def write(path: Path, change: Change | None = None) -> Path:
    """Return the path of a GGUF file, its tensors and metadata changed first."""
    tensors, metadata = tensors_of_llama_cpp(), metadata_of_llama_cpp()
    if change:
        change(tensors, metadata)
    mx.save_gguf(str(path), tensors, metadata)
    return path


def names_of_mlx(tensors: dict[str, mx.array]) -> list[tuple[str, mx.array]]:
    """Return the tensors under mlx-lm's names, rows as they are."""
    return [(f"{gguf._module_name(name.removesuffix('.weight'))}.weight", tensor) for name, tensor in tensors.items()]


def test_the_loaded_model_equals_one_with_interleaved_rotary_on_the_stored_rows(tmp_path: Path) -> None:
    stored = llama.Model(arguments(rope_traditional=True))
    stored.load_weights(names_of_mlx(tensors_of_llama_cpp()))
    read = load_gguf(write(tmp_path / "tiny.gguf"))
    loaded = llama.Model(llama.ModelArgs.from_dict(read.config))
    loaded.load_weights(list(read.weights.items()))
    tokens = mx.array([[1, 7, 7, 30, 2, 11]])
    np.testing.assert_allclose(np.array(loaded(tokens)), np.array(stored(tokens)), rtol=1e-4, atol=1e-4)


@given(heads=st.integers(1, 4), half=st.integers(1, 5), rest=st.sampled_from([(), (3,), (2, 3)]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_rows_are_unpermuted_one_by_one(heads: int, half: int, rest: tuple[int, ...]) -> None:
    rows = np.arange(heads * half * 2 * int(np.prod(rest)), dtype=np.int32).reshape(-1, *rest)
    expected = np.empty_like(rows)
    for head in range(heads):
        for i in range(half):
            for j in range(2):
                expected[head * 2 * half + j * half + i] = rows[head * 2 * half + 2 * i + j]
    np.testing.assert_array_equal(np.array(unpermute_rows(mx.array(rows), heads)), expected)


def test_quantised_rows_move_with_their_scales_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, bits = tensors_of_llama_cpp(), {"blk.0.attn_q": 4, "blk.1.attn_k": 4, "token_embd": 8}
    for name, width in bits.items():
        parts = mx.quantize(tensors[f"{name}.weight"], group_size=32, bits=width)
        tensors |= dict(zip([f"{name}.weight", f"{name}.scales", f"{name}.biases"], parts, strict=True))
    monkeypatch.setattr(gguf, "_read", lambda _: (tensors, metadata_of_llama_cpp()))
    read = load_gguf("tiny.gguf")
    places = {
        "model.layers.0.self_attn.q_proj": 4,
        "model.layers.1.self_attn.k_proj": 4,
        "model.embed_tokens": 8,
    }
    entries = {place: {"group_size": 32, "bits": width} for place, width in places.items()}
    assert read.config["quantization"] == {"group_size": 32, "bits": 4, **entries}
    parts = [read.weights[f"model.layers.0.self_attn.q_proj.{part}"] for part in ("weight", "scales", "biases")]
    before = [tensors[f"blk.0.attn_q.{part}"] for part in ("weight", "scales", "biases")]
    moved = mx.dequantize(*parts, group_size=32, bits=4)
    expected = unpermute_rows(mx.dequantize(*before, group_size=32, bits=4), HEADS)
    np.testing.assert_array_equal(np.array(moved), np.array(expected))


def test_the_configuration_is_that_of_the_original(tmp_path: Path) -> None:
    config = load_gguf(write(tmp_path / "tiny.gguf")).config
    assert config == {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "max_position_embeddings": 128,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": 2,
    }


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    def add_head(tensors: dict[str, mx.array], _: dict[str, Any]) -> None:
        tensors["output.weight"] = tensors["token_embd.weight"] * 2

    read = load_gguf(write(tmp_path / "tiny.gguf", add_head))
    assert not read.config["tie_word_embeddings"]
    assert mx.array_equal(read.weights["lm_head.weight"], read.weights["model.embed_tokens.weight"] * 2)


def test_the_rotary_factors_of_llama_3_become_its_configuration(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 32.0, **gguf.LLAMA3_ROPE}
    scaled = llama.Model(arguments(500000.0, rope_scaling=rope)).layers[0].self_attn.rope

    def add_factors(tensors: dict[str, mx.array], metadata: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"] = scaled._freqs / 500000.0 ** (mx.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        metadata["llama.rope.freq_base"] = mx.array(500000.0)

    assert load_gguf(write(tmp_path / "tiny.gguf", add_factors)).config["rope_scaling"] == rope


def test_other_rotary_factors_are_refused(tmp_path: Path) -> None:
    def add_factors(tensors: dict[str, mx.array], _: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"] = mx.array([1.0, 3.0, 2.0, 8.0])

    with pytest.raises(ClaraError, match="not Llama 3's rotary factors"):
        load_gguf(write(tmp_path / "tiny.gguf", add_factors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, m: m.update({"general.architecture": "qwen2"}), "architecture 'qwen2'; only dense llama"),
        (lambda _, m: m.update({"llama.expert_count": mx.array(8, mx.uint32)}), "llama with experts"),
        (lambda _, m: m.pop("llama.block_count"), "lacks llama.block_count"),
        (lambda t, _: t.pop("token_embd.weight"), "lacks token_embd.weight"),
        (lambda t, _: t.update({"blk.0.odd.weight": mx.zeros(3)}), r"no place for \(blk.0.odd.weight\)"),
        (lambda _, m: m.update({"llama.rope.scaling.type": "yarn"}), "rotary scaling 'yarn'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(ClaraError, match=f"tiny.gguf.*{message}"):
        load_gguf(write(tmp_path / "tiny.gguf", change))


def test_a_missing_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match="no such file"):
        load_gguf(tmp_path / "absent.gguf")
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(ClaraError, match=r"begins with b'<htm'"):
        load_gguf(tmp_path / "page.gguf")


def test_every_weight_has_its_place_in_the_module(tmp_path: Path) -> None:
    read = load_gguf(write(tmp_path / "tiny.gguf"))
    wanted = {name: array.shape for name, array in tree_flatten(llama.Model(arguments()).parameters())}
    assert {name: array.shape for name, array in read.weights.items()} == wanted
