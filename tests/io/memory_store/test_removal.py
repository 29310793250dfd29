"""Compaction: the rows of deleted passages go, all others stay, whatever stops it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from numbered import ROWS, held, memory, passages, tiny_info

from clara.io.errors import ClaraError
from clara.io.memory_store import removal as module
from clara.io.memory_store import store as stores
from clara.io.memory_store.removal import compact, delete_passages
from clara.io.memory_store.search import memories_of, search_memory
from clara.io.memory_store.shards import Form, shard_numbers, shard_path
from clara.io.memory_store.store import (
    SHARDS,
    Store,
    add_passages,
    close_store,
    opened_store,
    shards_of,
    used_bytes,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return a store of seventeen passages, in four shards, open for writing."""
    with opened_store(tmp_path / "s", create=tiny_info()) as found:
        add_passages(found, passages(range(17)), memory(range(17)))
        yield found


def hashes(numbers: Any) -> list[str]:
    """Return the content hashes of passages."""
    return [each.hash for each in passages(numbers)]


def assert_holds(store: Store, numbers: Any) -> None:
    """Assert that these passages are there, each with its memory, in shards that the database names and no others."""
    ids = held(store)
    assert sorted(ids) == sorted(numbers)
    assert mx.array_equal(memories_of(store, list(ids.values())).astype(mx.float32), memory(list(ids)))
    assert [hits[0].id for hits in search_memory(store, memory(list(ids)), 1)] == list(ids.values())
    assert sorted(number for number, _ in shard_numbers(store.path / SHARDS)) == list(shards_of(store))


def test_holes_are_closed_and_whole_shards_are_left(store: Store) -> None:
    delete_passages(store, hashes=hashes([6, 7, 12]))
    before = shard_path(store.path / SHARDS, 1).stat().st_ino
    ids = held(store)
    assert compact(store) == 3
    assert shards_of(store) == {1: ROWS, 5: ROWS, 6: 4}
    assert shard_path(store.path / SHARDS, 1).stat().st_ino == before
    assert held(store) == ids, "ids stay"
    assert_holds(store, set(range(17)) - {6, 7, 12})
    add_passages(store, passages([30, 31]), memory([30, 31]))
    assert shards_of(store) == {1: ROWS, 5: ROWS, 6: ROWS, 7: 1}
    assert_holds(store, set(range(17)) - {6, 7, 12} | {30, 31})


def test_where_nothing_was_deleted_nothing_is_moved(store: Store) -> None:
    before = shards_of(store)
    assert compact(store) == 0 == compact(store)
    assert shards_of(store) == before
    assert_holds(store, range(17))


def test_an_emptied_store_gives_its_space_back_and_takes_no_old_name_again(tmp_path: Path) -> None:
    with opened_store(tmp_path / "s", create=tiny_info()) as store:
        add_passages(store, passages(range(200)), memory(range(200)))
        full = used_bytes(store)
        delete_passages(store, hashes=hashes(range(200)))
        assert compact(store) == 200 and shards_of(store) == {}
        add_passages(store, passages([3]), memory([3]))
        assert shards_of(store) == {41: 1}
    with opened_store(tmp_path / "s", readonly=True) as store:
        assert used_bytes(store) < full / 3
        assert_holds(store, [3])


def raising(error: BaseException) -> Any:
    """Return a function that raises."""

    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


@pytest.mark.parametrize("where", ["append_rows", "take", "sweep"])
def test_what_stops_it_leaves_the_store_as_it_was_or_is_to_be(
    where: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_passages(store, hashes=hashes([0, 8]))
    left = set(range(17)) - {0, 8}
    with monkeypatch.context() as patched:
        patched.setattr(module, where, raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            compact(store)
    assert sorted(held(store)) == sorted(left)
    close_store(store)
    with opened_store(store.path) as again:
        assert_holds(again, left)
        assert compact(again) == (0 if where == "sweep" else 2)
        assert_holds(again, left)


def test_a_full_disk_is_said_and_nothing_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    delete_passages(store, hashes=hashes([0, 8]))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", raising(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(ClaraError, match="the disk is full"):
            compact(store)
    assert sorted(held(store)) == sorted(set(range(17)) - {0, 8})
    assert compact(store) == 2
    assert_holds(store, set(range(17)) - {0, 8})


def test_a_reader_opens_while_shards_are_compacted_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = stores.check_shard, list[Path]()

    def check(path: Path, form: Form) -> None:
        if not seen:
            delete_passages(store, hashes=hashes([0, 8]))
            compact(store)
        seen.append(path)
        real(path, form)

    monkeypatch.setattr(stores, "check_shard", check)
    with opened_store(store.path, readonly=True) as reader:
        assert [path.exists() for path in seen] == [False, False, True, False]
        assert_holds(reader, set(range(17)) - {0, 8})


def test_the_database_gives_its_space_back_too(tmp_path: Path) -> None:
    with opened_store(tmp_path / "s", create=tiny_info(shard_bytes=2**20)) as store:
        add_passages(store, passages(range(900)), memory(range(900)))
        full = store.file.stat().st_size + store.file.with_name("store.sqlite-wal").stat().st_size
        delete_passages(store, hashes=hashes(range(880)))
        compact(store)
        assert_holds(store, range(880, 900))
    assert store.file.stat().st_size < full / 3
