"""Checkpoints: back bit for bit, whole or refused by name, and never lost to a write that fails."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from clara.core.config import OptimizerConfig
from clara.core.optim import adamw
from clara.io import checkpoint, files
from clara.io.checkpoint import (
    CONFIG,
    MANIFEST,
    OPTIMIZER,
    PARAMS,
    Manifest,
    fingerprint,
    flatten,
    float32_params,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    seal,
    unflatten,
    versions,
    write_arrays,
)
from clara.io.errors import ClaraError
from clara.io.retention import Best, checkpoints, mark_best

OPTIONS = {"model": "tiny", "memory": {"anchored": True}, "optimizer": {"learning_rate": 1e-3}, "data": {"seed": 0}}
LINEARS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")
EXTRAS = {"special_embeddings": mx.random.normal((2, 4), key=mx.random.key(9)), "embedding_rms": mx.array(0.25)}
State = tuple[dict[str, Any], dict[str, Any]]


def new_state(step: int = 1) -> State:
    """Return parameters and optimizer state after an update, with numbers that are easily lost: −0, tiny, inf, nan."""
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
    return params | odd, optimizer_state | odd


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the state without those numbers."""
    return {name: child for name, child in tree.items() if name != "odd"}


def new_manifest(step: int) -> Manifest:
    """Return the manifest of a step."""
    return Manifest(step=step, stage="pretrain", base="base print", data="data print", seed=3, versions={"mlx": "0"})


def save(folder: Path, step: int, keep: int = 9, state: State | None = None) -> Path:
    """Return the checkpoint of a step in a folder."""
    return save_checkpoint(folder, *(state or new_state(step)), EXTRAS, OPTIONS, new_manifest(step), keep)


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
    params, optimizer_state = new_state()
    loaded = load_checkpoint(save(tmp_path, 7, state=(params, optimizer_state)))
    assert_equal(loaded.params, params)
    assert_equal(loaded.optimizer_state, optimizer_state)
    assert_equal(loaded.extras, EXTRAS)
    assert loaded.config == OPTIONS
    assert msgspec.structs.replace(loaded.manifest, files={}, seal="") == new_manifest(7)
    assert loaded.path == tmp_path / "step-000007"


def test_one_without_optimizer_or_extras_has_no_file_of_them_and_gives_none(tmp_path: Path) -> None:
    params = new_state()[0]
    path = save_checkpoint(tmp_path, params, {}, {}, OPTIONS, new_manifest(1))
    assert names(path) == sorted([PARAMS, CONFIG, MANIFEST])
    loaded = load_checkpoint(path)
    assert (loaded.optimizer_state, loaded.extras) == ({}, {})
    assert_equal(loaded.params, params)


def test_parameters_in_bfloat16_come_back_as_they_are_and_are_used_in_float32(tmp_path: Path) -> None:
    params = {"adapter": {"a": mx.array([1 / 3, 2.0]).astype(mx.bfloat16)}, "rows": mx.array([1 / 3])}
    loaded = load_checkpoint(save_checkpoint(tmp_path, params, {}, {}, OPTIONS, new_manifest(1)))
    assert (loaded.params["adapter"]["a"].dtype, loaded.params["rows"].dtype) == (mx.bfloat16, mx.float32)
    assert_equal(float32_params(loaded), {"adapter": {"a": mx.array([0.333984375, 2.0])}, "rows": mx.array([1 / 3])})


def test_a_loaded_one_can_be_read_after_its_folder_is_gone(tmp_path: Path) -> None:
    loaded = load_checkpoint(save(tmp_path, 1))
    shutil.rmtree(tmp_path / "step-000001")
    assert_equal(loaded.params, new_state(1)[0])


def test_an_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path) -> None:
    (params, optimizer_state), grads, optimizer = new_state(1), plain(new_state(2)[0]), adamw(OptimizerConfig(), 10)
    loaded = load_checkpoint(save(tmp_path, 1, state=(params, optimizer_state)))
    found = optimizer.update(grads, plain(loaded.optimizer_state), plain(loaded.params))
    assert_equal(found, optimizer.update(grads, plain(optimizer_state), plain(params)))
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


