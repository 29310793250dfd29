"""The database of a store: queries without syntax, transactions, and failures that say what to do."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.io.errors import ClaraError
from clara.io.memory_store import database as module
from clara.io.memory_store.database import (
    MOST_TERMS,
    connect,
    create_tables,
    explained,
    match_query,
    passages_digest,
    read_content,
    transaction,
)

NASTY = [
    *('"', '""', "'", '"lamp', 'la"mp', "lamp*", "lamp AND", "OR", "NOT NOT", "NEAR(lamp red, 2)", "^lamp", "lamp:red"),
    *("text : lamp", "{text title}: x", "(", ")", "-lamp", "+", "lamp + red", "\x00", "lamp\x00red", "🪔", "👩‍🚀 lamp"),
    *(
        "",
        " ",
        "\n\t",
        "_",
        "½",
        "Ⅷ",
        "ﬁre",
        "%s",
        "?",
        "; DROP TABLE passages; --",
        "\ud800",
        "é",
        "e\u0301",
        "İ",
        "ß",
    ),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """Return a database with three passages."""
    found = connect(tmp_path_factory.mktemp("database") / "store.sqlite", readonly=False)
    create_tables(found, "{}")
    for i, text in enumerate(["A lamp burns red.", "Café Zürich, naïve façade", "Lampe: Straße und Füße"]):
        add(found, i, text)
    yield found
    found.close()


def add(database: sqlite3.Connection, number: int, text: str, title: str = "") -> None:
    """Add a passage."""
    values = (str(number), text, title, 1, number)
    columns = 'hash, text, title, shard, row, source, start, "end", tokens'
    database.execute(f"INSERT INTO passages ({columns}) VALUES (?, ?, ?, ?, ?, '', 0, 0, 0)", values)


def matches(database: sqlite3.Connection, query: str) -> list[int]:
    """Return the ids of the passages that a user's query finds."""
    wanted = match_query(query)
    found = database.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid", (wanted,)) if wanted else ()
    return [id_ for (id_,) in found]


def test_the_digest_tells_which_passages_there_are(tmp_path: Path) -> None:
    database = connect(tmp_path / "store.sqlite", readonly=False)
    create_tables(database, "{}")
    digests = [passages_digest(database)]
    for i, text in enumerate(["red", "blue"]):
        add(database, i, text)
        digests.append(passages_digest(database))
    database.execute("DELETE FROM passages WHERE hash = '1'")
    assert passages_digest(database) == digests[1] and len(set(digests)) == 3
    database.close()


@pytest.mark.parametrize("query", NASTY)
def test_no_query_is_taken_for_syntax(query: str, database: sqlite3.Connection) -> None:
    assert set(matches(database, query)) <= {1, 2, 3}
    assert 1 in matches(database, f"{query} red")


@given(st.text(max_size=60))
def test_any_text_is_a_query(database: sqlite3.Connection, query: str) -> None:
    assert set(matches(database, query)) <= {1, 2, 3}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("LAMP", [1, 3]),
        ("cafe", [2]),
        ("CAFÉ", [2]),
        ("cafe\u0301", [2]),
        ("zurich naive", [2]),
        ("straße", [3]),
        ("fusse", []),
        ("füße", [3]),
        ("lamp facade", [1, 2, 3]),
        ("reds", [1]),
        ("red-and-blue", [1]),
        ("la mp", []),
    ],
)
def test_case_diacritics_and_english_endings_do_not_matter_and_any_word_will_do(
    query: str, found: list[int], database: sqlite3.Connection
) -> None:
    assert matches(database, query) == found


@pytest.mark.parametrize("query", ["首都", "中国的首都是哪里", "とうきょう", "東京 tower", "北"])
def test_words_of_chinese_and_japanese_are_found_without_spaces(query: str, tmp_path: Path) -> None:
    database = connect(tmp_path / "store.sqlite", readonly=False)
    create_tables(database, "{}")
    add(database, 1, "北京是中国的首都。", "城市")
    add(database, 2, "東京タワーはとうきょうにある。")
    add(database, 3, "A lamp burns red.")
    found = matches(database, query)
    assert 3 not in found and (1 if query in ("首都", "中国的首都是哪里", "北") else 2) in found
    database.execute("DELETE FROM passages WHERE hash IN ('1', '2')")
    assert matches(database, query) == []
    database.close()


