"""Answers as data, and many questions of a file answered in batches, which a log keeps until all are."""

from __future__ import annotations

import argparse
import codecs
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from clara.io.corpus.passages import Passage
from clara.io.errors import ClaraError
from clara.io.files import locked, reason, remove, write_atomic
from clara.io.jsonlog import append_lines, encode_lines, read_lines
from clara.io.memory_store.database import explained, passages_digest
from clara.io.memory_store.store import Store
from clara.shell.answer import Asked, answer_batch, answer_texts_batch
from clara.shell.decode import Reply
from clara.shell.interrupt import interruptible
from clara.shell.retrieve import Search, retrieve
from clara.shell.setup import Session


class Source(Struct, frozen=True, kw_only=True):
    """A passage that an answer comes from."""

    title: str
    source: str
    """Path or name of its file."""
    pages: tuple[int, int] | None
    score: float
    hash: str
    text: str


class Answer(Struct, frozen=True, kw_only=True):
    """An answer, as `--json` and `--batch` write it."""

    id: str | None = None
    """Of the question, where its file has one."""
    question: str
    answer: str | None
    """None where no passage was found."""
    read: str
    """What was read: "memory" or "text"."""
    finished: bool = True
    """False where the answer was cut at the most tokens."""
    sources: list[Source]
    """The best first."""
    seconds: dict[str, float]
    """What retrieve, prefill and decode took; in a batch, a question's share."""
    prompt_tokens: int = 0
    tokens: int = 0
    cache_bytes: int = 0
    """Of keys and values; 0 in a batch."""


class Query(NamedTuple):
    """A question of a file."""

    question: str
    id: str | None


class Part(Struct, frozen=True):
    """Answers that were made together; the log of a file of answers has a line for each such part."""

    key: str
    """`part_key` of its questions."""
    answers: list[Answer]


class _Line(Struct, frozen=True):
    """A line of such a file; further fields are ignored."""

    question: str | list[str]
    id: str | int | None = None


def source_of(passage: Passage, score: float) -> Source:
    """Return a passage as a source."""
    return Source(
        title=passage.title,
        source=passage.source,
        pages=passage.pages,
        score=round(score, 6),
        hash=passage.hash,
        text=passage.text,
    )


def answered(
    question: str, read: str, reply: Reply | None, sources: list[Source], retrieval: float, id: str | None = None
) -> Answer:
    """Return what came of a question; without a reply nothing was found. retrieval: seconds."""
    if reply is None:
        return Answer(
            id=id, question=question, answer=None, read=read, sources=[], seconds={"retrieve": round(retrieval, 6)}
        )
    seconds = {"retrieve": retrieval, "prefill": reply.prefill, "decode": reply.decode}
    return Answer(
        id=id,
        question=question,
        answer=reply.text,
        read=read,
        finished=reply.finished,
        sources=sources,
        seconds={name: round(value, 6) for name, value in seconds.items()},
        prompt_tokens=reply.prompt_tokens,
        tokens=reply.tokens,
        cache_bytes=reply.cache_bytes,
    )


def write_answers(session: Session, store: Store, how: Search, arguments: argparse.Namespace, model: str) -> int:
    """Answer the questions of a file, with progress, as JSON Lines in their order; return the exit status.

    With --out as `fill` does, otherwise as they come. model: what tells the checkpoint from others. Raises ClaraError,
    naming file and line, for a bad line, before anything is answered.
    """
    queries, size = read_queries(Path(arguments.batch).expanduser()), arguments.batch_size
    parts = [queries[i : i + size] for i in range(0, len(queries), size)]
    settings = (arguments.text, arguments.max_tokens)

    def ask(part: Sequence[Query]) -> list[Answer]:
        return list(batch_answers(session, store, how, part, *settings))

    def show(part: Sequence[Query], answers: Sequence[Answer]) -> None:
        print(encode_lines(answers).decode(), end="", flush=True)

    if not arguments.out:
        return 0 if answer_parts(parts, ask, show) else 130
    with explained(store.file):
        facts = (model, store.info, passages_digest(store.database), how, *settings, session.beams)
    return fill(Path(arguments.out).expanduser(), parts, ask, facts)