def test_the_same_step_written_again_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 3, state=new_state(1))
    path = save(tmp_path, 3, state=new_state(2))
    assert_equal(load_checkpoint(path).params, new_state(2)[0])
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


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a manifest; those that are to be None are removed."""
    content = msgspec.json.decode((path / MANIFEST).read_bytes()) | changes
    (path / MANIFEST).write_bytes(msgspec.json.encode({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parametrize("field", ["step", "stage", "base", "data", "seed", "versions"])
def test_a_manifest_that_lacks_a_field_is_refused_by_its_name(field: str, tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    edit(path, **{field: None})
    with pytest.raises(ClaraError, match=f"^{path / MANIFEST}: damaged, or of another version .*`{field}`"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [{"step": 4}, {"base": "other"}, {"seed": 4}, {"files": {}}, {"files": None}, {"seal": None}, {"more": 1}],
    ids=str,
)
def test_an_edited_manifest_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    edit(path, **changes)
    with pytest.raises(ClaraError, match=f"^{path / MANIFEST}: .*altered"):
        load_checkpoint(path)


def test_a_manifest_is_the_same_whatever_its_layout(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    content = msgspec.json.decode((path / MANIFEST).read_bytes())
    (path / MANIFEST).write_bytes(msgspec.json.encode(dict(reversed(content.items()))))
    assert load_checkpoint(path).manifest.step == 3


def test_a_sealed_manifest_that_lists_no_parameters_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    content = msgspec.json.decode((path / MANIFEST).read_bytes())
    edit(path, files={CONFIG: content["files"][CONFIG]})
    edit(path, seal=seal(msgspec.json.decode((path / MANIFEST).read_bytes())))
    with pytest.raises(ClaraError, match=f"lists no {PARAMS}"):
        load_checkpoint(path)


def test_a_checkpoint_under_the_name_of_another_step_is_refused_but_any_other_name_will_do(tmp_path: Path) -> None:
    path = save(tmp_path, 3).rename(tmp_path / "step-000004")
    with pytest.raises(ClaraError, match=f"^{path / MANIFEST}: is that of step 3, but the folder is step-000004"):
        load_checkpoint(path)
    assert load_checkpoint(path.rename(tmp_path / "mine")).manifest.step == 3


def test_an_optimizer_file_that_was_not_saved_with_it_is_not_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, new_state()[0], {}, {}, OPTIONS, new_manifest(1))
    (path / OPTIMIZER).write_bytes(b"not a safetensors file")
    assert load_checkpoint(path).optimizer_state == {}


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=f"^{tmp_path}: no {MANIFEST}; wanted a checkpoint folder"):
        load_checkpoint(tmp_path)


def test_the_newest_is_found_from_run_folder_and_checkpoint(tmp_path: Path) -> None:
    for step in (2, 10):
        save(tmp_path / "checkpoints", step)
    for place, step in (
        (tmp_path, 10),
        (tmp_path / "checkpoints", 10),
        (tmp_path / "checkpoints" / "step-000002", 2),
    ):
        found, problems = newest_checkpoint(place)
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


def failing(real: Any, call: int, error: BaseException) -> Any:
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
    "adapters": (mx, "save_safetensors", 1, RuntimeError("[write] Unable to write 242 bytes to file.")),
    "optimizer state": (mx, "save_safetensors", 2, RuntimeError("[write] Unable to write 242 bytes to file.")),
    "reading back": (mx, "load", 1, RuntimeError("[load_safetensors] invalid data offsets")),
    "configuration": (Path, "write_bytes", 1, FULL),
    "manifest": (Path, "write_bytes", 2, FULL),
    "flushing a file": (files, "flush", 3, FULL),
    "flushing the folder": (files, "flush", 5, FULL),
    "renaming": (os, "rename", 1, FULL),
}


@pytest.mark.parametrize(("owner", "name", "call", "error"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("step", [2, 1], ids=["the next step", "the same step"])
def test_a_write_that_fails_leaves_the_earlier_checkpoint_and_nothing_else(
    owner: Any, name: str, call: int, error: Exception, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), call, error))
    with pytest.raises(ClaraError, match=rf"step-00000{step}: cannot be written .*; older checkpoints are intact$"):
        save(tmp_path, step, keep=1, state=new_state(5))
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000001"]
    assert_equal(load_checkpoint(tmp_path / "step-000001").params, new_state(1)[0])


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full", "interrupted"])
def test_the_same_step_is_not_lost_if_the_second_renaming_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(os, "rename", failing(os.rename, 2, error))
    with pytest.raises((ClaraError, KeyboardInterrupt)):
        save(tmp_path, 1, state=new_state(5))
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000001"]
    assert_equal(load_checkpoint(tmp_path / "step-000001").params, new_state(1)[0])


def cut_half(path: Path) -> None:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)


def blank_end(path: Path) -> None:
    """Overwrite the last bytes of a file with zeros, as a file system does that lost its last block."""
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))


@pytest.mark.parametrize("damage", [cut, cut_half, blank_end])
@pytest.mark.parametrize("part", [1, 2], ids=["adapters", "optimizer"])
def test_a_file_that_arrived_damaged_without_an_error_is_noticed(
    damage: Any, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    written: list[str] = []
    real = mx.save_safetensors

    def lossy(path: str, *rest: Any) -> None:
        real(path, *rest)
        written.append(path)
        if len(written) == part:
            damage(Path(path))

    monkeypatch.setattr(mx, "save_safetensors", lossy)
    ones = {"w": mx.ones((64, 8))}
    with pytest.raises(ClaraError, match="step-000002: cannot be written"):
        save(tmp_path, 2, state=(ones, ones))
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("limit", [0, 1, 1000, 100_000, 262_143])
def test_a_disk_that_is_really_full_is_noticed(limit: int, tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = ({"w": mx.ones((64, 1024))}, {"m": mx.ones((64, 1024))})
    mx.eval(large)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ClaraError, match="step-000002: cannot be written"):
            save(tmp_path, 2, state=large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-000001"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClaraError, match=r"file/checkpoints/step-000001: cannot be written \(Not a directory\)"):
        save(tmp_path / "file" / "checkpoints", 1)


class KilledHere(BaseException):
    """Stands for the end of the process."""


TOUCHING = (
    *((os, name) for name in ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")),
    (mx, "save_safetensors"),
    (Path, "write_bytes"),
)


@contextmanager
def killed_at(call: int) -> Iterator[None]:
    """Let nothing touch the disk any more from the n-th such call on, as if the process were killed there."""
    calls: list[str] = []

    def mortal(real: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            calls.append(real.__name__)
            if len(calls) >= call:
                raise KilledHere
            return real(*args, **kwargs)

        return function

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in TOUCHING:
            patch.setattr(owner, name, mortal(getattr(owner, name)))
        yield


SCENES = {"the next step": ([1], 2), "the same step": ([1, 2], 2), "an earlier step": ([1, 2, 8], 4)}


@pytest.mark.parametrize(("before", "step"), SCENES.values(), ids=SCENES)
def test_killed_at_any_call_that_touches_the_disk_it_leaves_a_whole_newest_checkpoint(
    before: list[int], step: int, tmp_path: Path
) -> None:
    small, new = ({"w": mx.ones(3)}, {}), ({"w": mx.zeros(3)}, {})
    for each in before:
        save(tmp_path / "0", each, state=small)
    mark_best(tmp_path / "0", Best(before[-1], "loss", 1.0))
    ended = False
    call = 0
    while not ended:
        call += 1
        folder = shutil.copytree(tmp_path / "0", tmp_path / str(call))
        with killed_at(call):
            try:
                save(folder, step, keep=2, state=new)
                ended = True
            except KilledHere:
                pass
        found, problems = newest_checkpoint(folder)
        assert problems == [], call
        assert found.manifest.step in (before[-1], step), call
        wanted = [state for state, steps in ((small, before), (new, [step])) if found.manifest.step in steps]
        assert any(bool(mx.array_equal(found.params["w"], state[0]["w"])) for state in wanted), call
        assert save(folder, step, keep=2, state=new).is_dir()
        assert_equal(newest_checkpoint(folder)[0].params, new[0])
        best = ["best.json"] if before[-1] <= step else []
        assert names(folder) == [*best, *sorted(path.name for path in checkpoints(folder))], call
        assert not any(name.endswith(".old") for name in names(folder)), call
    assert call > 12


def test_killed_between_the_two_renamings_it_leaves_the_old_one_to_be_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    path.rename(tmp_path / "step-000001.old")
    found, problems = newest_checkpoint(tmp_path)
    assert (found.manifest.step, found.path.name, problems) == (1, "step-000001.old", [])
    save(tmp_path, 1)
    assert names(tmp_path) == ["step-000001"]


def dead_pid() -> int:
    """Return the pid of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_what_dead_processes_left_goes_with_the_next_save_and_what_belongs_to_living_ones_stays(
    tmp_path: Path,
) -> None:
    path = save(tmp_path, 1)
    left = [f".step-000002.{dead_pid()}.tmp", f".step-000007.{os.getpid()}.tmp", f".step-000002.{os.getppid()}.tmp"]
    for name in left:
        shutil.copytree(path, tmp_path / name)
    assert checkpoints(tmp_path) == [path]
    save(tmp_path, 3)
    assert names(tmp_path) == [left[-1], "step-000001", "step-000003"]


