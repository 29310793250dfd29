"""Answers as data, and many questions of a file answered in batches."""

from __future__ import annotations

import argparse
import codecs
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from clara.io.corpus.passages import Passage
from clara.io.errors import ClaraError
from clara.io.files import reason, write_atomic
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


def write_answers(session: Session, store: Store, how: Search, arguments: argparse.Namespace) -> int:
    """Answer the questions of a file, with progress, as JSON Lines in their order; return the exit status.

    A file is written once at the end; after Ctrl-C it has what was answered by then. Raises ClaraError, naming file and
    line, for a bad line, before anything is answered.
    """
    queries = read_queries(Path(arguments.batch).expanduser())
    lines, begun, done, stop = list[bytes](), time.perf_counter(), 0, False
    with interruptible("batch", sys.stderr) as interrupted:
        while done < len(queries) and not stop:
            part = queries[done : done + arguments.batch_size]
            for answer in batch_answers(session, store, how, part, arguments.text, arguments.max_tokens):
                lines.append(msgspec.json.encode(answer) + b"\n")
                if not arguments.out:
                    print(lines[-1].decode(), end="", flush=True)
            done, stop = done + len(part), interrupted()
            speed = done / (time.perf_counter() - begun)
            left = (len(queries) - done) / speed
            print(f"answered  {done:,}/{len(queries):,}, {speed:.1f} a second, {left:.0f} s left", file=sys.stderr)
    if arguments.out:
        write_atomic(Path(arguments.out).expanduser(), b"".join(lines))
    return 130 if done < len(queries) else 0


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
