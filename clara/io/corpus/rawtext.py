"""Bytes of files within limits, and their text in whatever encoding it is."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

from msgspec import Meta, Struct

from clara.io.errors import ClaraError


class Limits(Struct, frozen=True, kw_only=True):
    """What a file may be like at most; what is beyond is refused by name."""

    max_megabytes: Annotated[float, Meta(gt=0, le=1_000_000, description="Largest file that is read.")] = 200.0
    max_characters: Annotated[
        int, Meta(ge=1, le=10_000_000_000, description="Longest text that is taken out of one file.")
    ] = 50_000_000
    max_pages: Annotated[int, Meta(ge=1, le=10_000_000, description="Most pages of a PDF.")] = 5_000
    page_seconds: Annotated[
        float, Meta(gt=0, le=86_400, description="Longest time for a page of a PDF, or an HTML file.")
    ] = 20.0

    @property
    def most_bytes(self) -> int:
        """`max_megabytes` in bytes."""
        return int(self.max_megabytes * 1e6)


BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Those of UTF-32 come first: one begins with that of UTF-16."""


def read_bytes(path: Path, limits: Limits) -> bytes:
    """Return a file's content. Raises ClaraError where it cannot be read, is no plain file, or is too large."""
    try:
        with open_plain(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            raw = stream.read() if size <= limits.most_bytes else b""
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error
    if max(size, len(raw)) > limits.most_bytes:
        raise ClaraError(f"{path}: larger than {limits.max_megabytes:g} MB; raise --max-megabytes or split it")
    return raw


def open_plain(path: Path) -> BinaryIO:
    """Return a plain file, opened to be read; a pipe is none: it would be waited for without an end.

    Raises ClaraError where it is none, OSError where it cannot be opened.
    """
    if not path.is_file():
        what = "not a plain file" if path.exists() else "does not exist"
        raise ClaraError(f"{path}: {what}; wanted a document")
    return path.open("rb")


def json_lines(path: Path, limits: Limits | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line that is not blank, counted from 1, without a byte order mark.

    Raises ClaraError, naming the file, where it cannot be read or is no plain file, where it says that it is UTF-16 or
    UTF-32, and for a line that is larger than a file may be.
    """
    most = limits.most_bytes if limits else sys.maxsize - 1
    number = 0
    try:
        with open_plain(path) as stream:
            while line := stream.readline(most + 1):
                number += 1
                if limits and len(line) > most:
                    raise ClaraError(f"{path}:{number}: a line of more than {limits.max_megabytes:g} MB")
                line = _unmarked(line, path) if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error


def _unmarked(line: bytes, path: Path) -> bytes:
    """Return a first line without the mark of UTF-8. Raises ClaraError where another mark begins it."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if line.startswith(mark) and encoding != "utf-8":
            raise ClaraError(f"{path}: {encoding[:6].upper()}; save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def clean(text: str) -> str:
    """Return a text as UTF-8 can carry it, half surrogate pairs as "?"; names of files may have some."""
    return text.encode("utf-8", "replace").decode()


def decode_text(raw: bytes, declared: str = "") -> tuple[str, str]:
    """Return the text of bytes, and a note where it is not in the encoding that it should be in; lines end with "\n".

    A byte order mark tells the encoding; without one it is UTF-8, else the declared one, else Windows-1252 or Latin-1.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            text = raw[len(mark) :].decode(encoding, "replace")
            note = f"not all of it is the {encoding} that it begins as" if "\ufffd" in text else ""
            return _unix(text), note
    for encoding in ("utf-8", declared, "cp1252", "latin-1"):
        try:
            text = raw.decode(encoding or "utf-8")
        except (UnicodeError, LookupError):
            continue
        return _unix(text), "" if encoding in ("utf-8", declared) else f"not UTF-8; read as {encoding}"
    raise AssertionError("Latin-1 reads any bytes")


def _unix(text: str) -> str:
    """Return the text with one kind of line end, and half surrogate pairs as "?"."""
    return clean(text.replace("\r\n", "\n").replace("\r", "\n"))
