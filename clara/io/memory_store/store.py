"""A store of compressed passages: a folder with a database, shards of memories, and the checkpoint they come from.

The database is the truth. The rows of a batch are in their shards, durable, before the transaction that names them;
rows that it does not name do not exist. So a writer that is killed loses the batch it was in, and a reader sees one
state of the store throughout a search.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import msgspec
import numpy as np
from msgspec import Struct

from clara.io.corpus.passages import Passage, content_hash
from clara.io.errors import ClaraError
from clara.io.files import locked, remove
from clara.io.memory_store.database import (
    FIELDS,
    columns,
    connect,
    create_tables,
    explained,
    read_content,
    transaction,
)
from clara.io.memory_store.shards import (
    LAST,
    Form,
    Place,
    append_rows,
    check_shard,
    make_form,
    pack,
    shard_numbers,
    shard_path,
)

VERSION = 1
"""Of the format that this code writes, and the only one that it reads."""

DATABASE, SHARDS, CHECKPOINT = "store.sqlite", "memories", "checkpoint"
SHARD_BYTES = 2**28
"""Of a shard, at most."""


class StoreInfo(Struct, frozen=True, kw_only=True):
    """What a store holds: memories of one compressor, packed in one way."""

    version: int = VERSION
    base: str
    """Fingerprint of the base."""
    compressor: str
    """Fingerprint of all that a memory depends on besides its document."""
    model: str
    """The base, as the checkpoint names it."""
    num_memory_tokens: int
    hidden: int
    dtype: str = "bfloat16"
    """float16 or bfloat16: of the memories, or of their scales and biases where they are quantised."""
    bits: int = 0
    """Of an element: 8 or 4; 0 where they are not quantised."""
    shard_bytes: int = SHARD_BYTES
    """Of a shard, at most."""

    @property
    def form(self) -> Form:
        """The form of the shards."""
        return make_form(self.num_memory_tokens, self.hidden, self.dtype, self.bits, self.shard_bytes)

    def __post_init__(self) -> None:
        _ = self.form


class Store(NamedTuple):
    """An open store."""

    path: Path
    info: StoreInfo
    database: sqlite3.Connection
    form: Form
    """Of its shards."""
    writable: bool
    ending: ExitStack
    """What `close_store` does."""

    @property
    def file(self) -> Path:
        """The database."""
        return self.path / DATABASE

    def shard(self, number: int) -> Path:
        """Return the file of a shard."""
        return shard_path(self.path / SHARDS, number)


def open_store(path: Path | str, create: StoreInfo | None = None, readonly: bool = False) -> Store:
    """Return the store in a folder, for `close_store` to close; with `create`, a new one where there is none.

    One process at a time may open it to write; readers, any number, may do so meanwhile, also where nothing can be
    written. Raises ClaraError where there is no store, where another process writes, and for one that is damaged,
    truncated or of another version.
    """
    folder = Path(path).expanduser()
    file, create = folder / DATABASE, None if readonly else create
    require_folder(folder, create is not None)
    with explained(file), ExitStack() as stack:
        if not readonly:
            stack.enter_context(locked(folder, "writing"))
            (folder / SHARDS).mkdir(exist_ok=True)
        database = stack.enter_context(closing(connect(file, readonly)))
        if create is not None and not read_content(database):
            create_tables(database, msgspec.json.encode(create).decode())
        info = read_info(database, file)
        store = Store(folder, info, database, info.form, not readonly, stack)
        check_shards(store)
        if not readonly:
            sweep(store)
        return store._replace(ending=stack.pop_all())


def close_store(store: Store) -> None:
    """Close a store, and let others write."""
    with explained(store.file):
        store.ending.close()


@contextmanager
def opened_store(path: Path | str, create: StoreInfo | None = None, readonly: bool = False) -> Iterator[Store]:
    """Yield what `open_store` returns, and close it."""
    store = open_store(path, create, readonly)
    try:
        yield store
    finally:
        close_store(store)


def require_folder(folder: Path, create: bool) -> None:
    """Raise ClaraError where a folder is no store and, with `create`, cannot become one either."""
    if folder.exists() and not folder.is_dir():
        raise ClaraError(f"{folder}: is a file; wanted the folder of a memory store")
    if (folder / DATABASE).is_file():
        return
    if not create:
        raise ClaraError(f"{folder}: no memory store (no {DATABASE}); make one with python -m clara.shell.compress")
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {SHARDS, CHECKPOINT, ".lock"}:
        raise ClaraError(f"{folder}: holds something else than a memory store; give another folder")


def read_info(database: sqlite3.Connection, file: Path) -> StoreInfo:
    """Return what a store holds. Raises ClaraError where that was never written, is of another version, or damaged."""
    content = read_content(database)
    if not content:
        raise ClaraError(f"{file}: its making was interrupted; make it again with python -m clara.shell.compress")
    try:
        version = msgspec.json.decode(content, type=dict)["version"]
        if version == VERSION:
            return msgspec.json.decode(content, type=StoreInfo)
    except (ValueError, KeyError) as error:
        raise ClaraError(f"{file}: damaged ({error}); {LAST}") from error
    raise ClaraError(f"{file}: of format {version}; this clara reads format {VERSION}: take the one that wrote it")


def require_compressor(info: StoreInfo, fingerprint: str) -> None:
    """Raise ClaraError where the memories of a store are not those of the compressor with this fingerprint."""
    if info.compressor != fingerprint:
        raise ClaraError(
            f"the store's memories are those of another compressor (fingerprint {info.compressor}, of {info.model}) "
            f"than the checkpoint's ({fingerprint}), which cannot read them; leave --checkpoint out to take the "
            "store's own, or compress the corpus into a new store"
        )


def shards_of(store: Store) -> dict[int, int]:
    """Return the shards of a store, and how many rows of each are taken."""
    return dict(store.database.execute("SELECT number, filled FROM shards ORDER BY number"))


def check_shards(store: Store) -> None:
    """Raise ClaraError where a shard is missing, truncated or altered."""
    for number in shards_of(store):
        try:
            check_shard(store.shard(number), store.form)
        except ClaraError:
            if number in shards_of(store):  # else a writer compacted it away just now
                raise


def sweep(store: Store) -> None:
    """Remove shards that the database does not name: what killed writers began, and what was compacted."""
    known = shards_of(store)
    for number, path in shard_numbers(store.path / SHARDS):
        if number not in known:
            remove(path)


def count(store: Store) -> int:
    """Return how many passages a store has."""
    with explained(store.file):
        (found,) = store.database.execute("SELECT count(*) FROM passages").fetchone()
        return int(found)


def sources(store: Store) -> list[tuple[str, int]]:
    """Return (source, passages) of all that was added, in the order of the sources' names."""
    with explained(store.file):
        return store.database.execute("SELECT source, count(*) FROM passages GROUP BY source").fetchall()


