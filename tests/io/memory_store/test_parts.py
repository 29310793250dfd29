"""Parts of a store: taken in whole, once, whatever stops that and whatever is there already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from numbered import held, memory, passages, tiny_info

from clara.io.errors import ClaraError
from clara.io.memory_store import parts as module
from clara.io.memory_store.parts import PARTS, part_folder, take_in_parts
from clara.io.memory_store.removal import compact, delete_passages
from clara.io.memory_store.search import memories_of, search_memory
from clara.io.memory_store.shards import shard_numbers
from clara.io.memory_store.store import SHARDS, Store, add_passages, opened_store, shards_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return a store of seven passages, in two shards, open for writing."""
    with opened_store(tmp_path / "s", create=tiny_info()) as found:
        add_passages(found, passages(range(7)), memory(range(7)))
        yield found


def add_part(store: Store, rank: int, numbers: range) -> Path:
    """Return the folder of a part that a process has left with some passages."""
    folder = part_folder(store.path, rank)
    folder.parent.mkdir(exist_ok=True)
    with opened_store(folder, create=store.info) as part:
        if numbers:
            add_passages(part, passages(numbers), memory(numbers))
    return folder


def assert_holds(store: Store, numbers: Any) -> None:
    """Assert that these passages are there, each with its memory, in shards that the database names and no others."""
    ids = held(store)
    assert sorted(ids) == sorted(numbers)
    assert mx.array_equal(memories_of(store, list(ids.values())).astype(mx.float32), memory(list(ids)))
    assert [hits[0].id for hits in search_memory(store, memory(list(ids)), 1)] == list(ids.values())
    assert sorted(number for number, _ in shard_numbers(store.path / SHARDS)) == list(shards_of(store))


def test_parts_are_taken_in_and_gone(store: Store) -> None:
    add_part(store, 0, range(7, 20))
    add_part(store, 3, range(20, 22))
    assert sum(take_in_parts(store)) == 15
    assert_holds(store, range(22))
    assert not (store.path / PARTS).exists() and sum(take_in_parts(store)) == 0


def test_what_is_there_already_stays_as_it_is(store: Store) -> None:
    before = held(store)
    add_part(store, 0, range(5, 9))
    add_part(store, 1, range(8, 11))
    assert sum(take_in_parts(store)) == 4
    assert_holds(store, range(11))
    assert {number: id_ for number, id_ in held(store).items() if number < 7} == before


def test_a_part_with_nothing_new_takes_no_shard(store: Store) -> None:
    before = shards_of(store)
    add_part(store, 0, range(3, 6))
    add_part(store, 1, range(0))
    part_folder(store.path, 2).mkdir()
    assert sum(take_in_parts(store)) == 0
    assert shards_of(store) == before and not (store.path / PARTS).exists()


def test_the_store_goes_on_growing_and_shrinking(store: Store) -> None:
    add_part(store, 0, range(7, 12))
    assert sum(take_in_parts(store)) == 5
    add_passages(store, passages(range(12, 30)), memory(range(12, 30)))
    delete_passages(store, hashes=[each.hash for each in passages([8, 13])])
    assert compact(store) == 2
    assert_holds(store, [i for i in range(30) if i not in (8, 13)])


class Stopped(Exception):
    """What stands in for a killed process."""


@pytest.mark.parametrize("name", ["sync", "discard", "link", "new_rows"])
@pytest.mark.parametrize("call", [1, 2])
def test_whatever_stops_it_the_next_completes_it(
    name: str, call: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_part(store, 0, range(7, 20))
    add_part(store, 1, range(20, 22))
    real: Callable[..., Any] = getattr(module, name)
    calls = list[int]()

    def stop(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Stopped
        return real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(module, name, stop)
        list(take_in_parts(store))
    list(take_in_parts(store))
    assert sorted(held(store)) == list(range(22))
    assert not (store.path / PARTS).exists()


def test_a_file_system_without_links_gets_copies(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    add_part(store, 0, range(7, 20))
    assert sum(take_in_parts(store)) == 13
    assert_holds(store, range(20))


def test_a_part_that_is_being_written_is_left_alone(store: Store) -> None:
    folder = part_folder(store.path, 0)
    folder.parent.mkdir()
    with opened_store(folder, create=store.info) as part:
        add_passages(part, passages([9]), memory([9]))
        with pytest.raises(ClaraError, match="writing"):
            list(take_in_parts(store))
    assert sum(take_in_parts(store)) == 1


def test_a_part_of_other_memories_is_refused(store: Store) -> None:
    folder = part_folder(store.path, 0)
    folder.parent.mkdir()
    with opened_store(folder, create=tiny_info(compressor="another")):
        pass
    with pytest.raises(ClaraError, match=r"0000: holds other memories than its store; remove it"):
        list(take_in_parts(store))
