"""Parameters of the original and of this project: unchanged there and back, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from folders import CONFIG, VOCAB_SIZE, tiny_folder, tiny_session
from mlx.utils import tree_flatten
from reference import GOLDEN
from tiny import assert_same, difference, same_bits

from clara.io.base import LoadedBase, load_base
from clara.io.errors import ClaraError
from clara.io.exchange import SCALE, STAGE_NAMES, from_original, options_of, origin_of, to_original
from clara.io.original import Original, read_original
from clara.shell.options import merge, stage_defaults, step_config, to_options
from clara.shell.setup import Session

CHECKPOINTS = ("checkpoint_stage1", "checkpoint_stage2_instruct", "checkpoint_stage3")
TOKENS = VOCAB_SIZE - 1
COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny base with fewer tokens than rows."""
    return tiny_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedBase:
    """Return the tiny base."""
    return load_base(str(folder))


def plain_session(folder: Path, alpha: float = 8.0, **sections: Any) -> Session:
    """Return a session without anchored memory, of rank 4, whose adapters do something."""
    return tiny_session(folder, memory={"anchored": False}, lora={"alpha": alpha}, **sections)


def written(session: Session, loaded: LoadedBase, origin: dict[str, Any] | None = None) -> Original:
    """Return the original's form of a session."""
    return to_original(session.params, session.base, loaded, session.config, origin or {})


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_original_is_the_same_after_the_way_there_and_back(name: str) -> None:
    pytest.importorskip("torch")
    before, base = read_original(GOLDEN / name), load_base(str(GOLDEN / "base"))
    plain = options_of(before, str(GOLDEN / "base"))
    options = to_options(merge(stage_defaults(plain["stage"]), plain))
    params, extras = from_original(before, base, options.memory.num_memory_tokens)
    session = tiny_session(GOLDEN / "base", memory={"anchored": False, "doc_max_tokens": 96, "compression_rate": 12})
    beside = session.base._replace(special_embeddings=extras["special_embeddings"], head_rows=extras["head_rows"])
    after = to_original(params, beside, base, step_config(options), origin_of(before))
    assert after.config == before.config and after.names == before.names
    assert_same(after.adapters, before.adapters)
    assert same_bits(after.embeddings, before.embeddings)
    assert before.head is not None and after.head is not None and same_bits(after.head, before.head)


def test_parameters_come_back_bit_for_bit_where_the_scale_is_the_originals(folder: Path, loaded: LoadedBase) -> None:
    session = plain_session(folder)
    assert session.config.lora.scale == SCALE
    params, extras = from_original(written(session, loaded), loaded, COUNT)
    assert_same(params, session.params)
    assert same_bits(extras["special_embeddings"][:2], session.base.special_embeddings)
    assert mx.array_equal(extras["special_embeddings"][2], mx.zeros(CONFIG["hidden_size"]))


@pytest.mark.parametrize("alpha", [4.0, 5.3, 16.0, 24.0])
def test_another_scale_is_folded_into_lora_b(folder: Path, loaded: LoadedBase, alpha: float) -> None:
    session = plain_session(folder, alpha)
    params, _ = from_original(written(session, loaded), loaded, COUNT)
    assert same_bits(params["memory_embeddings"], session.params["memory_embeddings"])
    own = dict(tree_flatten(session.params["adapters"]))
    for name, leaf in tree_flatten(params["adapters"]):
        factor = session.config.lora.scale / SCALE if name.endswith("lora_b") else 1.0
        assert difference(leaf, own[name] * factor) <= 1e-7, name
    changed = {name for name, leaf in tree_flatten(params["adapters"]) if not same_bits(leaf, own[name])}
    assert changed == {name for name in own if name.endswith("lora_b")}


@pytest.mark.parametrize(("ours", "theirs"), STAGE_NAMES.items())
def test_a_new_configuration_says_what_it_was_trained_with(
    folder: Path, loaded: LoadedBase, ours: str, theirs: str
) -> None:
    session = plain_session(folder, stage=ours)
    original = written(session, loaded)
    assert original.config["training_stage"] == theirs
    options = to_options(merge(stage_defaults(ours), options_of(original, str(folder))))  # type: ignore[arg-type]
    assert (options.stage, options.memory.num_memory_tokens, options.memory.anchored) == (ours, COUNT, False)
    assert (options.lora.rank, options.lora.scale) == (session.config.lora.rank, SCALE)
    assert options.retrieval.top_k == session.config.retrieval.top_k


