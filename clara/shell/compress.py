"""Fills a memory store: every passage of a corpus compressed once, kept on disk, ready to be searched and asked.

Run `python -m clara.shell.compress CORPUS --store my.clara`. CORPUS is what prepare has made, or a folder or document,
which is prepared first. A new store takes the compressor of --checkpoint RUN, or else that of the built-in checkpoint
small, and keeps a copy: later commands need the store alone. What it has already is skipped, so that the same command
goes on after an interruption and adds what is new. Without CORPUS the store is described.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from clara.core.collate import frame_document
from clara.io.builtin import BUILTIN
from clara.io.checkpoint import Checkpoint
from clara.io.corpus.passages import Passage, content_hash, read_passages
from clara.io.errors import ClaraError
from clara.io.memory_store.parts import part_folder, take_in_parts
from clara.io.memory_store.removal import compact, delete_passages
from clara.io.memory_store.store import (
    CHECKPOINT,
    Store,
    StoreInfo,
    add_passages,
    count,
    missing,
    new_ones,
    opened_store,
    require_compressor,
    sources,
    used_bytes,
)
from clara.io.retention import checkpoints
from clara.io.tokens import encode_batch
from clara.shell.command import guarded, one_line
from clara.shell.launch import ranked, stoppable
from clara.shell.memories import BATCH, EVERY, compress_tokens
from clara.shell.prepare import PrepareOptions, corpus_of, is_corpus
from clara.shell.progress import clock
from clara.shell.ranks import ALONE, Ranks, exchanged, progressing, require_same, told
from clara.shell.setup import Session
from clara.shell.stores import checkpoint_for, info_of, keep_checkpoint, require_packing, session_of

COMMAND = "python -m clara.shell.compress"

WINDOW = 4096
"""Passages of a corpus that are in memory at a time, and among which those of similar length share a batch."""


class Progress(NamedTuple):
    """What a pass over a corpus has done."""

    seen: int = 0
    """Passages, those that the store had already included."""
    added: int = 0
    cut: int = 0
    """Of those added, how many had more tokens than the compressor takes."""


class Work(NamedTuple):
    """A pass over a corpus, ready to go."""

    session: Session
    checkpoint: Checkpoint
    corpus: str
    """JSON Lines of passages."""
    info: StoreInfo
    """Of the store, where it has to be made."""
    total: int
    """Passages of the corpus."""


class Share(NamedTuple):
    """What of a pass over a corpus one process does."""

    store: Store
    """Where it adds to: the store, or its own part of it."""
    passages: Iterator[Passage]
    total: int
    """Of the passages, how many."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 2 but for files left out, 130 interrupted, 1 a message."""
    said = "stopped at once; what was added before, if anything, is in the store"
    advice = "lower --batch-size; what was added is kept, and the same command goes on"
    return guarded(lambda: ranked(lambda ranks: run(parser().parse_args(argv), ranks)), said, advice)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    found = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("corpus", nargs="?", metavar="CORPUS", help="passages, data that train reads, a folder, or a document")
    add("--store", required=True, metavar="FOLDER", help="the store; it is made where it is not there")
    add("--checkpoint", default="", metavar="RUN", help=f"what compresses [the store's copy; for a new one {BUILTIN}]")
    add("--model", default="", help="the base, where it is not the one that the checkpoint names")
    add("--batch-size", type=int, default=BATCH, metavar="N", help="passages compressed at a time [%(default)s]")
    add("--dtype", choices=("bfloat16", "float16"), help="memories of a new store; float16 ends at 65,504 [bfloat16]")
    add("--bits", type=int, choices=(8, 4), help="quantise a new store's memories to half or a quarter of the bytes")
    add(
        "--delete",
        action="append",
        default=[],
        metavar="SOURCE",
        help="remove a source's passages, before adding; run CORPUS again for texts that other sources share",
    )
    add("--compact", action="store_true", help="give back the space of removed passages, at the end")
    add("--list", action="store_true", help="list the sources, with the number of passages of each")
    return found


