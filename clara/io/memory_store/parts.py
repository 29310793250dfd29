"""Parts of a store: where several processes fill one, each writes a store of its own inside, and one takes them in.

A part is durable batch by batch, as any store is. One that a killed process left is taken in by the next that fills
the store, however many processes that has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from clara.io.errors import ClaraError
from clara.io.files import discard, sync
from clara.io.memory_store.database import FIELDS, explained, transaction
from clara.io.memory_store.store import DATABASE, SHARDS, Store, last_place, opened_store, require_writable, shards_of

PARTS = "parts"
ROWS = 10_000
"""Passages that are looked at together."""


def part_folder(store: Path, rank: int) -> Path:
    """Return the folder of the part that one process writes."""
    return store / PARTS / f"{rank:04d}"


def take_in_parts(store: Store) -> Iterator[int]:
    """Move the passages of all parts into their store, and remove the parts; yield how many were new, as it goes.

    Raises ClaraError where a part is in use, or damaged; whatever happens, each passage is in a part or in the store.
    """
    require_writable(store)
    for folder in sorted((store.path / PARTS).glob("*")):
        if (folder / DATABASE).is_file():
            yield from take_in(store, folder)
        discard(folder)
    with suppress(OSError):
        (store.path / PARTS).rmdir()


def take_in(store: Store, folder: Path) -> Iterator[int]:
    """Move the passages of one part into the store: shards get further names, then one transaction names them."""
    with opened_store(folder, create=store.info) as part, explained(store.file):
        if part.info != store.info:
            raise ClaraError(f"{folder}: holds other memories than its store; remove it, and compress again")
        if not any(map(len, new_rows(store, part))):
            return
        behind = last_place(store)[0]
        filled = shards_of(part)
        for number in filled:
            link(part.shard(number), store.shard(behind + number))
        sync(store.path / SHARDS)
        with transaction(store.database, "IMMEDIATE"):
            taken = [(behind + number, rows) for number, rows in filled.items()]
            store.database.executemany("INSERT INTO shards VALUES (?, ?)", taken)
            for rows in new_rows(store, part):
                store.database.executemany(
                    f"INSERT INTO passages ({FIELDS}, shard, row) VALUES ({', '.join('?' * 11)})",
                    [(*row[:9], behind + row[9], row[10]) for row in rows],
                )
                yield len(rows)


def new_rows(store: Store, part: Store) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of a part's passages that are not in the store yet: fields, shard, row; some at a time."""
    rows = part.database.execute(f"SELECT {FIELDS}, shard, row FROM passages ORDER BY id")
    known = "SELECT 1 FROM passages WHERE hash = ?"
    while some := list(islice(rows, ROWS)):
        yield [row for row in some if not store.database.execute(known, (row[0],)).fetchone()]


def link(old: Path, new: Path) -> None:
    """Give a file a second name; where the file system has none, a copy. Raises OSError."""
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
        sync(new)
