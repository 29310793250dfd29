"""Asks a memory store: finds passages, answers from their memories, and names its sources.

Run `python -m clara.shell.ask --store my.clara "question"`; without a question, questions are asked for one by one. The
store brings the checkpoint that compressed it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import mlx.nn as nn
import msgspec

from clara.core.generate import bind_generator
from clara.io.errors import ClaraError
from clara.io.memory_store.store import Store, count, opened_store, require_compressor
from clara.shell.answer import MAX_TOKENS, has_reasoner, longest, memory_prompt, text_prompt
from clara.shell.asked import Answer, Source, answered, source_of, write_answers
from clara.shell.command import guarded, one_line
from clara.shell.decode import Reply, stream
from clara.shell.retrieve import FirstStage, Found, Search, default_search, retrieve
from clara.shell.setup import Session
from clara.shell.stores import checkpoint_for, session_of, store_fingerprint

COMMAND = "python -m clara.shell.ask"
NOTHING = "No passage of the store has a word of this question; --first-stage memory searches by meaning."


class Desk(NamedTuple):
    """What questions are asked of, and how."""

    session: Session
    store: Store
    search: Search
    arguments: argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 answered, 130 interrupted, 1 a message to the user."""
    arguments = parser().parse_args(argv)
    kept = "; what was answered is kept: run the same command again" if arguments.out else ""
    return guarded(
        lambda: run(arguments), f"stopped{kept}", "lower --top-k, or --batch-size where there are many questions"
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    found = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("question", nargs="?", help="what is asked; without it, questions are read one by one")
    add("--store", required=True, metavar="FOLDER", help="the memory store, as python -m clara.shell.compress makes it")
    add("--checkpoint", default="", metavar="RUN", help="run with the store's compressor [the store's own copy]")
    add("--model", default="", help="the base, where it is not the one that the checkpoint names")
    add("--first-stage", choices=get_args(FirstStage), help="how candidates are found [bm25]")
    add("--candidates", type=int, metavar="N", help="candidates that the reasoner chooses among [20]")
    add("--top-k", type=int, metavar="K", help="passages that answer [as trained; 1 after pretrain alone]")
    add("--rerank", action=argparse.BooleanOptionalAction, help="let the reasoner choose [where one was trained]")
    add(
        "--fuse",
        action=argparse.BooleanOptionalAction,
        help="let words count as much as the reasoner, where it chooses [yes]",
    )
    add("--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="longest answer [%(default)s]")
    add("--temperature", type=float, default=0.0, metavar="X", help="of sampling; 0 = greedy [%(default)s]")
    add("--beams", type=int, metavar="N", help="of the search for an answer; 1 = greedy, as it comes [as trained]")
    add("--text", action="store_true", help="let the base answer from the passages' text instead, for comparison")
    add("--time", action="store_true", help="say what retrieval, prefill and decoding took, from memory and from text")
    add("--json", action="store_true", help="one JSON document an answer")
    add("--batch", metavar="FILE", help='many questions: JSON Lines of {"question": …}, answered as JSON Lines')
    add(
        "--out",
        metavar="FILE",
        help="where --batch writes its answers, whole, at the end; FILE.partial keeps them as they are made, and the "
        "same command goes on where it stopped [standard output, as they come]",
    )
    add("--batch-size", type=int, default=8, metavar="N", help="questions of --batch answered together [%(default)s]")
    return found


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit status. Raises ClaraError where they do not fit what is there."""
    check(arguments)
    path = Path(arguments.store).expanduser()
    with opened_store(path, readonly=True) as store:
        if not count(store):
            raise ClaraError(
                f"{path}: holds no passages; add some with python -m clara.shell.compress CORPUS --store …"
            )
        checkpoint = checkpoint_for(path, arguments.checkpoint)
        session = session_of(checkpoint, arguments.model)
        session = session._replace(beams=arguments.beams or (1 if arguments.temperature else session.beams))
        require_compressor(store.info, store_fingerprint(session))
        desk = Desk(session, store, search_of(session, count(store), arguments), arguments)
        if arguments.batch:
            return write_answers(session, store, desk.search, arguments, checkpoint.manifest.seal)
        if arguments.question is not None:
            ask(desk, arguments.question)
        else:
            converse(desk)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raise ClaraError, naming the argument, for one that cannot be."""
    for name in ("candidates", "top_k", "max_tokens", "beams", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ClaraError(f"--{name.replace('_', '-')} {value}: wanted 1 or more")
    if not (math.isfinite(arguments.temperature) and arguments.temperature >= 0):
        raise ClaraError(f"--temperature {arguments.temperature}: wanted 0 or more")
    if arguments.temperature and (arguments.beams or 1) > 1:
        raise ClaraError(f"--beams {arguments.beams}: the likeliest answer is not drawn; leave --temperature out")
    if arguments.question is not None and not arguments.question.strip():
        raise ClaraError("the question is empty")
    if arguments.batch and (arguments.question or arguments.time or arguments.temperature):
        raise ClaraError(
            "--batch answers its file's questions without drawing: leave question, --time and --temperature out"
        )
    if arguments.out and not arguments.batch:
        raise ClaraError("--out is for --batch")
    out = Path(arguments.out or "").expanduser().absolute()
    if arguments.out and ((out.exists() and not out.is_file()) or not out.parent.is_dir()):
        raise ClaraError(f"--out {arguments.out}: wanted the name of a file in a folder that is there")


def search_of(session: Session, passages: int, arguments: argparse.Namespace) -> Search:
    """Return how passages are found: as the model was trained, unless the arguments say otherwise."""
    names = ("first_stage", "candidates", "top_k", "rerank", "fuse")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    how = default_search(session)._replace(**given)
    if not has_reasoner(session) and (how.rerank or how.first_stage != "bm25"):
        print("note: no reasoner was trained; the compressor reads the question in its place", file=sys.stderr)
    if arguments.fuse is not None and not how.rerank:
        print("note: --fuse and --no-fuse change nothing without --rerank", file=sys.stderr)
    return how._replace(candidates=min(max(how.candidates, how.top_k), passages))


def converse(desk: Desk) -> None:
    """Ask for questions and answer them, until the end of the input or, on a terminal, an empty line."""
    if sys.stdin is None:
        raise ClaraError("no question, and no input to read some from")
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{count(desk.store):,} passages; an empty line ends")
    while True:
        try:
            question = input("> " if terminal else "")
        except EOFError:
            return
        if not question.strip():
            if terminal:
                return
            continue
        try:
            ask(desk, question)
        except KeyboardInterrupt:
            print("\n(interrupted)")


def ask(desk: Desk, question: str) -> None:
    """Find passages, print the answer as it comes, then its sources and, where it was asked for, what that took."""
    begun = time.perf_counter()
    (found,) = retrieve(desk.session, desk.store, [question], desk.search)
    seconds = time.perf_counter() - begun
    show, ways = not desk.arguments.json, ("text", "memory") if desk.arguments.text else ("memory", "text")
    if not found.passages:
        print(NOTHING if show else encoded(answered(question, ways[0], None, [], seconds)))
        return
    replies = {way: say(desk, way, found, question, show) for way in ways[:1]}
    if desk.arguments.time:
        replies |= {way: say(desk, way, found, question, False) for way in ways[1:]}
    sources = [source_of(*pair) for pair in zip(found.passages, found.scores, strict=True)]
    if not show:
        print("\n".join(encoded(answered(question, way, reply, sources, seconds)) for way, reply in replies.items()))
        return
    print("\n" + "\n".join(source_line(i, source) for i, source in enumerate(sources, 1)))
    if desk.arguments.time:
        print("\n" + "\n".join(time_lines(replies, seconds)))


def encoded(answer: Answer) -> str:
    """Return an answer as one line of JSON."""
    return msgspec.json.encode(answer).decode()


def say(desk: Desk, way: str, found: Found, question: str, show: bool) -> Reply:
    """Return the reply from memory or from text, printing it as it comes where that is wanted."""
    model, prompt = prompted(desk, way, found, question)
    if len(prompt) == longest(desk.session, desk.arguments.max_tokens):
        print(f"note: the base reads {desk.session.context:,} tokens; not all of the prompt fitted", file=sys.stderr)
    room, temperature, beams = desk.arguments.max_tokens, desk.arguments.temperature, desk.session.beams
    for piece in stream(model, desk.session.tokenizer, prompt, room, temperature, beams):
        if show:
            print(piece.text, end="", flush=True)
    assert piece.reply is not None, "the last piece carries the whole"
    if show:
        print(flush=True)
        if not piece.reply.finished:
            print(f"note: the answer was cut at --max-tokens {desk.arguments.max_tokens}", file=sys.stderr)
    return piece.reply


def prompted(desk: Desk, way: str, found: Found, question: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the model that answers from memory or from text, and its prompt."""
    session, room = desk.session, desk.arguments.max_tokens
    if way == "text":
        return session.base.module, text_prompt(session, [p.text for p in found.passages], question, room)[0]
    model = bind_generator(session.base, session.config, session.params, found.memory)
    return model, memory_prompt(session, len(found.passages), question, room)


def source_line(number: int, source: Source) -> str:
    """Return the line of a source: its place, score, title, pages and file."""
    where = f", p. {page_range(source.pages)}" if source.pages else ""
    title = source.title or " ".join(source.text.split()[:8]) + " …"
    return f"  [{number}] {source.score:6.3g}  {one_line(title)}{where}  ({one_line(source.source)})"


def page_range(pages: tuple[int, int]) -> str:
    """Return pages as people write them: 3, or 3–4."""
    first, last = pages
    return str(first) if first == last else f"{first}–{last}"


def time_lines(replies: dict[str, Reply], retrieval: float) -> list[str]:
    """Return a small table of what each way of answering took."""
    head = f"  {'':8}{'retrieve':>10}{'prefill':>10}{'decode':>10}{'prompt':>9}{'answer':>9}{'KV cache':>11}"
    rows = [
        f"  {way:8}{retrieval * 1e3:>7,.0f} ms{r.prefill * 1e3:>7,.0f} ms{r.decode * 1e3:>7,.0f} ms"
        f"{r.prompt_tokens:>9,}{r.tokens:>9,}{r.cache_bytes / 1e6:>8,.1f} MB"
        for way, r in replies.items()
    ]
    return [head, *rows]


if __name__ == "__main__":
    sys.exit(main())
