"""Checkpoints: back bit for bit, whole or refused by name, and never lost to a write that fails."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from clara.core.config import Layout, OptimizerConfig
from clara.core.optim import adamw
from clara.core.types import Base, TrainState
from clara.io import checkpoint
from clara.io.checkpoint import (
    CONFIG,
    MANIFEST,
    OPTIMIZER,
    PARAMS,
    Manifest,
    checkpoints,
    flatten,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    unflatten,
)
from clara.io.errors import ClaraError

OPTIONS = {"model": "tiny", "memory": {"anchored": True}, "optimizer": {"learning_rate": 1e-3}, "data": {"seed": 0}}
LINEARS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")


def new_base() -> Base:
    """Return a base that has what a checkpoint keeps of it."""
    layout = Layout(vocab_size=10, num_memory_tokens=2)
    return Base(nn.Identity(), layout, mx.random.normal((2, 4), key=mx.random.key(9)), mx.array(0.25))


def new_state(step: int = 1) -> TrainState:
    """Return a state after an update, with numbers that are easily lost: −0, tiny, infinite, nan."""
    keys = mx.random.split(mx.random.key(step), 2 * len(LINEARS) + 1)
    adapters = {
        name: {
            path: {"lora_a": mx.random.normal((4, 2), key=keys[2 * i]), "lora_b": mx.zeros((2, 4))}
            for i, path in enumerate(LINEARS)
        }
        for name in ("compressor", "generator")
    }
    params = {"adapters": adapters, "memory_embeddings": mx.random.normal((2, 4), key=keys[-1])}
    optimizer = adamw(OptimizerConfig(), 10)
    params, optimizer_state = optimizer.update(params, optimizer.init(params), params)
    odd = {"odd": mx.array([-0.0, 1e-42, float("inf"), float("nan"), 1 / 3, 16777217.0])}
    return TrainState(params | odd, optimizer_state | odd, mx.array(step))


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the state without those numbers."""
    return {name: child for name, child in tree.items() if name != "odd"}


def save(folder: Path, step: int, keep: int = 9, state: TrainState | None = None) -> Path:
    """Return the checkpoint of a step in a folder."""
    manifest = Manifest(step=step, base="base print", data="data print", versions={"mlx": "0"})
    return save_checkpoint(folder, state or new_state(step), new_base(), OPTIONS, manifest, keep)


def assert_equal(found: Any, wanted: Any) -> None:
    """Assert that two pytrees hold the same leaves under the same names, bit for bit."""
    found, wanted = dict(tree_flatten(found)), dict(tree_flatten(wanted))
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        assert (found[name].dtype, found[name].shape) == (leaf.dtype, leaf.shape), name
        assert np.array(found[name]).tobytes() == np.array(leaf).tobytes(), name


def names(folder: Path) -> list[str]:
    """Return everything in a folder, hidden files too."""
    return sorted(os.listdir(folder))


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = new_state()
    loaded = load_checkpoint(save(tmp_path, 7, state=state))
    assert_equal(loaded.params, state.params)
    assert_equal(loaded.optimizer_state, state.optimizer_state)
    assert_equal(loaded.frozen, {"special_embeddings": new_base().special_embeddings, "embedding_rms": mx.array(0.25)})
    assert loaded.config == OPTIONS
    assert (loaded.manifest.step, loaded.manifest.base, loaded.manifest.data) == (7, "base print", "data print")
    assert loaded.path == tmp_path / "step-000007"


def test_an_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path) -> None:
    state, grads, optimizer = new_state(1), plain(new_state(2).params), adamw(OptimizerConfig(), 10)
    loaded = load_checkpoint(save(tmp_path, 1, state=state))
    found = optimizer.update(grads, plain(loaded.optimizer_state), plain(loaded.params))
    assert_equal(found, optimizer.update(grads, plain(state.optimizer_state), plain(state.params)))
    assert all(np.isfinite(np.array(leaf)).all() for _, leaf in tree_flatten(found))


def test_names_with_dots_are_kept_apart_from_nesting() -> None:
    tree = {"a.b": {"c": mx.array(1), "d.0": mx.array(2)}, "a": {"b.c": mx.array(3)}}
    leaves = flatten(tree)
    assert sorted(leaves) == ["a.b/c", "a.b/d.0", "a/b.c"]
    assert unflatten(leaves) == tree


def test_a_checkpoint_holds_these_files_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert names(path) == sorted([PARAMS, OPTIMIZER, CONFIG, MANIFEST])
    assert names(tmp_path) == ["step-000003"]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    for step in (1, 2, 10, 100):
        save(tmp_path, step, keep)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:06d}" for step in (1, 2, 10, 100)][-keep:]


def test_more_digits_do_not_upset_the_order(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step, keep=1)
    assert newest_checkpoint(tmp_path)[0].manifest.step == 1_000_000


def test_the_checkpoint_just_written_is_never_the_one_removed(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 8)  # then the run is resumed from step 2
    assert save(tmp_path, 4, keep=1).is_dir()


def test_the_same_step_written_again_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 3, state=new_state(1))
    path = save(tmp_path, 3, state=new_state(2))
    assert_equal(load_checkpoint(path).params, new_state(2).params)
    assert names(tmp_path) == ["step-000003"]


