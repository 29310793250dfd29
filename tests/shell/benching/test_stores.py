"""Stores of the benchmarks: filled once, searched, added to, and refused where the disk is too small."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from workbenches import tiny_bench

from clara.io.errors import ClaraError
from clara.io.memory_store.search import search_memory, search_text
from clara.io.memory_store.store import count
from clara.shell.benching import stores
from clara.shell.benching.stores import (
    BATCH,
    PACKINGS,
    adding_work,
    draw_memories,
    draw_passages,
    filled_store,
    memory_search_work,
    words_search_work,
)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_store_is_filled_once_in_its_packing_and_found_in(packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PORTION", 8)
    with tiny_bench() as bench:
        store = filled_store(bench, 20, packing)
        assert filled_store(bench, 20, packing) is store and count(store) == 20
        assert (store.info.bits or store.info.dtype) == (PACKINGS[packing].get("bits") or packing)
        (hits,) = search_memory(store, draw_memories(0, 8, 8, 64)[3:4], 1)
        assert hits[0].score > 0.99


def test_the_works_search_and_add(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()
    for name, search in (("search_memory", search_memory), ("search_text", search_text)):
        monkeypatch.setattr(stores, name, lambda *given, _search=search: asked.append(_search(*given)))
    with tiny_bench() as bench:
        memory, words = memory_search_work(bench, 30, questions=3), words_search_work(bench, 30)
        assert memory.call(memory.before()) == words.call(words.before()) == []
        assert [len(hits) for hits in asked[0]] == [20] * 3 and asked[1][0].id == 1
        assert memory.counts == {"memories": 90, "questions": 3} and memory.facts(1.0)["bytes_per_passage"] > 1024


def test_each_round_adds_new_passages() -> None:
    with tiny_bench() as bench:
        work = adding_work(bench, 10)
        for _ in range(2):
            work.call(work.before())
        assert count(filled_store(bench, 10, "bfloat16")) == 10 + 2 * BATCH


def test_passages_are_a_function_of_their_number() -> None:
    assert draw_passages(5, 2) == draw_passages(5, 2) != draw_passages(6, 2)


def test_a_store_that_the_disk_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(stores.shutil, "disk_usage", lambda path: Usage(10_000))
    with tiny_bench() as bench, pytest.raises(ClaraError, match=r"--memories 1000: the store would take"):
        filled_store(bench, 1000, "bfloat16")
