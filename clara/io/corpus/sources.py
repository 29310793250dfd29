"""Files of many kinds to documents: PDF, Markdown, text, HTML and JSON Lines, alone or in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from clara.io.corpus.deadline import OutOfTime, within
from clara.io.corpus.markup import html_charset, html_text, markdown_title, plain_title
from clara.io.corpus.passages import Document, PassageRecord
from clara.io.corpus.pdf import read_pdf
from clara.io.corpus.rawtext import Limits, clean, decode_text, json_lines, read_bytes
from clara.io.errors import ClaraError
from clara.io.records import decode_line, decode_record

KINDS = {
    "pdf": (".pdf",),
    "markdown": (".md", ".markdown"),
    "text": (".txt", ".text", ".rst"),
    "html": (".html", ".htm", ".xhtml"),
    "jsonl": (".jsonl", ".ndjson"),
}
"""What a file is, by the ending of its name."""

ENDINGS = {ending: kind for kind, endings in KINDS.items() for ending in endings}


class Note(NamedTuple):
    """Something that is not as it should be; it names file and line or page."""

    text: str
    lost: bool = True
    """Whether something was left out for it."""


class Found(NamedTuple):
    """What a search for files found."""

    files: list[Path]
    """In order; each once."""
    notes: list[Note]
    """What was named but cannot be read."""
    unknown: int
    """Files in folders whose ending is not known."""


class _Line(Struct, frozen=True):
    """What tells a line of text from a record in JSON Lines."""

    docs: Raw = Raw()
    text: str = ""
    title: str = ""
    source: str = ""


def find_files(sources: Sequence[str]) -> Found:
    """Return the files that sources name, folders searched to their depth in the order of names.

    Hidden files and folders are left out, unless they are named themselves; a folder that links lead to again is
    searched once.
    """
    files: dict[Path, None] = {}
    notes: list[Note] = []
    unknown = 0
    for source in sources:
        path = Path(os.path.expanduser(source))  # leaves ~nobody as it is
        if not path.is_dir():
            if path.suffix.lower() in ENDINGS:
                files[path] = None
            else:
                wanted = ", ".join(ENDINGS)
                what = "does not exist" if not path.exists() else "unknown kind of file"
                notes.append(Note(f"{path}: {what}; wanted a folder or one of {wanted}"))
            continue
        for item in _walk(path):
            if isinstance(item, Note):
                notes.append(item)
            elif item.suffix.lower() in ENDINGS:
                files[item] = None
            else:
                unknown += 1
    return Found(list(files), notes, unknown)


def _walk(folder: Path) -> Iterator[Path | Note]:
    """Yield the files of a folder and of those in it, in the order of names, and the folders that cannot be read."""
    seen: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        path = stack.pop()
        try:
            if not path.is_dir():
                yield path
                continue
            status = path.stat()
            if (key := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(key)
            names = sorted((name for name in os.listdir(path) if not name.startswith(".")), reverse=True)
        except OSError as error:
            yield Note(f"{path}: cannot be read ({error.strerror})")
            continue
        stack += [path / name for name in names]


def read_source(path: Path, limits: Limits) -> Iterator[Document | PassageRecord | Note]:
    """Yield the documents of a file; of JSON Lines also the records; and notes on what was left out of it.

    Raises ClaraError, naming the file, where nothing of it can be read.
    """
    kind = ENDINGS[path.suffix.lower()]
    if kind == "jsonl":
        yield from _read_lines(path, limits)
    elif kind == "pdf":
        document, notes = read_pdf(path, limits)
        yield from [Note(f"{path}: {note}") for note in notes]
        yield document
    else:
        document, note = _read_text(path, kind, limits)
        if note:
            yield Note(f"{path}: {note}", lost=False)
        yield document


def _read_text(path: Path, kind: str, limits: Limits) -> tuple[Document, str]:
    """Return the document of a text file, and what is to be said of its encoding."""
    raw = read_bytes(path, limits)
    text, note = decode_text(raw, html_charset(raw) if kind == "html" else "")
    if kind == "html":
        try:
            with within(limits.page_seconds):
                text, title = html_text(text)
        except OutOfTime:
            raise ClaraError(f"{path}: takes more than {limits.page_seconds:g} s; raise --page-seconds") from None
    else:
        title = markdown_title(text) if kind == "markdown" else plain_title(text)
    return _checked(Document(text, title or clean(path.stem), clean(str(path))), limits, str(path)), note


def _checked(document: Document, limits: Limits, where: str) -> Document:
    """Return the document. Raises ClaraError, naming where it stands, if it is too long or has no text."""
    if len(document.text) > limits.max_characters:
        most = f"{limits.max_characters:,}"
        raise ClaraError(f"{where}: more than {most} characters; raise --max-characters or split it")
    if not document.text.strip():
        raise ClaraError(f"{where}: no text in it")
    return document


def _read_lines(path: Path, limits: Limits) -> Iterator[Document | PassageRecord | Note]:
    """Yield the documents and records of a JSON Lines file, and a note for each bad line."""
    decoder, records = msgspec.json.Decoder(_Line), msgspec.json.Decoder(PassageRecord)
    for number, line in json_lines(path, limits):
        yield _read_line(line, path, number, decoder, records, limits)


def _read_line(
    line: bytes,
    path: Path,
    number: int,
    decoder: msgspec.json.Decoder[_Line],
    records: msgspec.json.Decoder[PassageRecord],
    limits: Limits,
) -> Document | PassageRecord | Note:
    """Return what a line holds, or what is wrong with it."""
    where = f"{path}:{number}"
    try:
        found = decode_line(decoder, line, where)
        if bytes(found.docs):
            return decode_record(records, line, path, number)
        return _checked(Document(found.text, found.title, found.source or clean(str(path))), limits, where)
    except msgspec.MsgspecError as error:
        return Note(f"{where}: wanted an object with text or docs: {error}")
    except ClaraError as error:
        return Note(str(error))