def fill(
    out: Path, parts: Sequence[Sequence[Query]], ask: Callable[[Sequence[Query]], list[Answer]], facts: object
) -> int:
    """Write the answers to all parts into a file; return the exit status.

    The file is written whole, at the end or, with what there is by then, after Ctrl-C. A log beside it keeps each part
    as it is answered, and is removed at the end: what it has is not asked again. facts: what answers depend on besides
    questions.
    """
    keys = [part_key(part, facts) for part in parts]
    log, lock = out.with_name(f"{out.name}.partial"), out.with_name(f".{out.name}.lock")
    with locked(lock, "answering questions"):
        made = read_parts(log)
        rest = {key: part for key, part in zip(keys, parts, strict=True) if key not in made}
        before = sum(len(part) for key, part in zip(keys, parts, strict=True) if key in made)
        if before:
            print(f"answered  {before:,} before, taken from {log}", file=sys.stderr)

        def keep(part: Sequence[Query], answers: list[Answer]) -> None:
            found = Part(part_key(part, facts), answers)
            append_lines(log, [found])
            made[found.key] = found.answers

        whole = answer_parts(list(rest.values()), ask, keep, before)
        write_atomic(out, encode_lines(answer for key in keys for answer in made.get(key, ())))
        if whole:
            remove(log)
        else:
            print(f"interrupted; the same command goes on from {log}", file=sys.stderr)
    with suppress(OSError):
        lock.rmdir()  # which stays where a process that held it was killed
    return 0 if whole else 130


def part_key(part: Sequence[Query], facts: object) -> str:
    """Return the name of some questions' answers: 32 hexadecimal digits of all that these depend on."""
    return hashlib.sha256(msgspec.json.encode((facts, part))).hexdigest()[:32]


def read_parts(log: Path) -> dict[str, list[Answer]]:
    """Return the answers that a log has, by their part's key. Raises ClaraError, naming the line, for a damaged one."""
    found = {}
    for number, line in enumerate(read_lines(log), 1):
        try:
            part = msgspec.json.decode(line, type=Part)
        except msgspec.DecodeError as error:
            raise ClaraError(f"{log}:{number}: no answers ({error}); move it away to begin anew") from error
        found[part.key] = part.answers
    return found


def answer_parts(
    parts: Sequence[Sequence[Query]],
    ask: Callable[[Sequence[Query]], list[Answer]],
    keep: Callable[[Sequence[Query], list[Answer]], None],
    before: int = 0,
) -> bool:
    """Answer questions part by part, with progress, and hand the answers to `keep`; return False after Ctrl-C.

    before: how many were answered before.
    """
    total, begun, done, stop = before + sum(map(len, parts)), time.perf_counter(), before, False
    with interruptible("batch", sys.stderr) as interrupted:
        for part in parts:
            if stop:
                break
            keep(part, ask(part))
            done, stop = done + len(part), interrupted()
            speed = (done - before) / (time.perf_counter() - begun)
            left = (total - done) / speed
            print(f"answered  {done:,}/{total:,}, {speed:.1f} a second, {left:.0f} s left", file=sys.stderr)
    return done == total


def batch_answers(
    session: Session, store: Store, how: Search, queries: Sequence[Query], from_text: bool, max_tokens: int
) -> Iterator[Answer]:
    """Yield the answers to some questions, which are searched for and decoded together."""
    begun = time.perf_counter()
    found = retrieve(session, store, [query.question for query in queries], how)
    share = (time.perf_counter() - begun) / len(queries)
    pairs = [(query.question, each) for query, each in zip(queries, found, strict=True) if each.passages]
    if from_text:
        texts = [(question, [passage.text for passage in each.passages]) for question, each in pairs]
        replies = iter(answer_texts_batch(session, texts, max_tokens))
    else:
        replies = iter(answer_batch(session, [Asked(question, each.memory) for question, each in pairs], max_tokens))
    for query, each in zip(queries, found, strict=True):
        sources = [source_of(*pair) for pair in zip(each.passages, each.scores, strict=True)]
        reply = next(replies) if each.passages else None
        yield answered(query.question, "text" if from_text else "memory", reply, sources, share, query.id)


def read_queries(path: Path) -> list[Query]:
    """Return the questions of a JSON Lines file. Raises ClaraError with file and line for a bad one."""
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({reason(error)})") from error
    queries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ClaraError(f'{path}:{number}: {error}; wanted {{"question": "…"}}') from error
        asked = [found.question] if isinstance(found.question, str) else found.question
        if not asked or not all(map(str.strip, asked)):
            raise ClaraError(f"{path}:{number}: the question is empty")
        name = None if found.id is None else str(found.id)
        alone = len(asked) == 1
        queries += [Query(text, name if alone or name is None else f"{name}#{i}") for i, text in enumerate(asked, 1)]
    if not queries:
        raise ClaraError(f'{path}: no questions; wanted JSON Lines of {{"question": "…"}}')
    return queries
