"""A store whose writers are killed again and again opens, has no passage half, and is completed by the next writer.

Run as a program, this file is the process that does the killing: it imports everything once, computes nothing itself,
and forks a process for each attempt. Where forking is not safe, each attempt is a fresh process.
"""

from __future__ import annotations

import clara  # noqa: F401  # isort: skip  (its BLAS has to be there before MLX)

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count as counter
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from numbered import held, memory, number_of, passage, passages, tiny_info

from clara.io.errors import ClaraError
from clara.io.memory_store import store as module
from clara.io.memory_store.removal import compact, delete_passages
from clara.io.memory_store.search import memories_of, passages_of, search_memory, search_text
from clara.io.memory_store.store import Store, add_passages, missing, opened_store

NUMBERS, BATCH = range(60), 3
KILLS = 40
"""Of each job."""
CALLS = {"pwrite": 40, "fsync": 24, "ftruncate": 5, "open": 30, "unlink": 6, "SQL": 900}
"""What a process kills itself at: how many of these it does at most before; SQL is counted in a thousand steps."""
METHOD = "spawn" if sys.platform == "darwin" else "fork"


class Order(NamedTuple):
    """When a process is to die: at the n-th call, or some time after its start."""

    call: str = ""
    number: int = 0
    delay: float = 0.0
    """Seconds; 0 for never."""


