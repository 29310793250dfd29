"""Files and folders that are there whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.io.errors import ClaraError
from clara.io.files import LOCK, digest, discard, locked, remove, staged, staged_file, sync, temporary, write_atomic

FULL = OSError(28, "No space left on device")


def raising(error: BaseException) -> Any:
    """Return a function that raises."""

    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


def content(folder: Path) -> dict[str, bytes | None]:
    """Return what is in a folder and below: the bytes of each file, None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def dead() -> int:
    """Return the pid of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@pytest.mark.parametrize("given", [b"", b"new", b"\x00\r\n" * 70_000])
def test_a_file_is_written_as_given_and_alone(given: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old and longer than the new one")
    write_atomic(path, given)
    assert content(tmp_path) == {"file": given}


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, broken, raising(FULL))
    with pytest.raises(ClaraError, match=r"file: cannot be written \(No space left on device\)"):
        write_atomic(tmp_path / "file", b"new")
    assert content(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, broken, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"new")
    assert content(tmp_path) == {"file": b"old"}


def test_a_staged_file_takes_its_name_at_the_end_and_leaves_nothing_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with staged_file(path) as beside:
        beside.write_bytes(b"new")
        assert beside.parent == tmp_path and not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(KeyboardInterrupt), staged_file(path) as beside:
        beside.write_bytes(b"half")
        raise KeyboardInterrupt
    with pytest.raises(ClaraError, match="file: cannot be written"), staged_file(path):
        pass  # without a file there is nothing to take the name
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"new"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=r"absent/file: cannot be written \(No such file or directory\)"):
        write_atomic(tmp_path / "absent" / "file", b"new")
    with pytest.raises(ClaraError, match=r"file/below: cannot be written \(Not a directory\)"):
        (tmp_path / "file").write_text("x")
        write_atomic(tmp_path / "file" / "below", b"new")


def test_the_name_is_taken_only_after_the_content_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    write_atomic(tmp_path / "file", b"new")
    assert done == ["fsync", "replace", "fsync"]


def test_what_a_killed_write_of_the_same_file_left_goes_with_the_next(dead: int, tmp_path: Path) -> None:
    left = {f".file.{dead}.tmp", f".other.{dead}.tmp", f".file.{os.getppid()}.tmp"}
    for name in left:
        (tmp_path / name).write_text("half")
    write_atomic(tmp_path / "file", b"new")
    assert content(tmp_path).keys() == left - {f".file.{dead}.tmp"} | {"file"}


def test_syncing_leaves_no_handle_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *args: (opened.append(real(*args)), opened[-1])[1])
    monkeypatch.setattr(os, "fsync", raising(FULL))
    with pytest.raises(OSError, match="No space left"):
        sync(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_only_a_folder_may_be_one_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.EINVAL, "Invalid argument")))
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")


@pytest.mark.parametrize("works", [True, False])
def test_a_mac_is_asked_to_flush_its_drive_too(works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    control = (lambda _, command: asked.append(command)) if works else raising(OSError(45, "Operation not supported"))
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda _: asked.append("fsync"))
    sync(tmp_path)
    assert asked == ([51] if works else ["fsync"])


@given(data=st.binary(max_size=300))
def test_a_digest_is_the_sha256(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("digest") / "file"
    path.write_bytes(data)
    assert digest(path) == hashlib.sha256(data).hexdigest()


def test_removing_takes_files_folders_and_links_but_not_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for name in ("link", "folder", "file", "absent"):
        remove(tmp_path / name)
    assert content(tmp_path) == {"kept": None, "kept/file": b"x"}


def test_discarding_takes_the_name_away_before_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x")
    monkeypatch.setattr(os, "unlink", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        discard(folder)
    assert not folder.exists() and temporary(folder).is_dir()


def fill(folder: Path) -> None:
    """Write two files, one of them in a folder."""
    (folder / "below").mkdir()
    (folder / "below" / "b").write_text("b")
    (folder / "a").write_text("a")


FILLED = {"a": b"a", "below": None, "below/b": b"b"}


@pytest.mark.parametrize("before", ["absent", "empty", "deep"])
def test_a_staged_folder_takes_its_name_at_the_end(before: str, tmp_path: Path) -> None:
    target = tmp_path / ("x/y/target" if before == "deep" else "target")
    if before == "empty":
        target.mkdir()
    with staged(target) as folder:
        fill(folder)
        assert folder.parent == target.parent
        assert not target.exists() or content(target) == {}
    assert content(target) == FILLED
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["target", "target/", "./target", "other/../target"])
def test_a_target_can_be_named_in_any_way(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staged(Path(name)) as folder:
        fill(folder)
    assert content(tmp_path / "target") == FILLED


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_after_an_exception_nothing_is_left_and_what_was_there_stays(
    error: BaseException, replace: bool, tmp_path: Path
) -> None:
    if replace:
        (tmp_path / "target").mkdir()
        fill(tmp_path / "target")
    before = content(tmp_path)
    with pytest.raises(type(error)), staged(tmp_path / "target", replace) as folder:
        (folder / "c").write_text("c")
        raise error
    assert content(tmp_path) == before


def test_a_folder_that_holds_something_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    fill(tmp_path / "full")
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").symlink_to("nowhere")
    before = content(tmp_path)
    for name, said in (
        ("full", "holds something already"),
        ("file", "is no folder"),
        ("broken", "is no folder"),
        (".", "holds something already"),
    ):
        with pytest.raises(ClaraError, match=f"{said}; give another folder, or remove it"), staged(tmp_path / name):
            pytest.fail("the work was begun")
    assert content(tmp_path) == before


def test_a_folder_that_was_filled_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match="target: cannot be written"), staged(tmp_path / "target") as folder:
        fill(folder)
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "theirs").write_text("x")
    assert content(tmp_path) == {"target": None, "target/theirs": b"x"}


@pytest.mark.parametrize("broken", ["mkdir", "fsync", "rename"])
def test_a_full_disk_gives_an_error_and_leaves_nothing(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, broken, raising(FULL))
    with (
        pytest.raises(ClaraError, match=r"target: cannot be written \(No space left on device\)"),
        staged(tmp_path / "target") as folder,
    ):
        (folder / "a").write_text("a")
    assert content(tmp_path) == {}


def test_a_file_that_the_work_lacks_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ClaraError, match=r"target: cannot be written \(No such file or directory: '.*input'\)"),
        staged(tmp_path / "target"),
    ):
        (tmp_path / "input").read_bytes()


def test_every_file_and_folder_is_flushed_before_the_name_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    opened: dict[int, str] = {}
    real_open, real_rename = os.open, os.rename
    monkeypatch.setattr(os, "open", lambda path, *a, **k: note(opened, real_open(path, *a, **k), path))
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(Path(opened[handle]).name))
    monkeypatch.setattr(os, "rename", lambda *paths: (done.append("rename"), real_rename(*paths)))
    with staged(tmp_path / "target") as folder:
        fill(folder)
    own = temporary(tmp_path / "target").name
    assert sorted(done[:4]) == sorted(["a", "b", "below", own])
    assert done.index("b") < done.index("below") < done.index(own)
    assert done[4:] == ["rename", tmp_path.name]


def note(opened: dict[int, str], handle: int, path: Any) -> int:
    """Note which path a handle stands for and return the handle."""
    opened[handle] = os.fspath(path)
    return handle


def test_a_folder_that_gives_way_is_there_under_one_name_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    fill(target)
    seen: list[list[str]] = []
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda *paths: (real(*paths), seen.append(sorted(os.listdir(tmp_path)))))
    with staged(target, replace=True) as folder:
        (folder / "c").write_text("c")
    own = temporary(target).name
    assert seen == [[own, "target.old"], ["target", "target.old"], [temporary(tmp_path / "target.old").name, "target"]]
    assert content(tmp_path) == {"target": None, "target/c": b"c"}


def test_a_folder_of_the_users_beside_the_target_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "target.old").mkdir()
    fill(tmp_path / "target.old")
    with staged(tmp_path / "target"):
        pass
    assert content(tmp_path / "target.old") == FILLED


def test_what_a_killed_process_staged_for_the_same_target_goes(dead: int, tmp_path: Path) -> None:
    for name in (f".target.{dead}.tmp", f".target.{os.getpid()}.tmp", f".other.{dead}.tmp"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name)
    with staged(tmp_path / "target"):
        pass
    assert sorted(os.listdir(tmp_path)) == [f".other.{dead}.tmp", "target"]


HOLDER = """
import sys, time
from pathlib import Path
from clara.io.files import locked
with locked(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield another process that holds a folder."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_the_folder_until_that_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        said = rf"^another process \(pid {process.pid}\) is training in {tmp_path}; wait for it or give another folder$"
        with pytest.raises(ClaraError, match=said), locked(tmp_path, "compressing"):
            pytest.fail("two processes hold it")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()
        with locked(tmp_path, "compressing"):
            assert (tmp_path / LOCK).read_text() == f"{os.getpid()} compressing"
    assert content(tmp_path) == {}


def test_a_process_does_not_take_a_folder_twice_and_keeps_the_first_hold(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path, "training"):
            for _ in range(2):
                with pytest.raises(ClaraError, match=rf"\(pid {os.getpid()}\)"), locked(tmp_path, "training"):
                    pytest.fail("it was taken twice")
    assert content(tmp_path) == {}


def test_a_holder_that_has_not_yet_said_who_it_is_is_another_process(tmp_path: Path) -> None:
    with open(tmp_path / LOCK, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ClaraError, match=r"^another process is training in"), locked(tmp_path, "training"):
            pytest.fail("two hold it")


def test_a_lock_file_that_its_holder_removed_meanwhile_is_not_mistaken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    tries: list[int] = []

    def late(handle: int, command: int) -> None:
        tries.append(handle)
        if len(tries) == 1:
            (tmp_path / LOCK).unlink()
        if len(tries) == 2:
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).write_text("another's")
        real(handle, command)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path, "training"):
        assert len(tries) == 3
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()} training"


