"""The database of a store: passages, which row of which shard is theirs, and full-text search, in SQLite.

It is written through a write-ahead log, so that readers go on reading while one process writes.
"""

from __future__ import annotations

import errno
import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clara.io.corpus.passages import Passage, content_hash
from clara.io.corpus.rawtext import clean
from clara.io.errors import ClaraError
from clara.io.files import reason

MOST_TERMS = 256
"""Different words of a query that are looked for."""

UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")

SCHEMA = (
    "CREATE TABLE info (content TEXT NOT NULL)",
    "CREATE TABLE shards (number INTEGER PRIMARY KEY AUTOINCREMENT, filled INTEGER NOT NULL)",
    """CREATE TABLE passages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        hash TEXT NOT NULL UNIQUE,
        text TEXT NOT NULL,
        title TEXT NOT NULL,
        source TEXT NOT NULL,
        first_page INTEGER,
        last_page INTEGER,
        start INTEGER NOT NULL,
        "end" INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        row INTEGER NOT NULL
    )""",
    "CREATE UNIQUE INDEX places ON passages (shard, row)",
    "CREATE INDEX sources ON passages (source)",
    """CREATE VIRTUAL TABLE words USING fts5 (
        title, text, content = 'passages', content_rowid = 'id', tokenize = 'porter unicode61 remove_diacritics 2'
    )""",
    """CREATE TRIGGER added AFTER INSERT ON passages BEGIN
        INSERT INTO words (rowid, title, text) VALUES (new.id, spaced(new.title), spaced(new.text));
    END""",
    """CREATE TRIGGER deleted AFTER DELETE ON passages BEGIN
        INSERT INTO words (words, rowid, title, text)
        VALUES ('delete', old.id, spaced(old.title), spaced(old.text));
    END""",
)

FIELDS = 'hash, text, title, source, first_page, last_page, start, "end", tokens'
"""The columns of a passage, as `columns` and `passage_of` have them."""

DAMAGED = "damaged; restore it from a copy of the store, or compress the corpus into a new one"

FAILED = {
    sqlite3.SQLITE_FULL: "the disk is full; free some of it and go on, what was added before is there",
    sqlite3.SQLITE_BUSY: "in use by another process; try again",
    sqlite3.SQLITE_READONLY: "cannot be written; copy the store to where it can be",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; see who may read its folder",
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
}
"""What to say of failures, by SQLite's primary code."""


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn what SQLite and the system raise in the block into a ClaraError that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        said = FAILED[sqlite3.SQLITE_FULL] if full else f"cannot be read or written ({reason(error)})"
        raise ClaraError(f"{error.filename or file.parent}: {said}") from error
    except sqlite3.DatabaseError as error:
        # Python's own complaints, such as text that is no UTF-8, have no code.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if "no such module" in str(error):
            raise ClaraError(
                f"{file}: the SQLite of this Python has no full-text search (FTS5); take another"
            ) from error
        raise ClaraError(f"{file}: {FAILED.get(code, 'cannot be used')} ({error})") from error


def connect(file: Path, readonly: bool) -> sqlite3.Connection:
    """Return a connection to the database; a reader takes one where nothing can be written as it is.

    Raises sqlite3.DatabaseError where it is none, or cannot be opened.
    """
    if not readonly:
        database = opened(file, "mode=rwc")
        for setting in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON"):
            database.execute(f"PRAGMA {setting}")
        return database
    try:
        return opened(file, "mode=ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        log = file.with_name(file.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise
        return opened(file, "immutable=1")


def opened(file: Path, mode: str) -> sqlite3.Connection:
    """Return a connection that has read the database once; transactions are the caller's."""
    database = sqlite3.connect(f"{file.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=30)
    try:
        database.create_function("spaced", 1, spaced, deterministic=True)
        database.execute("PRAGMA trusted_schema = ON")  # so that triggers may call it
        database.execute("PRAGMA cache_size = -65536")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def transaction(database: sqlite3.Connection, kind: str = "DEFERRED") -> Iterator[None]:
    """Run a block as one transaction: of a reader one state of the store, of a writer ("IMMEDIATE") all or nothing."""
    database.execute(f"BEGIN {kind}")
    try:
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")


def create_tables(database: sqlite3.Connection, content: str) -> None:
    """Make the tables of a new store, all of them or none; content: its info."""
    with transaction(database, "IMMEDIATE"):
        for statement in SCHEMA:
            database.execute(statement)
        database.execute("INSERT INTO info VALUES (?)", (content,))


def read_content(database: sqlite3.Connection) -> str:
    """Return what `create_tables` was given; empty where there are no tables yet."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'info'").fetchone():
        return ""
    (content,) = database.execute("SELECT content FROM info").fetchone()
    return str(content)


def passages_digest(database: sqlite3.Connection) -> str:
    """Return 16 hexadecimal digits of which passages a database has."""
    digest = hashlib.sha256()
    for (key,) in database.execute("SELECT hash FROM passages ORDER BY hash"):
        digest.update(key.encode())
    return digest.hexdigest()[:16]


def columns(passage: Passage) -> tuple[str | int | None, ...]:
    """Return the values of a passage's columns."""
    texts = [clean(text) for text in (passage.text, passage.title, passage.source)]
    pages = passage.pages or (None, None)
    return (content_hash(passage.text), *texts, *pages, passage.start, passage.end, passage.tokens)


def passage_of(values: Sequence[Any]) -> Passage:
    """Return the passage with these values of its columns."""
    key, text, title, source, first, last, start, end, tokens = values
    pages = None if first is None else (first, last)
    return Passage(text=text, title=title, source=source, pages=pages, start=start, end=end, tokens=tokens, hash=key)


def spaced(text: str) -> str:
    """Return a text with spaces around Chinese characters and Japanese kana, each of which is a word of its own."""
    return text if text.isascii() else UNSPACED.sub(" \\g<0> ", text)


def match_query(text: str) -> str:
    """Return an FTS5 query for passages with any of a text's words, none of which FTS5 takes for an operator."""
    words = {word.lower(): word for word in re.findall(r"[^\W_]+", spaced(unicodedata.normalize("NFC", text)))}
    return " OR ".join(f'"{word}"' for word in list(words.values())[:MOST_TERMS])