def run(arguments: argparse.Namespace, ranks: Ranks = ALONE) -> int:
    """Do what the arguments say; return the exit status. Raises ClaraError where they do not fit what is there."""
    path = Path(arguments.store).expanduser()
    useless = [name for name in ("checkpoint", "model", "dtype", "bits") if getattr(arguments, name)]
    if useless and not arguments.corpus:
        raise ClaraError(f"--{useless[0]} is for compressing: give CORPUS too")
    if not (arguments.corpus or ranks.leads):
        return 0
    if not (arguments.corpus or arguments.delete or arguments.compact):
        with opened_store(path, readonly=True) as store:
            describe(store, arguments.list)
        return 0
    if not arguments.corpus:
        return change(arguments, path, None, ranks)
    checkpoint = checkpoint_of(arguments, path, ranks)
    with corpus_of(arguments.corpus, PrepareOptions(checkpoint=str(checkpoint.path), model=arguments.model)) as made:
        corpus, left_out = made
        return change(arguments, path, prepare(arguments, checkpoint, corpus), ranks) or left_out


def change(arguments: argparse.Namespace, path: Path, work: Work | None, ranks: Ranks) -> int:
    """Do to a store what the arguments say, and describe it; return the exit status. work: where passages are added."""
    status = 0
    if work:
        same = {"compressor": work.info.compressor, "passages": work.total}
        require_same(ranks, same, "all ranks want the same checkpoint and the same corpus")
        if not ranks.leads:
            return compress_corpus(work, None, arguments, ranks)
    with opened_store(path, create=work and work.info) as store:
        if work:
            require_compressor(store.info, work.info.compressor)
            require_packing(store.info, arguments.dtype, arguments.bits)
            keep_checkpoint(store, work.checkpoint)
        if taken := sum(take_in_parts(store)):
            print(f"found     {taken:,} passages that processes before had added, each to its part", flush=True)
        for source in arguments.delete:
            removed = delete_passages(store, source)
            hint = "" if removed else "; --list shows how the sources are called"
            print(f"removed   {removed:,} passages of {one_line(source)}{hint}", flush=True)
        if work:
            status = compress_corpus(work, store, arguments, ranks)
        if arguments.compact and not status:
            print(f"compact   {compact(store):,} rows of removed passages given back")
        describe(store, arguments.list)
    return status


def checkpoint_of(arguments: argparse.Namespace, path: Path, ranks: Ranks) -> Checkpoint:
    """Return what compresses. Raises ClaraError for arguments that would stop the command later."""
    if arguments.batch_size < 1:
        raise ClaraError(f"--batch-size {arguments.batch_size}: wanted 1 or more")
    if not is_corpus(arguments.corpus) and ranks.size > 1:
        raise ClaraError(
            f"{arguments.corpus}: several processes want JSON Lines: python -m clara.shell.prepare makes them of it"
        )
    return checkpoint_for(path, arguments.checkpoint)


def prepare(arguments: argparse.Namespace, checkpoint: Checkpoint, corpus: str) -> Work:
    """Read and check all that a pass over a corpus needs. Raises ClaraError for whatever would stop it later."""
    total = sum(1 for _ in read_passages(corpus))
    if not total:
        raise ClaraError(f"{corpus}: no passages; wanted JSON Lines with docs, as prepare writes them")
    print(f"corpus    {total:,} passages of {one_line(arguments.corpus)}", flush=True)
    session = session_of(checkpoint, arguments.model)
    model = arguments.model or str(checkpoint.config["model"])
    return Work(session, checkpoint, corpus, info_of(session, model, arguments.dtype, arguments.bits, total), total)


def compress_corpus(work: Work, store: Store | None, arguments: argparse.Namespace, ranks: Ranks = ALONE) -> int:
    """Add the passages of the corpus to the store, and say how that goes; return the exit status. store: rank 0's."""
    begun = told_at = time.perf_counter()
    done, stopped = Progress(), False
    with share_of(work, store, arguments, ranks) as share, stoppable(ranks, "batch") as interrupted:
        for done in progressing(ranks, fill(work.session, share.store, share.passages, arguments.batch_size)):
            now = time.perf_counter()
            if stopped := interrupted() and done.seen < share.total:
                break
            if done.added and now - told_at > EVERY:
                told_at, speed = now, done.added / (now - begun)
                left = clock((share.total - done.seen) / speed)
                seen, per_second = min(done.seen * ranks.size, work.total), speed * ranks.size
                print(f"compress  {seen:,}/{work.total:,}, {per_second:.1f} passages/s, {left} left", flush=True)
    results = exchanged(ranks, (*done, stopped))
    seen, added, cut, stops = (sum(each) for each in zip(*results, strict=True))
    if ranks.size > 1 and store:
        added = sum(progressing(ranks, take_in_parts(store)))
        seen = work.total if not stops else seen
    return summed_up(work, arguments, Progress(seen, added, cut), time.perf_counter() - begun, bool(stops))


