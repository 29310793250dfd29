"""Memory stores: exact search by memory, search by words, and passages added."""

from __future__ import annotations

import functools
import itertools
import shutil
from typing import Any

import mlx.core as mx
import numpy as np

from clara.io.corpus.passages import Passage
from clara.io.errors import ClaraError
from clara.io.memory_store.search import search_memory, search_text
from clara.io.memory_store.store import Store, StoreInfo, add_passages, opened_store, used_bytes
from clara.shell.benching.timing import Work
from clara.shell.benching.workbench import Workbench

PACKINGS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "float16": {"dtype": "float16"},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
}
PORTION, BATCH, WORDS, BEST = 500, 32, 190, 20
"""Passages that a store is filled by, and added at a time; words of each; hits of a search."""

TEXT_BYTES = 4096
"""Of a passage in the database, about: its text, and what finds it by words."""


def draw_passages(first: int, number: int) -> list[Passage]:
    """Return passages of words that are as rare as those of a language."""
    words = np.random.default_rng(first).zipf(1.2, (number, WORDS)) % 50_000
    return [Passage(text=" ".join(map(hex, row)), title=f"Document {first}") for row in words.tolist()]


def draw_memories(seed: int, number: int, tokens: int, hidden: int) -> mx.array:
    """Return float32[number, M, D]."""
    return mx.array(np.random.default_rng(seed).standard_normal((number, tokens, hidden), dtype=np.float32))


def filled_store(bench: Workbench, number: int, packing: str) -> Store:
    """Return a store of so many passages, filled for the first case that asks for it, closed with the workbench.

    Raises ClaraError where it would not fit on the disk.
    """
    if (found := bench.kept.get((number, packing))) is not None:
        return found
    tokens, hidden = bench.size.stored, bench.shape().hidden
    need, free = number * (2 * tokens * hidden + TEXT_BYTES), shutil.disk_usage(bench.folder()).free
    if need > 0.9 * free:
        raise ClaraError(
            f"--memories {number}: the store would take {need / 1e9:.1f} GB, and {bench.folder().parent} has "
            f"{free / 1e9:.1f} GB free; give fewer, or set TMPDIR"
        )
    names: dict[str, Any] = {"base": "", "compressor": "", "model": "", "num_memory_tokens": tokens, "hidden": hidden}
    info = StoreInfo(**names, **PACKINGS[packing])
    store = bench.ending.enter_context(opened_store(bench.folder() / f"{number} {packing}", create=info))
    memories = draw_memories(0, min(PORTION, number), tokens, hidden)
    for first in range(0, number, PORTION):
        size = min(PORTION, number - first)
        add_passages(store, draw_passages(first, size), memories[:size])
    bench.kept[number, packing] = store
    return store


def memory_search_work(bench: Workbench, number: int, packing: str = "bfloat16", questions: int = 1) -> Work:
    """Return an exact search of a store by the memories of questions."""
    store = filled_store(bench, number, packing)
    asked = draw_memories(1, questions, bench.size.stored, bench.shape().hidden)
    mx.eval(asked)
    search = functools.partial(search_memory, store, asked, BEST)
    facts = {"bytes_per_passage": used_bytes(store) / number}
    return Work(lambda _: done(search), {"memories": number * questions, "questions": questions}, facts=lambda _: facts)


def words_search_work(bench: Workbench, number: int) -> Work:
    """Return a search of a store by the first words of a passage."""
    store = filled_store(bench, number, "bfloat16")
    question = " ".join(draw_passages(0, 1)[0].text.split()[:12])
    return Work(lambda _: done(functools.partial(search_text, store, question, BEST)), {"questions": 1})


def adding_work(bench: Workbench, number: int) -> Work:
    """Return a batch of new passages added to a store."""
    store = filled_store(bench, number, "bfloat16")
    memories = draw_memories(2, BATCH, bench.size.stored, bench.shape().hidden)
    mx.eval(memories)
    seeds = itertools.count(10**6)
    return Work(
        lambda passages: done(functools.partial(add_passages, store, passages, memories)),
        {"passages": BATCH},
        before=lambda: draw_passages(next(seeds), BATCH),
    )


def done(work: Any) -> list[mx.array]:
    """Do what leaves no array behind; return none."""
    work()
    return []
