"""Compresses every document of a data set once, keeps the memories on disk, and says how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from clara.core.collate import Tokens, pad_documents
from clara.core.compress import compress
from clara.io.memories import (
    Memories,
    compressor_fingerprint,
    length_batches,
    missing_batches,
    open_memories,
    write_memories,
)
from clara.shell.ranks import ALONE, Ranks, dealt, exchanged, progressing, told
from clara.shell.setup import Session

BATCH = 32
"""Documents that are compressed at a time."""

MULTIPLE = 32
"""Their lengths are padded to a multiple of this."""

EVERY = 10.0
"""Seconds between progress lines."""


def compress_tokens(session: Session, documents: Sequence[Tokens]) -> mx.array:
    """Return float[n, M, D]: the memories of framed documents, in one batch."""
    batch = pad_documents(documents, session.base.layout, len(documents), MULTIPLE)
    return compress(session.base, session.config, session.params, batch).memory


def compress_all(
    session: Session,
    documents: Sequence[Tokens],
    root: Path,
    notify: Callable[[str], None] = print,
    timed: Callable[[Sequence[Tokens], float], None] = lambda batch, seconds: None,
    ranks: Ranks = ALONE,
) -> Memories:
    """Return the memories of documents, from the compressor's folder under root or computed and put there.

    Each document is computed once, in batches that depend on the set of documents alone: an interrupted run goes on
    where it was and ends with the same bits. notify: is given progress lines. timed: is given each batch that was
    computed, and the seconds that took. ranks: share the batches, and must see one folder.
    """
    folder = root / told(ranks, fingerprint_of(session))
    memories, problems = open_memories(folder)
    for problem in problems:
        notify(f"memories  computing anew: {problem}")
    every = length_batches(documents, BATCH)
    lacking = set(map(id, missing_batches(memories, every)))
    batches = [every[i] for i in told(ranks, [i for i, batch in enumerate(every) if id(batch) in lacking])]
    total = sum(map(len, batches))
    notify(f"memories  {len(documents) - total:,} of {len(documents):,} documents are compressed, in {folder}")
    if not batches:
        return memories
    done, begun = 0, time.perf_counter()
    spoken = begun
    for batch in progressing(ranks, dealt(ranks, batches)):
        started = time.perf_counter()
        memory = compress_tokens(session, batch)
        mx.eval(memory)
        timed(batch, time.perf_counter() - started)
        if ranks.leads or not ranks.cut:
            write_memories(folder, batch, memory)
        done = min(done + len(batch) * ranks.part[1], total)  # the other ranks are about as far
        if (now := time.perf_counter()) - spoken > EVERY or done == total:
            spoken = now
            notify(progress_line(done, total, now - begun))
    exchanged(ranks, None)  # all that the others wrote is there
    return open_memories(folder)[0]


def fingerprint_of(session: Session) -> str:
    """Return the fingerprint of a session's compressor."""
    return compressor_fingerprint(session.base, session.config, session.params, session.fingerprint)


def progress_line(done: int, total: int, seconds: float) -> str:
    """Return the line that says how many documents are compressed, after how long."""
    speed = done / seconds
    return f"memories  {done:,}/{total:,} compressed, {speed:.1f} documents/s, {(total - done) / speed:.0f} s left"