@contextmanager
def share_of(work: Work, store: Store | None, arguments: argparse.Namespace, ranks: Ranks) -> Iterator[Share]:
    """Yield what of the corpus this process compresses, and where to: of several, each a part of what is not there.

    Passages of one text are one process's. store: rank 0's, which alone looks what is there.
    """
    corpus = read_passages(work.corpus)
    if store and ranks.size == 1:
        yield Share(store, corpus, work.total)
        return
    found = (msgspec.json.encode(store.info), owners(store, work.corpus, ranks.size).tobytes()) if store else None
    info, places = told(ranks, found)
    mine = np.frombuffer(places, np.int16) == ranks.rank
    folder = part_folder(Path(arguments.store).expanduser(), ranks.rank)
    folder.parent.mkdir(exist_ok=True)
    with opened_store(folder, create=msgspec.json.decode(info, type=StoreInfo)) as part:
        yield Share(part, (passage for passage, own in zip(corpus, mine, strict=True) if own), int(mine.sum()))


def owners(store: Store, corpus: str, size: int) -> np.ndarray:
    """Return int16[passages]: which of `size` processes compresses each passage, by its text; -1 where it is there."""
    passages, found = read_passages(corpus), []
    while window := list(islice(passages, WINDOW)):
        places = np.full(len(window), -1, np.int16)
        for i in new_ones(store, window):
            places[i] = int(content_hash(window[i].text)[:8], 16) % size
        found.append(places)
    return np.concatenate(found)


def summed_up(work: Work, arguments: argparse.Namespace, done: Progress, seconds: float, stopped: bool) -> int:
    """Say what a pass over the corpus has done, and how to go on where it was stopped; return the exit status."""
    cut = f", {done.cut:,} of them cut to {work.session.config.memory.doc_max_tokens} tokens" if done.cut else ""
    there = f"; {done.seen - done.added:,} were there" if done.seen > done.added else ""
    print(f"added     {done.added:,} passages in {clock(seconds)}{cut}{there}")
    if stopped:
        again = [
            arguments.corpus,
            "--store",
            arguments.store,
            *(["--model", arguments.model] if arguments.model else []),
            *(["--batch-size", str(arguments.batch_size)] if arguments.batch_size != BATCH else []),
            *(["--compact"] if arguments.compact else []),
        ]
        print(f"interrupted; go on with: {COMMAND} {shlex.join(again)}")
    return 130 if stopped else 0


def fill(session: Session, store: Store, passages: Iterator[Passage], batch_size: int) -> Iterator[Progress]:
    """Compress what the store has not yet, in batches of similar length, and yield what is done after each.

    Of the corpus, `WINDOW` passages are in memory at a time.
    """
    done, limit = Progress(), session.config.memory.doc_max_tokens
    while window := list(islice(passages, WINDOW)):
        new = missing(store, window)
        done = done._replace(seen=done.seen + len(window) - len(new))
        yield done
        tokens = encode_batch(session.tokenizer, [passage.text for passage in new])
        order = sorted(range(len(new)), key=lambda i: len(tokens[i]))
        for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            framed = [frame_document(tokens[i], session.base.layout, limit) for i in batch]
            added = add_passages(store, [new[i] for i in batch], compress_tokens(session, framed))
            cut = sum(len(tokens[i]) > limit for i in batch)
            done = Progress(done.seen + len(batch), done.added + added, done.cut + cut)
            yield done


def describe(store: Store, list_sources: bool) -> None:
    """Print what a store holds."""
    info, found = store.info, sources(store)
    for source, passages in found if list_sources else ():
        print(f"{passages:>9,} {one_line(source)}")
    packed = f"{info.bits} bits, scales in {info.dtype}" if info.bits else info.dtype
    size = f"{used_bytes(store) / 1e6:,.1f} MB"
    print(f"store     {count(store):,} passages of {len(found):,} sources, {size}, in {store.path}")
    print(f"memory    {info.num_memory_tokens} vectors of {info.hidden} numbers for each, {packed}")
    kept = [path.name for path in checkpoints(store.path / CHECKPOINT)]
    print(f"by        {info.model}, {kept[-1] if kept else 'no checkpoint'}, compressor {info.compressor}")


if __name__ == "__main__":
    sys.exit(main())
