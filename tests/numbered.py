"""Numbered passages with memories that go with them, and what the tiny store that holds them says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from clara.io.corpus.passages import Passage, content_hash
from clara.io.memory_store.store import Store, StoreInfo

TOKENS, HIDDEN = 2, 32
ROWS = 5
"""Of a shard of plain memories."""


def tiny_info(**changes: Any) -> StoreInfo:
    """Return the info of a store whose shards have five rows of plain memories."""
    fields = {"base": "b" * 16, "compressor": "c" * 16, "model": "tiny", "num_memory_tokens": TOKENS, "hidden": HIDDEN}
    return StoreInfo(**{**fields, "shard_bytes": ROWS * (2 * TOKENS * HIDDEN + 4), **changes})


def passage(number: int, source: str = "") -> Passage:
    """Return a passage that is found by its number."""
    text = f"Lamp number{number} burns red."
    return Passage(
        text=text,
        title=f"Lamps of room{number % 7}",
        source=source or f"lamps{number % 3}.pdf",
        pages=(number + 1, number + 2) if number % 2 else None,
        start=10 * number,
        end=10 * number + len(text),
        tokens=number,
        hash=content_hash(text),
    )


def passages(numbers: Sequence[int]) -> list[Passage]:
    """Return a passage for each number."""
    return [passage(number) for number in numbers]


def memory(numbers: Sequence[int], tokens: int = TOKENS, hidden: int = HIDDEN) -> mx.array:
    """Return float32[n, M, D]: the memory of each number's passage, exact in bfloat16."""
    rows = [np.random.default_rng(number).integers(-60, 60, (tokens, hidden)) for number in numbers]
    return mx.array(np.array(rows, dtype=np.float32).reshape(-1, tokens, hidden) / 16)


def number_of(found: Passage) -> int:
    """Return the number of a passage."""
    return int(found.text.split()[1].removeprefix("number"))


def held(store: Store) -> dict[int, int]:
    """Return the number of each passage that a store has, and its id."""
    rows = store.database.execute("SELECT id, text FROM passages")
    return {number_of(Passage(text=text)): id_ for id_, text in rows}
