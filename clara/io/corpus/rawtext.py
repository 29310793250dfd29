"""Bytes of files within limits, and their text in whatever encoding it is."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from clara.io.errors import ClaraError


class Limits(Struct, frozen=True, kw_only=True):
    """What a file may be like at most; what is beyond is refused by name."""

    max_megabytes: Annotated[float, Meta(gt=0, description="Largest file that is read.")] = 200.0
    max_characters: Annotated[int, Meta(ge=1, description="Longest text that is taken out of one file.")] = 50_000_000
    max_pages: Annotated[int, Meta(ge=1, description="Most pages of a PDF.")] = 5_000
    page_seconds: Annotated[float, Meta(gt=0, description="Longest time for a page of a PDF, or an HTML file.")] = 20.0


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
    most = int(limits.max_megabytes * 1e6)
    try:
        if not path.is_file():
            raise ClaraError(f"{path}: {'not a plain file' if path.exists() else 'does not exist'}; wanted a document")
        with path.open("rb") as stream:
            raw = stream.read(most + 1)
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > most:
        raise ClaraError(f"{path}: larger than {limits.max_megabytes:g} MB; raise --max-megabytes or split it")
    return raw


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
    return text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()
