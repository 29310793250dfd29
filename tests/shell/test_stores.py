"""A store and its session: whose checkpoint it keeps, which one fits it, and what a new one says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from folders import tiny_folder
from mlx.utils import tree_flatten
from runs import built_in, text_run, tiny_run
from tiny import assert_same

from clara.io.checkpoint import OPTIMIZER, PARAMS, newest_checkpoint
from clara.io.errors import ClaraError
from clara.io.memory_store.store import CHECKPOINT, Store, opened_store, require_compressor
from clara.io.retention import checkpoints
from clara.shell.stores import (
    builtin_line,
    checkpoint_for,
    info_of,
    keep_checkpoint,
    require_packing,
    session_of,
    store_fingerprint,
)


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    """Return a run."""
    return tiny_run(base, base.parent / "run")


@pytest.fixture
def store(run: Path, tmp_path: Path) -> Iterator[Store]:
    """Return a new store for the memories of the run, with its checkpoint."""
    checkpoint = checkpoint_for(tmp_path / "s", str(run))
    with opened_store(tmp_path / "s", create=info_of(session_of(checkpoint), "tiny")) as found:
        keep_checkpoint(found, checkpoint)
        yield found


def test_a_store_keeps_the_parameters_and_nothing_of_the_optimizer(store: Store, run: Path) -> None:
    (kept,) = checkpoints(store.path / CHECKPOINT)
    assert (kept.name, (kept / OPTIMIZER).exists()) == ("step-000003", False)
    one, other = checkpoint_for(store.path), newest_checkpoint(run)[0]
    assert_same({"params": one.params, "extras": one.extras}, {"params": other.params, "extras": other.extras})
    assert one.config == other.config and one.manifest.started_from == "before"
    assert one.optimizer_state == {} != other.optimizer_state


def test_a_store_is_opened_without_the_run_that_made_it(base: Path, tmp_path: Path) -> None:
    run = tiny_run(base, tmp_path / "run")
    checkpoint = checkpoint_for(tmp_path / "s", str(run))
    session = session_of(checkpoint)
    with opened_store(tmp_path / "s", create=info_of(session, "tiny")) as store:
        keep_checkpoint(store, checkpoint)
    shutil.rmtree(run)
    again = session_of(checkpoint_for(tmp_path / "s"))
    assert store_fingerprint(again) == store_fingerprint(session)
    require_compressor(store.info, store_fingerprint(again))


def test_the_info_of_a_new_store_is_that_of_its_session(store: Store, run: Path) -> None:
    session = session_of(checkpoint_for(store.path))
    info = info_of(session, "tiny", "float16", 8)
    assert (info.base, info.compressor, info.model) == (session.fingerprint, store_fingerprint(session), "tiny")
    assert (info.num_memory_tokens, info.hidden, info.dtype, info.bits) == (4, 32, "float16", 8)
    assert (store.info.dtype, store.info.bits) == ("bfloat16", 0)


def test_shards_are_as_large_as_the_corpus_within_bounds(store: Store) -> None:
    session = session_of(checkpoint_for(store.path))
    row = 2 * 4 * 32
    sizes = [info_of(session, "tiny", passages=count).shard_bytes for count in (0, 100, 2**24 // row, 10**5, 10**9)]
    assert sizes == [2**24, 2**24, 2**24, row * 10**5, 2**28]


def test_the_same_checkpoint_is_copied_once_and_one_with_another_generator_takes_its_place(
    store: Store, run: Path, base: Path, tmp_path: Path
) -> None:
    (kept,) = checkpoints(store.path / CHECKPOINT)
    before = (kept / PARAMS).stat().st_ino
    keep_checkpoint(store, checkpoint_for(store.path, str(run)))
    keep_checkpoint(store, checkpoint_for(store.path))
    assert (kept / PARAMS).stat().st_ino == before
    other = checkpoint_for(store.path, str(tiny_run(base, tmp_path / "other", generator=1.5)))
    require_compressor(store.info, store_fingerprint(session_of(other)))
    keep_checkpoint(store, other)
    assert checkpoints(store.path / CHECKPOINT) == [kept]
    assert checkpoint_for(store.path).manifest.files[PARAMS] == other.manifest.files[PARAMS]


def test_a_copy_that_was_damaged_is_made_again(store: Store, run: Path) -> None:
    (kept,) = checkpoints(store.path / CHECKPOINT)
    (kept / PARAMS).write_bytes(b"")
    with pytest.raises(ClaraError, match="no whole checkpoint found"):
        checkpoint_for(store.path)
    keep_checkpoint(store, checkpoint_for(store.path, str(run)))
    assert checkpoint_for(store.path).path == kept


def test_another_compressor_does_not_fit(store: Store, base: Path, tmp_path: Path) -> None:
    other = session_of(checkpoint_for(store.path, str(tiny_run(base, tmp_path / "other", compressor=1.5))))
    with pytest.raises(ClaraError, match="memories are those of another compressor"):
        require_compressor(store.info, store_fingerprint(other))


def test_the_same_compressor_in_another_dtype_of_its_base_fits(store: Store) -> None:
    session = session_of(checkpoint_for(store.path))
    session.base.module.set_dtype(mx.bfloat16)
    require_compressor(store.info, store_fingerprint(session))


def test_a_base_under_another_name_is_taken(run: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "moved")
    checkpoint = checkpoint_for(tmp_path / "s", str(run))
    moved = session_of(checkpoint, str(tmp_path / "moved"))
    assert store_fingerprint(moved) == store_fingerprint(session_of(checkpoint))
    with pytest.raises(ClaraError, match="was trained on another base"):
        session_of(checkpoint, str(tiny_folder(tmp_path / "other", seed=5)))


def test_without_a_store_the_built_in_checkpoint_is_taken(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built_in(base, tmp_path / "built-in", monkeypatch)
    assert checkpoint_for(tmp_path / "s", "small").path == folder and capsys.readouterr().out == ""
    checkpoint = checkpoint_for(tmp_path / "s")
    assert checkpoint.path == folder and capsys.readouterr().out == builtin_line(checkpoint) + "\n"
    assert builtin_line(checkpoint).startswith(
        f"note      no --checkpoint: small is taken, which comes with the package and is for {base}; another base wants"
    )


def test_a_store_that_is_there_has_a_checkpoint_of_its_own(
    store: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in(base, tmp_path / "built-in", monkeypatch, memory={"compression_rate": 4})
    assert checkpoint_for(store.path).path.is_relative_to(store.path)
    shutil.rmtree(store.path / CHECKPOINT)
    with pytest.raises(ClaraError, match="--checkpoint RUN names the run that made the store"):
        checkpoint_for(store.path)


def test_a_released_checkpoint_is_opened_in_float32_and_copied_as_it_is(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built_in(base, tmp_path / "built-in", monkeypatch)
    checkpoint = checkpoint_for(tmp_path / "s")
    session = session_of(checkpoint)
    assert {leaf.dtype for _, leaf in tree_flatten(session.params)} == {mx.float32}
    assert {leaf.dtype for _, leaf in tree_flatten(checkpoint.params["adapters"])} == {mx.bfloat16}
    with opened_store(tmp_path / "s", create=info_of(session, "tiny")) as store:
        keep_checkpoint(store, checkpoint)
        (kept,) = checkpoints(store.path / CHECKPOINT)
        assert (kept / PARAMS).read_bytes() == (folder / PARAMS).read_bytes()
        require_compressor(store.info, store_fingerprint(session_of(checkpoint_for(store.path))))


def test_a_packing_that_a_store_has_not_is_refused(store: Store) -> None:
    require_packing(store.info, None, None)
    require_packing(store.info, "bfloat16", None)
    with pytest.raises(ClaraError, match="--dtype float16: the store has bfloat16; leave it out"):
        require_packing(store.info, "float16", None)
    with pytest.raises(ClaraError, match="--bits 8: the store has none; leave it out"):
        require_packing(store.info, None, 8)


def test_a_run_of_text_makes_no_store(base: Path, tmp_path: Path) -> None:
    run = text_run(base, tmp_path / "text")
    with pytest.raises(ClaraError, match="step-000003: was trained on text and has no memory; wanted a run of memory"):
        checkpoint_for(tmp_path / "store", str(run))