def die() -> None:
    """End this process as nothing else would."""
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(function: Callable[..., Any], number: int, half: bool) -> Callable[..., Any]:
    """Return a function of the system that kills the process at one of its calls: before, or after half of a write."""
    calls = counter(1)

    def run(*args: Any, **options: Any) -> Any:
        if next(calls) == number:
            if half:
                function(args[0], args[1][: len(args[1]) // 2], args[2])
            die()
        return function(*args, **options)

    return run


def arm(order: Order) -> None:
    """Make this process die as ordered."""
    if order.call == "SQL":
        real, calls = module.connect, counter(1)

        def connect(file: Path, readonly: bool) -> sqlite3.Connection:
            database = real(file, readonly)
            database.set_progress_handler(lambda: die() if next(calls) == order.number else 0, 10)
            return database

        setattr(module, "connect", connect)  # noqa: B010
    elif order.call:
        half = order.call == "pwrite" and order.number % 2 == 0
        setattr(os, order.call, deadly(getattr(os, order.call), order.number, half))


def check(store: Store, done: Path) -> set[int]:
    """Assert that what is in a store is whole, and all that was said to be; return the numbers of its passages."""
    ids = held(store)
    numbers = list(ids)
    assert passages_of(store, list(ids.values())) == passages(numbers)
    if ids:
        assert mx.array_equal(memories_of(store, list(ids.values())).astype(mx.float32), memory(numbers))
        assert [hits[0].id for hits in search_memory(store, memory(numbers), 1)] == list(ids.values())
        assert len(search_text(store, "lamp", 1000)) == len(ids)
        assert [hit.id for hit in search_text(store, f"number{numbers[-1]}", 9)] == [ids[numbers[-1]]]
    store.database.execute("PRAGMA wal_checkpoint")
    assert store.database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store.database.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    said = {int(line) for line in done.read_text().split()} if done.exists() else set()
    assert said <= ids.keys(), f"lost {sorted(said - ids.keys())}"
    return set(ids)


def adding(store: Store, done: Path) -> None:
    """Add all passages, and say which are in."""
    for i in range(0, len(NUMBERS), BATCH):
        numbers = list(NUMBERS[i : i + BATCH])
        if missing(store, passages(numbers)):
            add_passages(store, passages(numbers), memory(numbers))
        with open(done, "a") as file:
            file.write("".join(f"{number}\n" for number in numbers))


def compacting(store: Store, done: Path) -> None:
    """Add all passages, remove those of odd numbers, and compact; nothing of the even ones is ever gone."""
    adding(store, done)
    done.write_text("".join(f"{number}\n" for number in NUMBERS[::2]))
    delete_passages(store, hashes=[passage(number).hash for number in NUMBERS[1::2]])
    compact(store)
    assert held(store).keys() == set(NUMBERS[::2])


JOBS = {"adding": adding, "compacting": compacting}


def attempt(job: str, folder: Path, order: Order) -> None:
    """Open the store, check what the process before left, and do the job, dying as ordered."""
    if job == "compacting" and (folder / "done").exists():
        (folder / "done").write_text("".join(f"{number}\n" for number in NUMBERS[::2] if is_said(folder, number)))
    arm(order)
    with opened_store(folder / "my.clara", create=tiny_info()) as store:
        check(store, folder / "done")
        JOBS[job](store, folder / "done")
        check(store, folder / "done")


def is_said(folder: Path, number: int) -> bool:
    """Return whether a passage was said to be in."""
    return str(number) in (folder / "done").read_text().split()


def started(job: str, folder: Path, order: Order) -> int:
    """Return the exit status of an attempt."""
    process: Any = multiprocessing.get_context(METHOD).Process(target=attempt, args=(job, folder, order))
    process.start()
    process.join(order.delay or None)
    if order.delay:
        process.kill()
        process.join()
    return int(process.exitcode)


def orders(seed: int, whole: float) -> Iterator[Order]:
    """Yield how each attempt is to die, every kind in turn. whole: seconds of a job that is left alone."""
    draw = random.Random(seed)
    while True:
        for kind in draw.sample([*CALLS, "time", "time"], len(CALLS) + 2):
            if kind == "time":
                yield Order(delay=draw.uniform(0.2, 1.0) * whole)
            else:
                yield Order(kind, draw.randint(1, CALLS[kind]))


def kill_again_and_again(job: str, root: Path) -> dict[str, Any]:
    """Do a job in store after store, each killed until it is done; return the kills by kind, and the stores."""
    begun = time.monotonic()
    root.joinpath("calm").mkdir()
    if started(job, root / "calm", Order()):
        raise SystemExit("failed when left alone")
    whole = time.monotonic() - begun
    kills: Counter[str] = Counter()
    for number in counter():
        folder = root / str(number)
        folder.mkdir()
        for order in orders(number, whole):
            status = started(job, folder, order)
            if status == -signal.SIGKILL:
                kills[order.call or "time"] += 1
            elif status:
                raise SystemExit(f"{order} in {folder}: exit {status}")
            else:
                break
        if kills.total() >= KILLS and len(kills) == len(CALLS) + 1:
            return {"kills": kills, "stores": number + 1, "seconds": whole}
    raise AssertionError


@pytest.mark.parametrize("job", JOBS)
def test_a_store_survives_that_its_writers_are_killed(job: str, tmp_path: Path) -> None:
    command = [sys.executable, __file__, job, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert sum(found["kills"].values()) >= KILLS
    assert set(found["kills"]) == {*CALLS, "time"}


def writing(path: Path) -> None:
    """Add passages, a few at a time; remove some and compact, again and again."""
    with opened_store(path) as store:
        for i in range(0, 150, BATCH):
            numbers = list(range(i, i + BATCH))
            add_passages(store, passages(numbers), memory(numbers))
            if i % 15 == 0:
                delete_passages(store, source=f"lamps{i // 15 % 3}.pdf")
                compact(store)


def test_readers_find_what_is_there_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "my.clara"
    with opened_store(path, create=tiny_info()) as store:
        add_passages(store, passages([1000]), memory([1000]))
    command = [sys.executable, __file__, "writing", str(path)]
    looks, seen = 0, set[int]()
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as writer,
        opened_store(path, readonly=True) as kept,
    ):
        while writer.poll() is None:
            with opened_store(path, readonly=True) as fresh:
                for store in (kept, fresh):
                    seen |= look(store)
            looks += 1
        assert writer.stderr is not None
        assert writer.returncode == 0, writer.stderr.read()
        assert held(kept).keys() == look(kept) >= {148, 149}
    assert looks > 3 and len(seen) > 20


def look(store: Store) -> set[int]:
    """Return the numbers of passages that a search by memory finds, each with the text and memory that are its own."""
    (hits,) = search_memory(store, memory([1000]), 1000)
    found = set()
    for hit in hits:
        try:
            (each,) = passages_of(store, [hit.id])
            kept = memories_of(store, [hit.id]).astype(mx.float32)
        except ClaraError as error:
            assert "was deleted meanwhile" in str(error)
            continue
        number = number_of(each)
        assert mx.array_equal(kept, memory([number]))
        found.add(number)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "writing":
        writing(Path(sys.argv[2]))
    else:
        print(json.dumps(kill_again_and_again(sys.argv[1], Path(sys.argv[2]))))
