"""A store: made, filled, opened by one writer and many readers, and refused where it is not what it should be."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from numbered import ROWS, held, memory, passage, passages, tiny_info

from clara.io.corpus.passages import Passage, content_hash
from clara.io.errors import ClaraError
from clara.io.memory_store import store as module
from clara.io.memory_store.removal import compact, delete_passages
from clara.io.memory_store.search import memories_of, passages_of, search_memory, search_text
from clara.io.memory_store.shards import shard_path, size
from clara.io.memory_store.store import (
    DATABASE,
    SHARDS,
    Store,
    StoreInfo,
    add_passages,
    close_store,
    count,
    missing,
    open_store,
    opened_store,
    require_compressor,
    shards_of,
    sources,
    used_bytes,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return a store of twelve passages, in three shards, open for writing."""
    with opened_store(tmp_path / "my.clara", create=tiny_info()) as found:
        add_passages(found, passages(range(12)), memory(range(12)))
        yield found


def assert_holds(store: Store, numbers: Any) -> None:
    """Assert that a store has these passages, each with its text, notes and memory, and finds each by both searches."""
    ids = held(store)
    assert sorted(ids) == sorted(numbers) and count(store) == len(ids)
    assert passages_of(store, list(ids.values())) == passages(list(ids))
    if ids:
        assert mx.array_equal(memories_of(store, list(ids.values())).astype(mx.float32), memory(list(ids)))
        best = search_memory(store, memory(list(ids)), 1)
        assert [hits[0].id for hits in best] == list(ids.values())
    for number, id_ in ids.items():
        assert [hit.id for hit in search_text(store, f"number{number}", 3)] == [id_]


def test_what_was_added_is_there_and_found(store: Store) -> None:
    assert_holds(store, range(12))
    assert shards_of(store) == {1: ROWS, 2: ROWS, 3: 2}
    assert sources(store) == [("lamps0.pdf", 4), ("lamps1.pdf", 4), ("lamps2.pdf", 4)]


def test_adding_again_adds_what_is_new(store: Store) -> None:
    assert missing(store, passages([3, 40, 11, 41, 40])) == passages([40, 41])
    assert add_passages(store, passages([3, 40, 11, 41, 40]), memory([3, 40, 11, 41, 40])) == 2
    assert add_passages(store, passages([3, 40]), memory([5, 6])) == 0, "the first memory stays"
    assert add_passages(store, [], memory([])) == 0
    assert_holds(store, [*range(12), 40, 41])


def test_a_text_is_known_by_its_content_whatever_hash_it_comes_with(store: Store) -> None:
    other = msgspec.structs.replace(passage(3), hash="f" * 32, title="Another title")
    new = Passage(text="A bell.", hash=passage(4).hash)
    assert missing(store, [other, new]) == [new]
    assert add_passages(store, [other, new], memory([3, 77])) == 1
    (hit,) = search_text(store, "bell", 1)
    assert passages_of(store, [hit.id])[0].hash == content_hash("A bell.")


def test_a_store_is_read_again_as_it_was_written(store: Store) -> None:
    close_store(store)
    for readonly in (True, False):
        with opened_store(store.path, readonly=readonly) as again:
            assert (again.info, again.form) == (tiny_info(), store.form)
            assert_holds(again, range(12))
    assert sorted(path.name for path in store.path.iterdir()) == [SHARDS, DATABASE]


@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_packing_finds_and_gives_back_its_memories(dtype: str, bits: int, tmp_path: Path) -> None:
    numbers = range(30)
    with opened_store(tmp_path / "s", create=tiny_info(dtype=dtype, bits=bits, hidden=96)) as store:
        memories = memory(numbers, hidden=96)
        add_passages(store, passages(numbers), memories)
        assert [hits[0].id for hits in search_memory(store, memories, 1)] == list(held(store).values())
        difference = mx.abs(memories_of(store, [7, 3]) - memories[mx.array([6, 2])]).max().item()
        assert difference <= {0: 0, 8: 0.04, 4: 0.5}[bits]


STRANGE = [
    "a\x00b lamp",
    "\ud800 half",
    "🪔👩‍🚀",
    " ",
    "\r\n\t",
    "x" * 3_000_000,
    "é" * 1000,
    "'; DROP TABLE passages; --",
]


