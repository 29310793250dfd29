"""The documents of an evaluation: compressed once, with what that took for each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from clara.core.collate import Tokens
from clara.io.examples import Encoder, encode_document
from clara.io.memories import Memories, document_key, length_batches
from clara.io.runlog import append_event, read_events
from clara.io.tokens import encode
from clara.shell.memories import BATCH, MULTIPLE, compress_all, compress_tokens
from clara.shell.setup import Session


class Compressed(NamedTuple):
    """Documents that are there as memory."""

    memories: Memories
    keys: Mapping[str, str]
    """Of each text, by which its memory is found."""
    seconds: Mapping[str, float]
    """What compressing each text takes once all is warm, as its batch's share."""


def cut_documents(encoder: Encoder, texts: Iterable[str]) -> int:
    """Return how many texts are longer than the tokens that a memory is made of."""
    return sum(len(encode(encoder.tokenizer, text)) > encoder.doc_max_tokens for text in texts)


def compress_documents(
    session: Session, texts: Iterable[str], root: Path, times: Path, notify: Callable[[str], None] = print
) -> Compressed:
    """Return the memories of texts, from `root` or computed and put there, and what each took.

    times: a file that keeps what each document took when it was computed, but not the first batch of a shape, which
    also pays for what is done once. Of documents without such a time, the seconds are reckoned from their length and
    the others' speed; where there are no others, that of one batch which is computed again, warm.
    """
    tokens = {text: encode_document(session.encoder, text) for text in texts}
    documents = list(dict.fromkeys(tokens.values()))
    keys = {document: document_key(document) for document in documents}
    warm = set[tuple[int, int]]()

    def keep(batch: Sequence[Tokens], seconds: float) -> None:
        append_event(times, {"keys": [keys[document] for document in batch], "seconds": seconds})

    def timed(batch: Sequence[Tokens], seconds: float) -> None:
        if (shape := (len(batch), -(-max(map(len, batch)) // MULTIPLE))) in warm:
            keep(batch, seconds)
        warm.add(shape)

    memories = compress_all(session, documents, root, notify, timed)
    events = read_events(times)
    if documents and not events:
        keep(*timed_batch(session, documents))
        events = read_events(times)
    took = seconds_of(events, keys)
    seconds = {text: took[each] for text, each in tokens.items()}
    return Compressed(memories, {text: keys[each] for text, each in tokens.items()}, seconds)


def timed_batch(session: Session, documents: Sequence[Tokens]) -> tuple[Sequence[Tokens], float]:
    """Return a batch of documents of medium length, and the seconds that compressing it takes once all is warm."""
    batches = length_batches(documents, BATCH)
    batch = batches[len(batches) // 2]
    mx.eval(compress_tokens(session, batch))
    begun = time.perf_counter()
    mx.eval(compress_tokens(session, batch))
    return batch, time.perf_counter() - begun


def seconds_of(events: Sequence[Mapping[str, Any]], keys: Mapping[Tokens, str]) -> dict[Tokens, float]:
    """Return what compressing each document took, by events that have some documents' keys and their seconds.

    keys: of each document.
    """
    known = {key: event["seconds"] / len(event["keys"]) for event in events for key in event["keys"]}
    measured = [document for document in keys if keys[document] in known]
    total = sum(map(len, measured))
    speed = sum(known[keys[document]] for document in measured) / total if total else 0.0
    return {document: known.get(keys[document], speed * len(document)) for document in keys}