DRIVER = """
    import os, signal, sys, time
    import clara
    from pathlib import Path
    import mlx.core as mx
    from clara.io.checkpoint import Manifest, save_checkpoint

    folder = Path(sys.argv[1])

    def save_forever(step, out):
        while True:
            state = {"w": mx.full((64, 64), step)}
            manifest = Manifest(step=step, stage="pretrain", base="", data="", seed=0, versions={})
            for again in range(2):
                save_checkpoint(folder, state, state, {}, {}, manifest)
                os.write(out, b"%d\\n" % step)
            step += 1

    for line in sys.stdin:
        step, seconds = line.split()
        out, into = os.pipe()
        if (pid := os.fork()) == 0:
            save_forever(int(step), into)
        os.close(into)
        os.read(out, 100)
        time.sleep(float(seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(out)
        print("killed", flush=True)
"""


def test_killed_at_any_moment_it_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path)]
    pauses = np.random.default_rng(0).uniform(0, 0.05, size=20)
    step = 1
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin and driver.stdout
        for pause in pauses:
            print(step, pause, file=driver.stdin, flush=True)
            assert driver.stdout.readline() == "killed\n"
            found, problems = newest_checkpoint(tmp_path)
            assert problems == []
            assert found.manifest.step >= step
            for tree in (found.params, found.optimizer_state):
                assert bool(mx.all(tree["w"] == found.manifest.step))
            step = found.manifest.step + 1
    assert driver.returncode == 0