def test_any_text_is_kept_as_it_is(tmp_path: Path) -> None:
    with opened_store(tmp_path / "s", create=tiny_info()) as store:
        strange = [Passage(text=text, title=text[:50], source=text[:50]) for text in STRANGE]
        assert add_passages(store, strange, memory(range(len(STRANGE)))) == len(STRANGE)
        assert missing(store, strange) == []
        found = passages_of(store, range(1, len(STRANGE) + 1))
        assert [p.text for p in found] == [text.replace("\ud800", "?") for text in STRANGE]
        assert [p.hash for p in found] == [content_hash(text) for text in STRANGE]
        assert delete_passages(store, source=STRANGE[1]) == 1 and delete_passages(store, source=STRANGE[0]) == 1
        assert search_text(store, "a b lamp", 5) == []


def test_passages_are_removed_by_source_and_by_hash(store: Store) -> None:
    assert delete_passages(store, source="lamps1.pdf") == 4
    assert delete_passages(store, source="lamps1.pdf") == 0 == delete_passages(store, source="lamps")
    assert delete_passages(store, hashes=[passage(0).hash, passage(2).hash, "", passage(1).hash]) == 2
    left = [3, 5, 6, 8, 9, 11]
    assert_holds(store, left)
    assert add_passages(store, passages([1, 0]), memory([1, 0])) == 2
    assert_holds(store, [*left, 0, 1])


def test_rows_of_removed_passages_are_never_written_over(store: Store) -> None:
    delete_passages(store, hashes=[passage(11).hash, passage(10).hash])
    before = Path(shard_path(store.path / SHARDS, 3)).read_bytes()
    add_passages(store, passages([20]), memory([20]))
    assert shards_of(store)[3] == 3
    assert [hit.id for hit in search_text(store, "number20", 1)] == [13], "nor are ids"
    form = store.form
    first = size(form) - form.rows * 2 * 2 * 32
    assert Path(shard_path(store.path / SHARDS, 3)).read_bytes()[first : first + 256] == before[first : first + 256]


@pytest.mark.parametrize(
    ("memories", "said"),
    [
        (memory([1]), "memories of shape (1, 2, 32) for 2 passages; wanted (2, 2, 32)"),
        (memory([1, 2], tokens=3), "wanted (2, 2, 32)"),
        (memory([1, 2], hidden=64), "wanted (2, 2, 32)"),
        (
            memory([1, 2]) * mx.array([[[1.0]], [[mx.inf]]]),
            "memory of 'Lamp number51 burns red.' is not finite in bfloat16",
        ),
    ],
)
def test_memories_that_do_not_fit_are_refused(memories: mx.array, said: str, store: Store) -> None:
    with pytest.raises(ClaraError) as caught:
        add_passages(store, passages([50, 51]), memories)
    assert said in str(caught.value)
    assert_holds(store, range(12))


def test_a_number_beyond_float16_is_refused_there(tmp_path: Path) -> None:
    with opened_store(tmp_path / "s", create=tiny_info(dtype="float16")) as store:
        with pytest.raises(ClaraError, match="is not finite in float16"):
            add_passages(store, passages([1]), memory([1]) * 1e6)
        assert count(store) == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "float32"}, "dtype float32: wanted float16 or bfloat16"),
        ({"bits": 3}, "bits 3: wanted 8 or 4"),
        ({"bits": 8, "hidden": 40}, "groups of 64 or 32 numbers, which do not divide the base's hidden size 40"),
    ],
)
def test_a_store_that_cannot_be_is_refused_before_anything_is_done(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ClaraError) as caught:
        tiny_info(**fields)
    assert said in str(caught.value)


def test_shards_are_of_the_size_that_they_may_have() -> None:
    smollm2 = StoreInfo(base="", compressor="", model="", num_memory_tokens=16, hidden=576)
    for bits, group in ((0, 0), (8, 64), (4, 64)):
        form = msgspec.structs.replace(smollm2, bits=bits).form
        assert form.packing.group_size == group and 2**28 * 0.99 < size(form) < 2**28 + 2**20
    assert msgspec.structs.replace(smollm2, hidden=96, bits=8).form.packing.group_size == 32
    assert msgspec.structs.replace(smollm2, hidden=2**28).form.rows == 1
    assert msgspec.structs.replace(smollm2, hidden=1, num_memory_tokens=1).form.rows == 2**16


