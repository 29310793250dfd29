"""Files and folders that are there whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clara.io.errors import ClaraError

LOCK = ".lock"
ASIDE = ".old"
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]+)\.tmp")
NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)


def sync(path: Path) -> None:
    """Make a file's or a folder's content durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        flush(handle)
    except OSError as error:
        # Some network file systems cannot flush a folder; its files are durable there without that.
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():
            raise
    finally:
        os.close(handle)


def flush(handle: int) -> None:
    """Make what was written to an open file durable; a Mac's `fsync` alone would stop at the drive's cache."""
    if sys.platform == "darwin":
        with suppress(OSError):
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


def sync_all(folder: Path) -> None:
    """Make a folder durable, with everything in it. Raises OSError."""
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(inside, name))
        sync(Path(inside))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary(path: Path) -> Path:
    """Return the name beside a path under which this process prepares or removes what has that path."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove(path: Path) -> None:
    """Remove a file or a folder as far as that can be done."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def discard(path: Path) -> None:
    """Remove a folder that others may look for: its name goes first, so that they never find a part of it."""
    if not os.path.lexists(path):
        return
    hidden = temporary(path)
    with suppress(OSError):
        os.rename(path, hidden)
    remove(hidden)


def remove_stale(folder: Path, name: str = "") -> None:
    """Remove what killed processes left under temporary names in a folder: all of it, or that of one name.

    What belongs to another living process stays, and so does what cannot be removed.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = TEMPORARY.fullmatch(path.name)
            if found and name in ("", found["name"]) and not lives_elsewhere(int(found["pid"])):
                remove(path)


def lives_elsewhere(pid: int) -> bool:
    """Return whether a pid is that of a living process other than this one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def reason(error: OSError) -> str:
    """Return what an OSError says, without its number and file."""
    return error.strerror or str(error)


def cause(error: OSError, target: Path, beside: Path) -> str:
    """Return what an OSError says, and its file where that is another than what is being written."""
    file = error.filename
    if not isinstance(file, str | Path) or Path(file).is_relative_to(beside) or target.is_relative_to(file):
        return reason(error)
    return f"{reason(error)}: '{file}'"


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file beside its name, flush it, and rename it into place.

    Raises ClaraError where that fails; whatever happens, the file has its old content or the new one.
    """
    with staged_file(path) as beside:
        beside.write_bytes(content)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield the name of a new file beside `path` that takes its place, flushed to disk, once the block has ended well.

    After an exception nothing is left of it. A link keeps its place, and what it leads to is written. Raises ClaraError
    for every OSError, and where the path is that of a device, a pipe or a folder.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise ClaraError(f"{path}: cannot be written (no plain file)")
    beside = temporary(path)
    try:
        remove_stale(path.parent, path.name)
        yield beside
        sync(beside)
        os.replace(beside, path)
        sync(path.parent)
    except OSError as error:
        raise ClaraError(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        remove(beside)


@contextmanager
def staged(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `target`, which takes its name, flushed to disk, once the block has ended well.

    After an exception nothing is left of it. Raises ClaraError where the target is there already and is not an empty
    folder, and for every OSError. With `replace`, a folder that is there gives way: it is named `target.old` until
    the new one is in place, so that a process killed at any moment leaves one of the two whole.
    """
    if not replace:
        require_free(target)
    place = Path(os.path.abspath(target))
    beside = temporary(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(place.parent, place.name)
        beside.mkdir()
        yield beside
        sync_all(beside)
        publish(beside, place, replace)
    except OSError as error:
        raise ClaraError(f"{target}: cannot be written ({cause(error, place, beside)})") from error
    finally:
        remove(beside)


def require_free(target: Path) -> None:
    """Raise ClaraError where a path is anything but absent or an empty folder."""
    try:
        free = not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir()))
    except OSError as error:
        raise ClaraError(f"{target}: cannot be read ({reason(error)})") from error
    if not free:
        found = "holds something already" if target.is_dir() else "is no folder"
        raise ClaraError(f"{target}: {found}; give another folder, or remove it")


def publish(beside: Path, target: Path, replace: bool) -> None:
    """Give a finished folder its name; with `replace`, through the `.old` name of one that has it. Raises OSError."""
    aside = target.with_name(target.name + ASIDE)
    if replace and target.exists():
        discard(aside)
        os.rename(target, aside)
        try:
            os.rename(beside, target)
        except BaseException:
            if not target.exists():
                os.rename(aside, target)
            raise
    else:
        os.rename(beside, target)
    sync(target.parent)
    if replace:
        discard(aside)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder for this process, which is `what` in it ("training"), while the block runs.

    The kernel lets go of it when the process dies. A folder that is missing is made, and removed again where it stays
    empty. Raises ClaraError, saying who holds it, where another has it, and where it cannot be written.
    """
    made = not os.path.exists(folder)
    handle = take_lock(folder, what)
    try:
        yield
    finally:
        # Removed while it is held: whoever opened it before finds, once it has the lock, that the name is gone.
        remove(folder / LOCK)
        os.close(handle)
        if made:
            with suppress(OSError):
                folder.rmdir()


def take_lock(folder: Path, what: str) -> int:
    """Return the open, locked file `folder/.lock`, which says who holds it. Raises ClaraError as `locked` does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            held = False
            try:
                held = claim(handle, folder / LOCK, f"{os.getpid()} {what}")
                if held:
                    return handle
            except BlockingIOError as error:
                pid, _, doing = os.pread(handle, 200, 0).decode("utf-8", "replace").partition(" ")
                other = f"another process (pid {pid}) is {doing}" if doing else f"another process is {what}"
                raise ClaraError(f"{other} in {folder}; wait for it or give another folder") from error
            finally:
                if not held:
                    os.close(handle)
    except OSError as error:
        raise ClaraError(f"{folder}: cannot be locked ({reason(error)}); give a folder that can be written") from error


def claim(handle: int, path: Path, holder: str) -> bool:
    """Lock an open file and write the holder into it; return False where it is no longer the file of that path."""
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        current = os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
    if current:
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.encode(), 0)
    return current