def test_the_table_ends_with_memory_ae_enc_and_sep(folder: Path, loaded: LoadedBase) -> None:
    session = plain_session(folder)
    original = written(session, loaded)
    assert original.head is None and original.embeddings.shape == (TOKENS + COUNT + 3, CONFIG["hidden_size"])
    assert same_bits(original.embeddings[:TOKENS], loaded.module.model.embed_tokens.weight[:TOKENS])
    assert same_bits(original.embeddings[TOKENS : TOKENS + COUNT], session.params["memory_embeddings"])
    assert same_bits(original.embeddings[-2:], session.base.special_embeddings)


def test_the_softmax_ends_where_the_tokenizer_does(folder: Path, loaded: LoadedBase) -> None:
    _, extras = from_original(written(plain_session(folder), loaded), loaded, COUNT)
    assert extras["head_size"].item() == TOKENS < VOCAB_SIZE
    assert extras["head_rows"].shape[0] == COUNT + 3


def test_one_memory_token_for_all_is_repeated_and_written_once(folder: Path, loaded: LoadedBase) -> None:
    session = plain_session(folder)
    original = written(session, loaded)
    one = mx.concatenate([original.embeddings[: TOKENS + 1], original.embeddings[TOKENS + COUNT :]])
    config = original.config | {"different_mem_tokens": False}
    shared = original._replace(config=config, embeddings=one)
    params, extras = from_original(shared, loaded, COUNT)
    assert same_bits(params["memory_embeddings"], mx.repeat(one[TOKENS : TOKENS + 1], COUNT, axis=0))
    base = session.base._replace(special_embeddings=extras["special_embeddings"])
    back = to_original(params, base, loaded, session.config, origin_of(shared))
    assert same_bits(back.embeddings, one) and back.config == config
    with pytest.raises(ClaraError, match=r"one memory token for all .* trained apart"):
        to_original(session.params, base, loaded, session.config, origin_of(shared))


def test_anchored_memory_is_refused(folder: Path, loaded: LoadedBase) -> None:
    session = tiny_session(folder)
    with pytest.raises(ClaraError, match=r"anchored memory cannot be written .* wanted anchored = false"):
        written(session, loaded)


def test_anchors_of_learned_pooling_are_refused(folder: Path, loaded: LoadedBase) -> None:
    session = tiny_session(folder, memory={"anchored": True, "anchor_pooling": "learned"})
    with pytest.raises(ClaraError, match=r"anchored memory cannot be written .* wanted anchored = false"):
        written(session, loaded)


def test_a_reasoner_of_late_relevance_is_refused(folder: Path, loaded: LoadedBase) -> None:
    late = {"relevance": "late"}
    with pytest.raises(ClaraError, match=r"relevance late cannot be written .* wanted relevance = flattened"):
        written(plain_session(folder, stage="end_to_end", retrieval=late), loaded)
    assert written(plain_session(folder, retrieval=late), loaded).adapters.keys() == {"compressor", "generator"}


def test_a_base_with_another_vocabulary_is_refused(folder: Path, loaded: LoadedBase) -> None:
    original = written(plain_session(folder), loaded)
    with pytest.raises(ClaraError, match=r"with its 600 tokens a checkpoint's table is \(607, 64\).* \(266, 32\)"):
        from_original(original, load_base(str(GOLDEN / "base")), COUNT)


def test_a_base_of_the_same_shape_with_other_rows_is_refused(folder: Path, loaded: LoadedBase, tmp_path: Path) -> None:
    original = written(plain_session(folder), loaded)
    with pytest.raises(ClaraError, match=r"its embeddings differ from the checkpoint's by \d+%: .* another base"):
        from_original(original, load_base(str(tiny_folder(tmp_path, seed=1))), COUNT)


@pytest.mark.parametrize("missing", ["decoder_model_name", "doc_max_length", "compr_rate", "lora_r"])
def test_a_configuration_without_a_field_is_refused(folder: Path, loaded: LoadedBase, missing: str) -> None:
    original = written(plain_session(folder), loaded)
    config = {name: value for name, value in original.config.items() if name != missing}
    with pytest.raises(ClaraError, match=f"config.json of the checkpoint: no {missing}"):
        options_of(original._replace(config=config))


@pytest.mark.parametrize("asked", [{"lora": False}, {"compr_model_name": "bert"}, {"kbtc_training": True}])
def test_what_is_not_supported_is_refused(folder: Path, loaded: LoadedBase, asked: dict[str, Any]) -> None:
    original = written(plain_session(folder), loaded)
    with pytest.raises(ClaraError, match="wanted lora, no compr_model_name and no kbtc_training"):
        options_of(original._replace(config=original.config | asked))