def refusal(path: Path, **how: Any) -> str:
    """Return the message with which a store is not opened."""
    with pytest.raises(ClaraError) as caught:
        close_store(open_store(path, **how))
    return str(caught.value)


@pytest.mark.parametrize("readonly", [False, True])
def test_what_is_no_store_is_refused_and_left_alone(readonly: bool, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for name in ("nothing", "run"):
        said = refusal(tmp_path / name, readonly=readonly)
        assert (
            said
            == f"{tmp_path / name}: no memory store (no store.sqlite); make one with python -m clara.shell.compress"
        )
    assert "holds something else than a memory store" in refusal(tmp_path / "run", create=tiny_info())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "run"]


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refusal(tmp_path / "file", create=tiny_info())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_whose_making_was_cut_short_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (path / SHARDS).mkdir(parents=True)
    for content in (None, b""):
        if content is not None:
            (path / DATABASE).write_bytes(content)
            for readonly in (False, True):
                assert "its making was interrupted; make it again" in refusal(path, readonly=readonly)
        with opened_store(path, create=tiny_info()) as store:
            assert count(store) == 0
        shutil.rmtree(path)
        path.mkdir()


def test_an_existing_store_keeps_its_info(store: Store) -> None:
    close_store(store)
    with opened_store(store.path, create=tiny_info(compressor="d" * 16)) as again:
        assert again.info == tiny_info()


def test_another_compressor_is_refused_with_an_explanation(store: Store) -> None:
    require_compressor(store.info, "c" * 16)
    with pytest.raises(ClaraError) as caught:
        require_compressor(store.info, "d" * 16)
    said = str(caught.value)
    assert all(part in said for part in ("c" * 16, "d" * 16, "of tiny", "leave --checkpoint out", "new store"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"version": 2, "later": true}', "of format 2; this clara reads format 1"),
        ("{}", "damaged"),
        ("[]", "damaged"),
        ("{", "damaged"),
        ('{"version": 1}', "damaged"),
        (msgspec.json.encode(tiny_info()).decode().replace("bfloat16", "float99"), "damaged"),
    ],
)
def test_another_version_and_a_damaged_info_are_refused(content: str, said: str, store: Store) -> None:
    close_store(store)
    with sqlite3.connect(store.path / DATABASE) as database:
        database.execute("UPDATE info SET content = ?", (content,))
    database.close()
    assert refusal(store.path).startswith(f"{store.path / DATABASE}: {said}")


@pytest.mark.parametrize("readonly", [False, True])
def test_a_truncated_or_missing_shard_is_refused_by_name(readonly: bool, store: Store) -> None:
    close_store(store)
    path = shard_path(store.path / SHARDS, 2)
    os.truncate(path, path.stat().st_size - 1)
    assert f"{path}: " in (said := refusal(store.path, readonly=readonly)) and "truncated or altered" in said
    path.unlink()
    assert refusal(store.path, readonly=readonly).startswith(f"{path}: missing; restore it from a copy")


@pytest.mark.parametrize("readonly", [False, True])
def test_a_damaged_database_is_an_error_with_a_name_and_never_another(readonly: bool, store: Store) -> None:
    close_store(store)
    file = store.path / DATABASE
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for place in rng.integers(0, len(whole) - 600, 40).tolist():
        file.write_bytes(whole[:place] + rng.bytes(600) + whole[place + 600 :])
        try:
            with opened_store(store.path, readonly=readonly) as damaged:
                search_text(damaged, "lamp burns red", 20)
                search_memory(damaged, memory([1]), 20)
                passages_of(damaged, range(1, 13))
        except ClaraError as error:
            told += str(file) in str(error) or SHARDS in str(error) or "was deleted" in str(error)
    assert told > 5
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClaraError, match="damaged"), opened_store(store.path, readonly=readonly) as damaged:
        passages_of(damaged, range(1, 13))