def test_the_manifest_says_what_it_says_in_plain_json(tmp_path: Path) -> None:
    content = msgspec.json.decode((save(tmp_path, 5) / MANIFEST).read_bytes())
    assert content["step"] == 5 and content["versions"] == {"mlx": "0"} and content["started_from"] == ""
    assert sorted(content["files"]) == sorted([PARAMS, OPTIMIZER, CONFIG])
    assert all(len(digest) == 64 for digest in (*content["files"].values(), content["seal"]))


def test_the_versions_are_those_of_what_is_installed() -> None:
    found = versions()
    assert list(found) == ["clara-mlx", "mlx", "mlx-lm", "python"]
    assert (found["mlx"], found["python"]) == (mx.__version__, platform.python_version())


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("clara.io.checkpoint.version", missing)
    assert versions()["clara-mlx"] == "not installed" and versions()["python"]


def test_a_fingerprint_is_that_of_the_parameters_alone(tmp_path: Path) -> None:
    params, optimizer_state = new_state(1)
    turned = dict(reversed(params.items()))
    first = fingerprint(save(tmp_path, 1, state=(params, optimizer_state)))
    assert fingerprint(save(tmp_path, 2, state=(turned, {}))) == first
    assert fingerprint(save(tmp_path, 3, state=new_state(2))) != first
    assert len(first) == 16 and int(first, 16) >= 0
    with pytest.raises(ClaraError, match=f"no {MANIFEST}"):
        fingerprint(tmp_path)


KINDS = [mx.float32, mx.float16, mx.bfloat16, mx.int8, mx.uint32, mx.int64, mx.bool_, mx.complex64]


@given(kind=st.sampled_from(KINDS), shape=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 99))
def test_arrays_of_any_kind_and_shape_are_written_as_they_are(
    kind: mx.Dtype, shape: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    leaf = mx.random.randint(0, 100, shape, key=mx.random.key(seed)).astype(kind)
    path = tmp_path_factory.mktemp("arrays") / "arrays.safetensors"
    write_arrays(path, {"one": leaf, "nan": mx.array(float("nan"))}, {"about": "test"})
    found: Any = mx.load(str(path), return_metadata=True)
    assert (found[0]["one"].dtype, found[0]["one"].shape) == (kind, tuple(shape))
    assert found[0]["one"].tolist() == leaf.tolist()
    assert found[1]["about"] == "test"


def test_minus_zero_is_not_zero_when_arrays_are_compared() -> None:
    zero, nan = mx.array([0.0]), mx.array([float("nan")])
    assert checkpoint.same_bits(nan, nan)
    assert not checkpoint.same_bits(zero, -zero)
    assert not checkpoint.same_bits(zero, zero.astype(mx.float16))
    assert not checkpoint.same_bits(zero, None)
