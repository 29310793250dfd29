"""Removes passages from a store, and their rows from its shards, while readers go on reading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clara.core.search import taken
from clara.io.corpus.rawtext import clean
from clara.io.memory_store.database import explained, transaction
from clara.io.memory_store.shards import Place, append_rows, map_rows
from clara.io.memory_store.store import SHARDS, Store, last_place, require_writable, shards_of, sweep, take


def delete_passages(store: Store, source: str | None = None, hashes: Sequence[str] = ()) -> int:
    """Remove the passages of a source and those with these content hashes; return how many there were."""
    require_writable(store)
    database = store.database
    with explained(store.file), transaction(database, "IMMEDIATE"):
        removed = database.executemany("DELETE FROM passages WHERE hash = ?", [(key,) for key in hashes]).rowcount
        if source is not None:
            removed += database.execute("DELETE FROM passages WHERE source = ?", (clean(source),)).rowcount
    return removed


def compact(store: Store) -> int:
    """Rewrite the shards that have rows of deleted passages, without these; return how many rows that were.

    The new shards are there, durable, before one transaction names them instead of the old. Raises ClaraError where
    the disk has no room for them; the store then is as it was.
    """
    require_writable(store)
    database, form = store.database, store.form
    with explained(store.file):
        live = dict(database.execute("SELECT shard, count(*) FROM passages GROUP BY shard"))
        holes = sum(shards_of(store).values()) - sum(live.values())
        with transaction(database, "IMMEDIATE"):
            partial = [number for number in shards_of(store) if live.get(number, 0) < form.rows] if holes else []
            last = (last_place(store)[0], form.rows)
            for number in partial:
                last = move_rows(store, number, last)
        sweep(store)
        database.execute("INSERT INTO words (words) VALUES ('optimize')")
        database.execute("VACUUM")
    return holes


def move_rows(store: Store, number: int, last: Place) -> Place:
    """Copy the rows of a shard's passages behind the last place, forget the shard, and return the last place then."""
    database, folder = store.database, store.path / SHARDS
    found = database.execute("SELECT id, row FROM passages WHERE shard = ? ORDER BY row", (number,)).fetchall()
    database.execute("DELETE FROM shards WHERE number = ?", (number,))
    if not found:
        return last
    rows = taken(map_rows(store.shard(number), store.form), np.array([row for _, row in found]))
    places = append_rows(folder, store.form, last, rows)
    take(store, places)
    moved = [(*place, id_) for place, (id_, _) in zip(places, found, strict=True)]
    database.executemany("UPDATE passages SET shard = ?, row = ? WHERE id = ?", moved)
    return places[-1][0], places[-1][1] + 1