def test_one_process_writes_and_others_read_meanwhile(store: Store) -> None:
    assert f"another process (pid {os.getpid()}) is writing in {store.path}" in refusal(store.path)
    with opened_store(store.path, readonly=True) as reader:
        assert_holds(reader, range(12))
        add_passages(store, passages([30]), memory([30]))
        delete_passages(store, source="lamps1.pdf")
        left = [number for number in range(12) if number % 3 != 1] + [30]
        assert_holds(reader, left)
        for work in (
            lambda: add_passages(reader, passages([31]), memory([31])),
            lambda: delete_passages(reader, source="lamps1.pdf"),
            lambda: compact(reader),
        ):
            with pytest.raises(ClaraError, match="was opened for reading only"):
                work()
    assert_holds(store, left)


def raising(error: BaseException) -> Any:
    """Return a function that raises."""

    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


def test_a_full_disk_is_said_and_what_was_there_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", raising(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(ClaraError, match="the disk is full; free some of it and go on"):
            add_passages(store, passages(range(12, 30)), memory(range(12, 30)))
    assert_holds(store, range(12))
    (pages,) = store.database.execute("PRAGMA page_count").fetchone()
    store.database.execute(f"PRAGMA max_page_count = {pages}")
    long = [msgspec.structs.replace(passage(number), text="red " * 20_000 + str(number)) for number in (60, 61)]
    with pytest.raises(ClaraError, match="the disk is full"):
        add_passages(store, long, memory([60, 61]))
    store.database.execute("PRAGMA max_page_count = 1000000")
    assert_holds(store, range(12))
    assert add_passages(store, passages(range(30)), memory(range(30))) == 18
    assert_holds(store, range(30))


def test_rows_are_durable_before_they_are_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = list[str](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("flush") or real(handle))
    store.database.set_trace_callback(lambda statement: calls.append(statement.split()[0]))
    add_passages(store, passages(range(20, 30)), memory(range(20, 30)))
    writing = calls[calls.index("flush") :]
    assert writing.index("BEGIN") == len(writing) - 1 - writing[::-1].index("flush") + 1
    assert writing.count("flush") == 5, "three shards, and the names of two that are new"
    assert writing[-1] == "COMMIT" and set(writing[writing.index("BEGIN") + 1 : -1]) <= {"INSERT", "--"}
    (synchronous,) = store.database.execute("PRAGMA synchronous").fetchone()
    assert synchronous == 2


def test_shards_that_nobody_names_are_swept_by_the_next_writer(store: Store) -> None:
    close_store(store)
    stale = shard_path(store.path / SHARDS, 4)
    stale.write_bytes(b"begun by a writer that was killed")
    close_store(open_store(store.path, readonly=True))
    assert stale.exists()
    close_store(open_store(store.path))
    assert not stale.exists()


def test_a_store_takes_the_disk_that_it_needs(tmp_path: Path) -> None:
    with opened_store(tmp_path / "s", create=tiny_info(shard_bytes=2**24)) as store:
        add_passages(store, passages(range(5)), memory(range(5)))
        assert shard_path(store.path / SHARDS, 1).stat().st_size > 8e6
        assert 10_000 < used_bytes(store) < 1e6


READER = """
import mmap, os, sys, clara
sys.path.insert(0, sys.argv[2])
from numbered import memory
from clara.io.memory_store.search import search_memory, search_text
from clara.io.memory_store.store import opened_store, count
question = memory([5])
os.setgid(65534)
os.setuid(65534)
try:
    open(os.path.join(sys.argv[1], "mine"), "w")
except PermissionError:
    print("cannot write")
with opened_store(sys.argv[1], readonly=True) as store:
    print(count(store), len(search_text(store, "lamp", 99)), search_memory(store, question, 1)[0][0].id)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, who may not write")
@pytest.mark.parametrize("log", [False, True], ids=["closed", "killed while its log was not empty"])
def test_a_store_is_read_where_nothing_can_be_written(log: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "my.clara")
        store = open_store(path, create=tiny_info())
        add_passages(store, passages(range(12)), memory(range(12)))
        if log:
            shutil.copytree(path, kept := Path(folder, "copy"))
            close_store(store)
            path = kept
        else:
            close_store(store)
        command = [sys.executable, "-c", READER, str(path), str(Path(__file__).parents[2])]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["cannot write", "12 12 6"], done.stderr


def test_a_lock_is_let_go_where_a_store_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    close_store(store)
    with monkeypatch.context() as patched:
        patched.setattr(module, "sweep", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            open_store(store.path)
    with opened_store(store.path) as again:
        assert_holds(again, range(12))
