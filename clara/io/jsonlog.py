"""Logs of one JSON document a line, which grow while a job runs: a line counts once its end is in the file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from clara.io.errors import ClaraError
from clara.io.files import flush, reason, sync


def encode_lines(documents: Iterable[Any]) -> bytes:
    """Return documents as JSON Lines."""
    return b"".join(msgspec.json.encode(each) + b"\n" for each in documents)


def append_lines(path: Path, documents: Iterable[Any], durable: bool = True) -> None:
    """Add documents to a log, a line each; a last line that a crash cut off gives way to them.

    The lines are in the file when this returns, and on the disk where they are to be `durable`. One process at a time
    may write. Raises ClaraError where that cannot be.
    """
    try:
        with open(path, "a+b") as file:
            size = whole_size(file)
            file.truncate(size)
            file.write(encode_lines(documents))
            file.flush()
            if durable:
                flush(file.fileno())
        if durable and not size:
            sync(path.parent)
    except OSError as error:
        raise ClaraError(f"{path}: cannot be written ({reason(error)})") from error


def whole_size(file: BinaryIO) -> int:
    """Return how many bytes of an open log are whole lines. Raises OSError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def read_lines(path: Path) -> list[bytes]:
    """Return the whole lines of a log, without a last one that a crash cut off; of a missing file none.

    Raises ClaraError where the file cannot be read.
    """
    try:
        return path.read_bytes().split(b"\n")[:-1] if os.path.lexists(path) else []
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({reason(error)})") from error