def test_a_query_asks_for_a_word_once_and_for_so_many_at_most() -> None:
    assert match_query("Red red RED lamp") == '"RED" OR "lamp"'
    assert match_query(" ".join(map(str, range(10_000)))).count('"') == 2 * MOST_TERMS


def test_the_longest_query_is_one_that_can_be_asked(database: sqlite3.Connection) -> None:
    assert matches(database, "red " + " ".join(f"w{i}" for i in range(10_000))) == [1]


def test_a_passage_that_is_deleted_is_not_found(database: sqlite3.Connection) -> None:
    add(database, 99, "A violet zeppelin\x00 with a tail", "Airships")
    assert matches(database, "zeppelin") == matches(database, "airships") == matches(database, "tail") != []
    database.execute("DELETE FROM passages WHERE hash = '99'")
    assert matches(database, "zeppelin") == matches(database, "airships") == []
    database.execute("INSERT INTO words (words) VALUES ('integrity-check')")


def test_a_transaction_that_fails_leaves_nothing(database: sqlite3.Connection) -> None:
    with pytest.raises(KeyError), transaction(database, "IMMEDIATE"):
        add(database, 50, "An azure bell")
        raise KeyError
    assert matches(database, "azure") == [] and not database.in_transaction


def test_tables_are_made_whole_or_not_at_all(tmp_path: Path) -> None:
    found = connect(tmp_path / "store.sqlite", readonly=False)
    assert read_content(found) == ""
    found.execute("CREATE TABLE sources (x)")  # in the way of an index
    with pytest.raises(sqlite3.OperationalError):
        create_tables(found, "content")
    assert read_content(found) == ""
    found.execute("DROP TABLE sources")
    create_tables(found, "content")
    assert read_content(found) == "content"
    found.close()


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    writer = connect(file, readonly=False)
    create_tables(writer, "{}")
    reader = connect(file, readonly=True)
    with pytest.raises(ClaraError, match=r"store\.sqlite: cannot be written; copy the store"), explained(file):
        add(reader, 1, "x")
    reader.close()
    writer.close()


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    database = connect(file, readonly=False)
    create_tables(database, "{}")
    add(database, 1, "A lamp")
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(ClaraError, match="the disk is full; free some of it"), explained(file), transaction(database):
        add(database, 2, "red " * 100_000)
    assert matches(database, "lamp") == [1] and matches(database, "red") == []
    database.close()


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be one" * 50, b"SQLite format 3\x00" * 99]
)
@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_is_no_database_is_said_to_be_damaged(content: bytes, readonly: bool, tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    file.write_bytes(content)
    with pytest.raises(ClaraError) as caught, explained(file):
        connect(file, readonly).execute("SELECT * FROM sqlite_master").fetchall()
    assert str(caught.value).startswith(f"{file}: damaged; restore it from a copy")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some of it and go on"),
        (OSError(errno.EIO, "Input/output error", "/x/000001.safetensors"), "/x/000001.safetensors: cannot be read or"),
    ],
)
def test_what_the_system_refuses_is_said(error: OSError, said: str, tmp_path: Path) -> None:
    with pytest.raises(ClaraError) as caught, explained(tmp_path / "store.sqlite"):
        raise error
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("code", "opened"), [(sqlite3.SQLITE_CANTOPEN, True), (sqlite3.SQLITE_READONLY, True), (sqlite3.SQLITE_BUSY, False)]
)
def test_a_database_that_is_being_written_is_never_read_without_locks(
    code: int, opened: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "store.sqlite"
    modes = []

    def stubborn(path: Path, mode: str) -> sqlite3.Connection:
        modes.append(mode)
        if mode == "mode=ro":
            error = sqlite3.OperationalError("no")
            error.sqlite_errorcode = code
            raise error
        return sqlite3.connect(":memory:")

    monkeypatch.setattr(module, "opened", stubborn)
    if opened:
        connect(file, readonly=True).close()
    else:
        with pytest.raises(sqlite3.OperationalError):
            connect(file, readonly=True)
    assert modes == ["mode=ro", "immutable=1"][: 1 + opened]


def test_a_sqlite_without_full_text_search_is_named(tmp_path: Path) -> None:
    wanted = r"store.sqlite: the SQLite of this Python has no full-text search"
    with pytest.raises(ClaraError, match=wanted), explained(tmp_path / "store.sqlite"):
        raise sqlite3.OperationalError("no such module: fts5")