def cut(path: Path) -> None:
    """Cut the last byte off a file."""
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", [PARAMS, OPTIMIZER, CONFIG])
@pytest.mark.parametrize(("damage", "said"), [(cut, "truncated"), (alter, "altered"), (Path.unlink, "missing")])
def test_a_damaged_file_is_refused_by_name(file: str, damage: Any, said: str, tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    damage(path / file)
    with pytest.raises(ClaraError, match=f"^{path / file}: .*{said}"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b'{"step": 1', b'{"step": "three"}', b"[]"])
def test_a_damaged_manifest_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(ClaraError, match=f"^{path / MANIFEST}: damaged"):
        load_checkpoint(path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=f"^{tmp_path}: no {MANIFEST}; wanted a checkpoint folder"):
        load_checkpoint(tmp_path)


def test_the_newest_is_found_from_run_folder_and_checkpoint(tmp_path: Path) -> None:
    for step in (2, 10):
        save(tmp_path / "checkpoints", step)
    for given, step in (
        (tmp_path, 10),
        (tmp_path / "checkpoints", 10),
        (tmp_path / "checkpoints" / "step-000002", 2),
    ):
        found, problems = newest_checkpoint(given)
        assert (found.manifest.step, problems) == (step, [])


def test_a_damaged_one_gives_way_to_the_newest_whole_one_and_is_reported(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    cut(tmp_path / "step-000004" / PARAMS)
    (tmp_path / "step-000003" / OPTIMIZER).unlink()
    found, problems = newest_checkpoint(tmp_path)
    assert found.manifest.step == 2
    assert [problem.partition(":")[0] for problem in problems] == [
        str(tmp_path / "step-000004" / PARAMS),
        str(tmp_path / "step-000003" / OPTIMIZER),
    ]


def test_where_none_is_whole_all_are_reported(tmp_path: Path) -> None:
    for step in (1, 2):
        alter(save(tmp_path, step) / CONFIG)
    with pytest.raises(ClaraError) as caught:
        newest_checkpoint(tmp_path)
    first, *rest = str(caught.value).splitlines()
    assert first == f"{tmp_path}: no whole checkpoint found"
    assert [line.partition(":")[0] for line in rest] == [str(tmp_path / f"step-00000{i}" / CONFIG) for i in (2, 1)]


@pytest.mark.parametrize("name", ["empty", "absent", "file"])
def test_where_there_is_none_the_place_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClaraError, match=f"^{tmp_path / name}: no whole checkpoint found"):
        newest_checkpoint(tmp_path / name)


def failing(real: Any, call: int, error: Exception) -> Any:
    """Return a function that raises at its n-th call, counted from 1, and otherwise does what the real one does."""
    calls: list[int] = []

    def function(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return real(*args, **kwargs)

    return function


FULL = OSError(28, "No space left on device")
FAILURES = {
    "adapters": (mx, "save_safetensors", 1, RuntimeError("[save_safetensors] no space")),
    "optimizer state": (mx, "save_safetensors", 2, RuntimeError("[save_safetensors] no space")),
    "configuration": (Path, "write_bytes", 1, FULL),
    "manifest": (Path, "write_bytes", 2, FULL),
    "flushing": (checkpoint, "sync", 3, FULL),
    "renaming": (os, "replace", 1, FULL),
}


@pytest.mark.parametrize(("owner", "name", "call", "error"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("step", [2, 1], ids=["the next step", "the same step"])
def test_a_write_that_fails_leaves_the_earlier_checkpoint_and_nothing_else(
    owner: Any, name: str, call: int, error: Exception, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), call, error))
    with pytest.raises(ClaraError, match=r"step-00000\d: the checkpoint could not be written .*older ones are intact"):
        save(tmp_path, step, keep=1, state=new_state(5))
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000001"]
    assert_equal(load_checkpoint(tmp_path / "step-000001").params, new_state(1).params)


def test_the_same_step_is_not_lost_if_the_second_renaming_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(os, "replace", failing(os.replace, 2, FULL))
    with pytest.raises(ClaraError, match="older ones are intact"):
        save(tmp_path, 1, state=new_state(5))
    monkeypatch.undo()
    assert_equal(newest_checkpoint(tmp_path)[0].params, new_state(1).params)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_disk_that_is_really_full_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = TrainState({"w": mx.zeros((64, 1024))}, {"m": mx.zeros((64, 1024))}, mx.array(2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ClaraError, match="step-000002: the checkpoint could not be written"):
            save(tmp_path, 2, state=large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-000001"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClaraError, match=r"file/checkpoints/step-000001: the checkpoint could not be written"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_old_ones_go_only_after_the_new_one_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    seen: list[list[str]] = []
    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: (seen.append(names(tmp_path)), real(path, **how)))
    save(tmp_path, 2, keep=1)
    assert seen == [["step-000001", "step-000002"]]


def test_a_half_written_folder_of_a_crash_is_no_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    shutil.copytree(path, tmp_path / ".step-000002.123.tmp")
    assert checkpoints(tmp_path) == [path]


def test_the_manifest_says_what_it_says_in_plain_json(tmp_path: Path) -> None:
    content = msgspec.json.decode((save(tmp_path, 5) / MANIFEST).read_bytes())
    assert content["step"] == 5 and content["versions"] == {"mlx": "0"}
    assert sorted(content["files"]) == sorted([PARAMS, OPTIMIZER, CONFIG])
    assert all(len(digest) == 64 for digest in content["files"].values())
