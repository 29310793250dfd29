"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from clara.io.errors import ClaraError


def sync(path: Path) -> None:
    """Make a file's or a folder's content durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file beside its name, flush it, and rename it into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
        sync(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ClaraError(f"{path}: cannot be written ({error.strerror})") from error