def test_errors_within_are_passed_on_and_let_go_of_the_folder(tmp_path: Path) -> None:
    for error in (RuntimeError, KeyboardInterrupt, BlockingIOError):
        with pytest.raises(error), locked(tmp_path, "training"):
            raise error
    with locked(tmp_path, "training"):
        pass


def test_no_handle_stays_open(tmp_path: Path) -> None:
    def handles() -> int:
        return len(os.listdir("/dev/fd"))

    before = handles()
    with locked(tmp_path, "training"):
        assert handles() == before + 1
        with pytest.raises(ClaraError), locked(tmp_path, "training"):
            pass
        assert handles() == before + 1
    assert handles() == before


@pytest.mark.parametrize("used", [True, False])
def test_a_folder_that_is_missing_is_made_and_goes_again_if_nothing_was_put_there(used: bool, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with locked(folder, "training"):
        assert folder.is_dir()
        if used:
            fill(folder)
    assert folder.exists() == used


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), PermissionError(13, "Permission denied")])
def test_a_folder_that_cannot_be_written_is_named(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", raising(error))
    said = rf"^{tmp_path}: cannot be locked \({error.strerror}\); give a folder that can be written$"
    with pytest.raises(ClaraError, match=said), locked(tmp_path, "training"):
        pytest.fail("it was locked")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_to_write_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ClaraError, match="cannot be locked"), locked(tmp_path, "training"):
        pytest.fail("it was locked")
    with pytest.raises(ClaraError, match="cannot be written"), staged(tmp_path / "target"):
        pytest.fail("it was made")


def test_a_place_below_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClaraError, match="file/run: cannot be locked"), locked(tmp_path / "file" / "run", "training"):
        pytest.fail("it was locked")


def test_a_link_keeps_its_place_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "real" / "x", tmp_path / "link"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ClaraError, match="cannot be written"):
            write_atomic(path, b"new")
    assert (tmp_path / "pipe").is_fifo()
