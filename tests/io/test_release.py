"""A released checkpoint: the same numbers in bfloat16, nothing of its training but names, whole in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tiny import assert_same

from clara.io.checkpoint import CONFIG, MANIFEST, PARAMS, Checkpoint, Manifest, load_checkpoint, save_checkpoint
from clara.io.errors import ClaraError
from clara.io.release import (
    CARD,
    last_part,
    portable_config,
    released,
    require_replaceable,
    without_paths,
    write_release,
)

EXTRAS = {"special_embeddings": mx.random.normal((2, 4), key=mx.random.key(9)), "embedding_rms": mx.array(0.25)}
PARAMETERS: dict[str, Any] = {
    "adapters": {"generator": {"q": {"lora_a": mx.random.normal((4, 2), key=mx.random.key(1)), "lora_b": mx.ones(3)}}},
    "memory_embeddings": mx.random.normal((2, 4), key=mx.random.key(2)),
}
OPTIONS = {
    "model": "/models/base",
    "run": "/somewhere/runs/a",
    "start_from": "runs/b/",
    "memories": "",
    "steps": 3,
    "data": {"data": "/d/one.jsonl, two.jsonl", "heldout": "", "autoencode_data": "../d/three.jsonl", "seed": 4},
    "prompts": {"answer": {"user": "/n: {memory}, {question}"}},
}


def saved(folder: Path, step: int = 3, **changes: Any) -> Checkpoint:
    """Return a checkpoint of a run, with the state of an optimizer."""
    fields = {"started_from": "/r/x", **changes}
    manifest = Manifest(step=step, stage="pretrain", base="b", data="d", seed=0, versions={"mlx": "0"}, **fields)
    return load_checkpoint(save_checkpoint(folder, PARAMETERS, {"step": mx.array(3)}, EXTRAS, OPTIONS, manifest))


def test_adapters_and_the_maps_of_anchors_are_rounded_and_all_else_is_kept(tmp_path: Path) -> None:
    maps = {f"anchor_map_{side}": mx.random.normal((3, 4, 2), key=mx.random.key(5)) for side in "ab"}
    checkpoint = saved(tmp_path)
    found = released(checkpoint._replace(params={**checkpoint.params, **maps}), "base")
    for name, leaf in maps.items():
        assert_same(found.params[name], leaf.astype(mx.bfloat16))
    adapters = PARAMETERS["adapters"]["generator"]["q"]
    expected = {"generator": {"q": {name: leaf.astype(mx.bfloat16) for name, leaf in adapters.items()}}}
    assert_same(found.params["adapters"], expected)
    assert_same({"m": found.params["memory_embeddings"]}, {"m": PARAMETERS["memory_embeddings"]})
    assert_same(found.extras, EXTRAS)
    assert found.optimizer_state == {}


def test_of_paths_the_names_stay(tmp_path: Path) -> None:
    origin = {"config": {"decoder": "/models/m", "doc_max_length": 256}, "names": ["a/b", "~/c"]}
    found = released(saved(tmp_path, origin=origin), "base")
    assert found.config == {
        "model": "base",
        "run": "a",
        "start_from": "b",
        "memories": "",
        "steps": 3,
        "data": {"data": "one.jsonl,two.jsonl", "heldout": "", "autoencode_data": "three.jsonl", "seed": 4},
        "prompts": OPTIONS["prompts"],
    }
    assert found.manifest.started_from == "x"
    assert found.manifest.origin == {"config": {"decoder": "m", "doc_max_length": 256}, "names": ["a/b", "c"]}


def test_what_was_not_said_is_not_added() -> None:
    assert portable_config({"stage": "pretrain"}) == {"stage": "pretrain"}
    assert [last_part(path) for path in ("", "/a/b", "b", "a/b/")] == ["", "b", "b", "b"]
    assert without_paths([None, 2, {"a": "/b/c"}]) == [None, 2, {"a": "c"}]


def test_it_comes_back_from_a_folder_of_its_own(tmp_path: Path) -> None:
    made = released(saved(tmp_path / "run"), "base")
    write_release(tmp_path / "to", made)
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == sorted([PARAMS, CONFIG, MANIFEST])
    found = load_checkpoint(tmp_path / "to")
    assert_same({"params": found.params, "extras": found.extras}, {"params": made.params, "extras": made.extras})
    assert found.config == made.config
    assert (found.manifest.step, found.manifest.base, found.manifest.started_from) == (3, "b", "x")


def test_another_takes_its_place_and_its_card_stays(tmp_path: Path) -> None:
    for step in (3, 5):
        write_release(tmp_path / "to", released(saved(tmp_path / "run", step), "base"))
        (tmp_path / "to" / CARD).write_text(f"card {min(step, 3)}")
    write_release(tmp_path / "to", released(saved(tmp_path / "run", 7), "base"))
    assert load_checkpoint(tmp_path / "to").manifest.step == 7
    assert (tmp_path / "to" / CARD).read_text() == "card 3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "to"]


def test_a_card_may_be_there_first(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / CARD).write_text("card")
    write_release(tmp_path / "to", released(saved(tmp_path / "run"), "base"))
    assert (tmp_path / "to" / CARD).read_text() == "card" and load_checkpoint(tmp_path / "to").manifest.step == 3


@pytest.mark.parametrize("target", ["run", "run/checkpoints/step-000003", "file"])
def test_nothing_else_gives_way(target: str, tmp_path: Path) -> None:
    made = released(saved(tmp_path / "run" / "checkpoints"), "base")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ClaraError, match="give another folder"):
        require_replaceable(tmp_path / target)
    with pytest.raises(ClaraError, match="give another folder"):
        write_release(tmp_path / target, made)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000003").optimizer_state != {}


def test_a_stores_copy_does_not_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(step=3, stage="pretrain", base="b", data="d", seed=0, versions={})
    copy = save_checkpoint(tmp_path, PARAMETERS, {}, EXTRAS, OPTIONS, manifest)
    monkeypatch.chdir(copy)
    for target in (copy, Path(".")):
        with pytest.raises(ClaraError, match="holds something already"):
            require_replaceable(target)


@pytest.mark.parametrize("names", [[CONFIG], [CONFIG, CARD], [PARAMS, CONFIG]])
def test_a_part_of_a_checkpoint_does_not_give_way(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ClaraError, match="holds something already"):
        require_replaceable(tmp_path)
