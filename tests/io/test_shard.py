"""Which bases can be cut over how many processes, what each then keeps, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from folders import tiny_folder
from groups import Member
from mlx.utils import tree_flatten
from tiny import assert_same, tiny_module

from clara.core.bind import adapted_linears
from clara.io.base import load_base
from clara.io.errors import ClaraError
from clara.io.shard import cut_sizes, shard_base

WIDE = {"intermediate_size": 128}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "4bit"])
def test_a_base_that_is_cut_has_the_adapters_of_the_whole(model_type: str, quantized: bool) -> None:
    whole, part = (tiny_module(model_type, quantized, **WIDE) for _ in range(2))
    shard_base(part, "base", Member(1, 2))
    assert adapted_linears(part) == adapted_linears(whole)
    first = part.model.layers[0]
    assert first.self_attn.n_heads == 2 and first.self_attn.n_kv_heads == 1
    assert_same(first.mlp.up_proj.weight, whole.model.layers[0].mlp.up_proj.weight[64:])
    assert_same(part.model.embed_tokens.weight, whole.model.embed_tokens.weight)


def test_a_process_keeps_its_part_of_the_blocks_and_all_that_is_outside(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "base"))
    whole, parts = load_base(folder), [load_base(folder, group=Member(rank, 2)) for rank in range(2)]
    assert {part.fingerprint for part in parts} == {whole.fingerprint}
    rest = dict(tree_flatten(whole.module.parameters()))
    for name, axis in (("q_proj", 0), ("v_proj", 0), ("o_proj", 1)):
        path = f"model.layers.1.self_attn.{name}.weight"
        own = [dict(tree_flatten(part.module.parameters()))[path] for part in parts]
        assert_same(mx.concatenate(own, axis=axis), rest[path])
    sizes = [sum(leaf.size for _, leaf in tree_flatten(part.module.parameters())) for part in parts]
    blocks = sum(leaf.size for name, leaf in rest.items() if "_proj" in name)
    assert sizes == [sum(leaf.size for leaf in rest.values()) - blocks // 2] * 2


@pytest.mark.parametrize(
    ("changes", "quantized", "ranks", "said"),
    [
        ({}, False, 3, "base: its attention heads, 4, cannot be cut into 3 equal parts; --shard wants 2 ranks here"),
        ({}, False, 4, "base: its key-value heads, 2, cannot be cut into 4 equal parts; --shard wants 2 ranks here"),
        (
            {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144, "intermediate_size": 288},
            False,
            2,
            "base: its attention heads, 9, cannot be cut into 2 equal parts; --shard wants 3 ranks here",
        ),
        (
            {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 8, "intermediate_size": 128},
            False,
            3,
            "base: its attention heads, 16, cannot be cut into 3 equal parts; --shard wants 2 or 4 or 8 ranks here",
        ),
        (
            {},
            True,
            2,
            "base: its groups of 32 quantised weights in model.layers.0.mlp.down_proj, 3, cannot be cut into "
            "2 equal parts; leave --shard out",
        ),
        (
            {"num_key_value_heads": 1},
            False,
            2,
            "base: its key-value heads, 1, cannot be cut into 2 equal parts; leave --shard out",
        ),
    ],
)
def test_parts_that_would_not_be_equal_are_refused(
    changes: dict[str, Any], quantized: bool, ranks: int, said: str
) -> None:
    module = tiny_module("llama", quantized, **changes)
    before = dict(tree_flatten(module.parameters()))
    with pytest.raises(ClaraError) as error:
        shard_base(module, "base", Member(0, ranks))
    assert str(error.value) == said
    assert all(leaf is before[name] for name, leaf in tree_flatten(module.parameters())), "nothing was cut"


def test_an_architecture_that_mlx_lm_does_not_cut_is_refused() -> None:
    with pytest.raises(ClaraError, match=r"^base: mlx-lm has no way to cut this architecture \(gemma2\); leave --sh"):
        shard_base(tiny_module("gemma2"), "base", Member(0, 2))


def test_a_block_with_other_weights_is_refused() -> None:
    module = tiny_module("llama")
    module.model.layers[1].mlp.router = nn.Linear(8, 8)
    said = r"^base: has model.layers.1.mlp.router, which adapters cannot follow .* alone \(llama\); leave it out$"
    with pytest.raises(ClaraError, match=said):
        shard_base(module, "base", Member(0, 2))


def test_a_cut_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module("llama")
    monkeypatch.setattr(type(module), "shard", lambda self, group: None)
    with pytest.raises(ClaraError, match=r"^base: mlx-lm cuts model.layers.0.mlp.gate_proj in a way that adapters can"):
        shard_base(module, "base", Member(0, 2))


def test_what_is_to_be_cut_is_named() -> None:
    sizes = cut_sizes(tiny_module("llama"))
    assert (sizes["attention heads"], sizes["key-value heads"]) == (4, 2)
    assert sizes["outputs of model.layers.1.mlp.up_proj"] == sizes["inputs of model.layers.1.mlp.down_proj"] == 96
