"""Files to the records of a corpus: read, cut into passages, each passage once; with a count of everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clara.io.corpus.cutting import cut
from clara.io.corpus.passages import Document, PassageRecord, content_hash, passage_record
from clara.io.corpus.rawtext import Limits
from clara.io.corpus.sources import Note, read_source
from clara.io.errors import ClaraError
from clara.io.tokens import Tokenizer


class Tally(NamedTuple):
    """What was seen so far; it grows while records are drawn."""

    counts: Counter[str]
    """files, skipped, unknown, left_out, documents, pages, characters, tokens, passages, records, duplicates, and of
    what a model wrote questions and paraphrases."""
    rejected: Counter[str]
    """What it wrote in vain, by reason."""


def corpus_records(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    max_tokens: int,
    limits: Limits,
    tally: Tally,
    notify: Callable[[str | None], None] = lambda note: None,
) -> Iterator[PassageRecord]:
    """Yield the records of files, in order: passages of documents, and those of JSON Lines as they are.

    A file that cannot be read is left out. Of passages with the same text the first is kept. notify: is given
    each note, and None after each file.
    """
    seen: set[str] = set()

    for path in files:
        try:
            for found in read_source(path, limits):
                if isinstance(found, Note):
                    tally.counts["left_out"] += found.lost
                    notify(found.text)
                else:
                    yield from _new_records(found, tokenizer, max_tokens, seen, tally.counts)
            tally.counts["files"] += 1
        except ClaraError as error:
            tally.counts["skipped"] += 1
            notify(str(error))
        notify(None)


def _new_records(
    found: Document | PassageRecord, tokenizer: Tokenizer, max_tokens: int, seen: set[str], counts: Counter[str]
) -> Iterator[PassageRecord]:
    """Yield the records of a document, or a record that was found, without passages that were seen before."""
    if isinstance(found, PassageRecord):
        counts["records"] += 1
        keys = [content_hash(text) for text in found.docs]
        if found.data_type == "autoencode" and seen.issuperset(keys):
            counts["duplicates"] += 1
            return
        seen.update(keys)
        yield found
        return
    counts.update(documents=1, pages=len(found.page_starts), characters=len(found.text))
    for passage in cut(found, tokenizer, max_tokens):
        counts["tokens"] += passage.tokens
        if passage.hash in seen:
            counts["duplicates"] += 1
            continue
        seen.add(passage.hash)
        counts["passages"] += 1
        yield passage_record(passage)