def used_bytes(store: Store) -> int:
    """Return the bytes that a store takes on the disk; of a shard that is not full, those that were written."""
    found = 0
    for folder, _, names in os.walk(store.path):
        for name in names:
            with suppress(FileNotFoundError):  # a writer may have removed it just now
                found += 512 * os.stat(os.path.join(folder, name)).st_blocks
    return found


def missing(store: Store, passages: Sequence[Passage]) -> list[Passage]:
    """Return the passages whose texts are not in the store, each text once."""
    return [passages[i] for i in new_ones(store, passages)]


def new_ones(store: Store, passages: Sequence[Passage]) -> list[int]:
    """Return which passages are not in the store, each text once, by their places among these."""
    first: dict[str, int] = {}
    for i, passage in enumerate(passages):
        first.setdefault(content_hash(passage.text), i)
    with explained(store.file):
        known = "SELECT 1 FROM passages WHERE hash = ?"
        return [i for key, i in first.items() if not store.database.execute(known, (key,)).fetchone()]


def add_passages(store: Store, passages: Sequence[Passage], memory: mx.array) -> int:
    """Add passages with their memories, float[n, M, D]; return how many of them were new. They are durable then.

    A text that is there already, by its content hash, is left as it is. Raises ClaraError for memories of another shape
    or with numbers that the store's dtype cannot hold, and where nothing can be written; nothing is added then.
    """
    require_writable(store)
    form = store.form
    if memory.shape != (wanted := (len(passages), form.num_memory_tokens, form.hidden)):
        raise ClaraError(
            f"{store.path}: memories of shape {memory.shape} for {len(passages)} passages; wanted {wanted}"
        )
    new = new_ones(store, passages)
    if not new:
        return 0
    rows = pack(memory[mx.array(new)], form.packing)
    for i in np.flatnonzero(~np.isfinite(rows.norm)):
        raise ClaraError(
            f"{store.path}: the memory of {passages[new[i]].text[:60]!r} is not finite in {store.info.dtype}"
        )
    with explained(store.file):
        places = append_rows(store.path / SHARDS, form, last_place(store), rows)
        with transaction(store.database, "IMMEDIATE"):
            take(store, places)
            store.database.executemany(
                f"INSERT INTO passages ({FIELDS}, shard, row) VALUES ({', '.join('?' * 11)})",
                [(*columns(passages[i]), *place) for i, place in zip(new, places, strict=True)],
            )
    return len(new)


def last_place(store: Store) -> Place:
    """Return the newest shard and how many of its rows are taken, all of them where it is gone.

    Rows of passages that were deleted, and numbers of shards that were, are never taken again: a reader may be there.
    """
    newest = "SELECT seq FROM sqlite_sequence WHERE name = 'shards'"
    (number,) = store.database.execute(newest).fetchone() or (0,)
    return number, shards_of(store).get(number, store.form.rows)


def take(store: Store, places: Sequence[Place]) -> None:
    """Note in the database that the rows of some shards are taken up to these places."""
    store.database.executemany(
        "INSERT INTO shards VALUES (?, ?) ON CONFLICT (number) DO UPDATE SET filled = excluded.filled",
        [(number, row + 1) for number, row in dict(places).items()],
    )


def require_writable(store: Store) -> None:
    """Raise ClaraError where a store was opened for reading."""
    if not store.writable:
        raise ClaraError(f"{store.path}: was opened for reading only")
