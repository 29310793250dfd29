"""Search in a store: by the words of passages, and exactly by their memories, of which a block at a time is in RAM."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from clara.core.config import Relevance
from clara.core.search import NOTHING, cosines, late_interactions, merged, pooled_cosines, taken
from clara.core.select import Lens, rows_of
from clara.io.corpus.passages import Passage
from clara.io.errors import ClaraError
from clara.io.memory_store.database import FIELDS, explained, match_query, passage_of, transaction
from clara.io.memory_store.shards import LAST, map_rows, unpack
from clara.io.memory_store.store import Store, shards_of

ATTEMPTS = 5
"""How often a reader begins, where shards are compacted away while it reads."""

T = TypeVar("T")


class Hit(NamedTuple):
    """A passage that was found."""

    id: int
    score: float
    """Its BM25, or the relevance of its memory."""


def search_text(store: Store, query: str, k: int) -> list[Hit]:
    """Return the k passages that have words of a query in text or title, by BM25, best first, scores above 0.

    Any text is a query: it has no syntax; case, diacritics and English endings do not matter. Of equal scores the lower
    id is first.
    """
    if not (words := match_query(query)):
        return []
    with explained(store.file):
        found = store.database.execute(
            "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?", (words, k)
        )
        return [Hit(*row) for row in found]


def word_scores(store: Store, query: str, ids: Sequence[int]) -> list[float]:
    """Return the BM25 that `search_text` finds passages by, of those with these ids; 0 of one without a word of it."""
    if not ids or not (words := match_query(query)):
        return [0.0] * len(ids)
    places = ", ".join("?" * len(ids))
    with explained(store.file):
        found = dict(
            store.database.execute(
                f"SELECT rowid, -rank FROM words WHERE words MATCH ? AND rowid IN ({places})", (words, *ids)
            ).fetchall()
        )
    return [found.get(id_, 0.0) for id_ in ids]


def search_memory(
    store: Store, queries: mx.array, k: int, relevance: Relevance = "flattened", lens: Lens | None = None
) -> list[list[Hit]]:
    """Return for each of queries: float[Q, M, D] the k passages whose memories score highest, best first.

    The memories are compared as `relevance_scores` does, all of them; of equal scores the lower id comes first. Raises
    ClaraError for queries of another shape.
    """
    form = store.form
    if queries.shape[1:] != (form.num_memory_tokens, form.hidden):
        raise ClaraError(
            f"{store.path}: questions of shape {queries.shape[1:]}; wanted {form.num_memory_tokens, form.hidden}"
        )
    wanted = np.array(rows_of(queries, relevance, lens))
    ways: dict[Relevance, Callable[..., np.ndarray]] = {
        "flattened": cosines,
        "late": late_interactions,
        "pooled": functools.partial(pooled_cosines, lens=lens and (np.array(lens.center), np.array(lens.map))),
    }
    scores_of = ways[relevance]

    def search() -> list[list[Hit]]:
        best = [NOTHING] * len(wanted)
        for number in shards_of(store):
            found = store.database.execute("SELECT row, id FROM passages WHERE shard = ? ORDER BY row", (number,))
            if len(places := np.array(found.fetchall(), dtype=np.int64)) == 0:
                continue
            rows = taken(map_rows(store.shard(number), form), slice(places[-1, 0] + 1))
            scores = scores_of(rows, wanted, form.packing)[places[:, 0]]
            best = [merged(b, s, places[:, 1], k) for b, s in zip(best, scores.T, strict=True)]
        return [[Hit(id_, score) for score, id_ in zip(b.scores.tolist(), b.ids.tolist(), strict=True)] for b in best]

    return reading(store, search)


def passages_of(store: Store, ids: Sequence[int]) -> list[Passage]:
    """Return the passages with these ids. Raises ClaraError where one was deleted."""
    return reading(store, lambda: [passage_of(read_columns(store, id_, FIELDS)) for id_ in ids])


def read_columns(store: Store, id_: int, names: str) -> tuple[Any, ...]:
    """Return some columns of a passage. Raises ClaraError where it was deleted."""
    found = store.database.execute(f"SELECT {names} FROM passages WHERE id = ?", (id_,)).fetchone()
    if found is None:
        raise ClaraError(f"{store.path}: passage {id_} was deleted meanwhile; search again")
    return tuple(found)


def memories_of(store: Store, ids: Sequence[int]) -> mx.array:
    """Return float[n, M, D]: the memories of passages, in the store's dtype, or float32 where they were quantised.

    Raises ClaraError where one was deleted.
    """
    form = store.form
    if not ids:
        return mx.zeros((0, form.num_memory_tokens, form.hidden))

    def read() -> mx.array:
        places = np.array([read_columns(store, id_, "shard, row") for id_ in ids])
        order = np.argsort(places[:, 0], kind="stable")
        parts = []
        for number in np.unique(places[:, 0]).tolist():
            rows = map_rows(store.shard(number), form)
            parts.append(unpack(taken(rows, places[places[:, 0] == number, 1]), form.packing))
        return mx.concatenate(parts)[mx.array(np.argsort(order))]

    return reading(store, read)


def reading(store: Store, work: Callable[[], T]) -> T:
    """Return what `work` reads from one state of the store; from a new one where a shard of it was compacted away.

    Within `work` further calls read the same state.
    """
    if store.database.in_transaction:
        return work()
    gone = None
    with explained(store.file):
        for _ in range(ATTEMPTS):
            try:
                with transaction(store.database):
                    return work()
            except FileNotFoundError as error:
                gone = error.filename
    raise ClaraError(f"{gone}: missing; {LAST}")
