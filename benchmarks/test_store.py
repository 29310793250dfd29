"""A memory store: adding passages, and searching them by memory and by words, in every packing."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from clara.io.corpus.passages import Passage
from clara.io.memory_store.search import search_memory, search_text
from clara.io.memory_store.store import Store, StoreInfo, add_passages, count, opened_store, used_bytes

SHAPES = {"tiny": (8, 64, 1000), "smollm2": (16, 576, 10_000)}
"""Of each size of base: memory tokens of a passage, hidden size, and passages in the store."""

PACKINGS = {"bfloat16": {}, "float16": {"dtype": "float16"}, "8 bits": {"bits": 8}, "4 bits": {"bits": 4}}
PORTION, BATCH, WORDS, BEST = 500, 32, 190, 20
"""Passages that a store is filled by, and added at a time in the benchmark; words of each; hits of a search."""


def draw_passages(first: int, number: int) -> list[Passage]:
    """Return passages of words that are as rare as those of a language."""
    words = np.random.default_rng(first).zipf(1.2, (number, WORDS)) % 50_000
    return [Passage(text=" ".join(map(hex, row)), title=f"Document {first}") for row in words.tolist()]


def draw_memories(seed: int, number: int, tokens: int, hidden: int) -> mx.array:
    """Return float32[number, M, D]."""
    return mx.array(np.random.default_rng(seed).standard_normal((number, tokens, hidden), dtype=np.float32))


@pytest.fixture(scope="module", params=PACKINGS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return a store full of passages."""
    tokens, hidden, number = SHAPES[request.config.getoption("--size")]
    number = request.config.getoption("--passages") or number
    names = {"base": "", "compressor": "", "model": "", "num_memory_tokens": tokens, "hidden": hidden}
    info = StoreInfo(**names, **PACKINGS[request.param])
    with opened_store(Path(tmp_path_factory.mktemp("store"), "s"), create=info) as found:
        for first in range(0, number, PORTION):
            size = min(PORTION, number - first)
            add_passages(found, draw_passages(first, size), draw_memories(first, size, tokens, hidden))
        yield found


def note(benchmark: Any, store: Store, passages: int) -> None:
    """Note how many passages one call covers, and what each takes on the disk."""
    benchmark.extra_info |= {
        "passages_per_second": round(passages / benchmark.stats.stats.median),
        "bytes_per_passage": round(used_bytes(store) / count(store)),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        // (2**20 if sys.platform == "darwin" else 2**10),
    }


@pytest.mark.benchmark(group="search by memory")
@pytest.mark.parametrize("questions", [1, 8])
def test_search_memory(benchmark: Any, store: Store, questions: int) -> None:
    asked = draw_memories(1, questions, store.info.num_memory_tokens, store.info.hidden)
    benchmark(search_memory, store, asked, BEST)
    note(benchmark, store, count(store))


@pytest.mark.benchmark(group="search by words")
def test_search_text(benchmark: Any, store: Store) -> None:
    question = " ".join(draw_passages(0, 1)[0].text.split()[:12])
    benchmark(search_text, store, question, BEST)
    note(benchmark, store, count(store))


@pytest.mark.benchmark(group="add a batch of 32")
def test_add_passages(benchmark: Any, store: Store) -> None:
    memories = draw_memories(2, BATCH, store.info.num_memory_tokens, store.info.hidden)
    seeds = iter(range(10**6, 2 * 10**6))
    benchmark.pedantic(
        add_passages, setup=lambda: ((store, draw_passages(next(seeds), BATCH), memories), {}), rounds=10
    )
    note(benchmark, store, BATCH)
