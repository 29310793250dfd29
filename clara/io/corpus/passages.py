"""Passages: pieces of documents that fit a compressor, with where they came from; a corpus of them as JSON Lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from clara.io.corpus.rawtext import clean
from clara.io.records import Record, data_path, iterate_records


class Document(NamedTuple):
    """The text of a file, or of a part of it that stands alone."""

    text: str
    title: str = ""
    source: str = ""
    page_starts: tuple[int, ...] = ()
    """Where each page begins in the text, in characters; empty where the source has no pages."""


class Passage(Struct, frozen=True, kw_only=True):
    """A piece of a document."""

    text: str
    title: str = ""
    """Of the document."""
    source: str = ""
    """Path or name of the file that it was cut from."""
    pages: tuple[int, int] | None = None
    """First and last page, counted from 1; None where the source has no pages."""
    start: int = 0
    """Where it begins in the document's text, in characters."""
    end: int = 0
    """Where it ends there."""
    tokens: int = 0
    """By the base's tokenizer; 0 where they were not counted."""
    hash: str = ""
    """`content_hash` of the text."""


class PassageRecord(Record, frozen=True, kw_only=True):
    """A line of a corpus: a record whose one document is a passage, with the passage's notes."""

    title: str = ""
    source: str = ""
    pages: tuple[int, int] | None = None
    start: int = 0
    end: int = 0
    tokens: int = 0
    hash: str = ""


def content_hash(text: str) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of a text's UTF-8, half surrogate pairs as "?"."""
    return hashlib.sha256(clean(text).encode()).hexdigest()[:32]


def passage_record(passage: Passage, **fields: Any) -> PassageRecord:
    """Return the record of a passage, named by its hash; without further fields it is for autoencoding."""
    notes = msgspec.structs.asdict(passage)
    return PassageRecord(docs=[notes.pop("text")], id=passage.hash, **notes, **({"data_type": "autoencode"} | fields))


def encode_record(record: Record) -> bytes:
    """Return a record as a line of JSON, without the fields that say nothing; half surrogate pairs are "?"."""
    fields = {
        name: _cleaned(value) for name, value in msgspec.structs.asdict(record).items() if value not in (None, [])
    }
    return msgspec.json.encode(fields) + b"\n"


def _cleaned(value: Any) -> Any:
    """Return the value of a field as UTF-8 can carry it."""
    if isinstance(value, str):
        return clean(value)
    return [_cleaned(each) for each in value] if isinstance(value, list | tuple) else value


def read_passages(path: str) -> Iterator[Passage]:
    """Yield a passage for each distinct document of a corpus or of training data, line by line.

    Documents with one content hash are one; the first of them counts. A line's notes belong to its document where it
    has one only; other documents get the file's name as source. Raises ClaraError with file and line for a bad line.
    """
    file = data_path(path)
    seen = set()
    for record in iterate_records(file, PassageRecord):
        for text in record.docs:
            key = content_hash(text)
            if key not in seen:
                seen.add(key)
                yield _passage(record, text, key, file)


def _passage(record: PassageRecord, text: str, key: str, file: Path) -> Passage:
    """Return the passage of one document of a line."""
    if len(record.docs) > 1:
        return Passage(text=text, source=clean(file.name), end=len(text), hash=key)
    return Passage(
        text=text,
        title=record.title,
        source=record.source or clean(file.name),
        pages=record.pages,
        start=record.start,
        end=record.end or record.start + len(text),
        tokens=record.tokens,
        hash=key,
    )
