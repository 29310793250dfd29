"""Makes a corpus out of documents: PDF, Markdown, text, HTML, JSON Lines, alone or in folders.

Run `python -m clara.shell.prepare SOURCES --out corpus.jsonl`. The corpus is JSON Lines that train and compress read,
one passage a line. --questions MODEL has a model write questions, answers and a paraphrase for each passage;
--candidates N puts each question among N documents, for the stages retrieval and end_to_end. What cannot be read is
named and left out.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta, Struct
from tqdm import tqdm  # type: ignore[import-untyped]

from clara.io.base import load_base, load_base_tokenizer
from clara.io.builtin import run_path
from clara.io.checkpoint import newest_checkpoint, unflatten
from clara.io.corpus.passages import Passage, PassageRecord, content_hash, encode_record
from clara.io.corpus.rawtext import Limits
from clara.io.corpus.sources import ENDINGS, find_files
from clara.io.errors import ClaraError, short_of_memory
from clara.io.files import staged_file
from clara.io.records import BUILTIN, Record, check_stage, iterate_records
from clara.io.tokens import Tokenizer
from clara.shell.arguments import flag, flag_form, new_layers, resolve
from clara.shell.bounds import checked
from clara.shell.command import guarded
from clara.shell.options import leaves, to_options
from clara.shell.preparing.candidates import with_hard_candidates
from clara.shell.preparing.corpus import Tally, corpus_records
from clara.shell.preparing.questions import QuestionConfig, model_ask, question_fields, work_off
from clara.shell.setup import prepare_device

JOURNAL = ".questions"
"""Ending of the file beside the corpus that keeps what a model has written so far."""


class PrepareOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a corpus depends on besides its sources."""

    checkpoint: Annotated[str, Meta(description="Run whose base and document length the corpus is made for.")] = ""
    model: Annotated[
        str, Meta(description="Base whose tokenizer counts; empty for the checkpoint's, or smollm2-135m.")
    ] = ""
    doc_max_tokens: Annotated[
        int,
        Meta(
            ge=0, le=1_000_000, description="Longest passage, in tokens; 0 for the checkpoint's or the sample recipe's."
        ),
    ] = 0
    candidates: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Documents for each question, hard negatives by BM25; 0 for none.")
    ] = 0
    questions: Annotated[
        str, Meta(description="Model that writes questions: folder, .gguf, Hugging Face id or built-in name.")
    ] = ""
    limits: Limits = Limits()
    writing: QuestionConfig = QuestionConfig()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 2 done but for what was left out, 1 a message to the user."""
    return guarded(
        lambda: run(*read_arguments(argv)),
        "stopped; nothing was written. Questions made so far are kept: run the same command again",
    )


def read_arguments(argv: Sequence[str] | None) -> tuple[list[str], Path, PrepareOptions]:
    """Return sources, target and options. Raises ClaraError for values that are out of bounds."""
    parser = argparse.ArgumentParser(
        prog="python -m clara.shell.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCES", help="files and folders")
    parser.add_argument("--out", required=True, metavar="FILE", help="the corpus; it is written whole or not at all")
    groups = {title: parser.add_argument_group(title) for title in ("corpus", "limits", "writing")}
    for path, hint in leaves(PrepareOptions):
        if not get_args(hint):
            continue  # a wording: no flag holds one
        kind, about = get_args(hint)[:2]
        value: Any = functools.reduce(getattr, path, PrepareOptions())
        text = about.description + ("" if value in ("", 0) and path[-1] != "seed" else f" [{value}]")
        group = groups[path[0] if len(path) > 1 else "corpus"]
        group.add_argument(flag(path[-1]), dest="/".join(path), default=argparse.SUPPRESS, help=text, **flag_form(kind))
    found = vars(parser.parse_args(argv))
    sources, out = found.pop("sources"), Path(os.path.expanduser(found.pop("out")))
    return sources, out, checked(unflatten(found), PrepareOptions)


def run(sources: Sequence[str], out: Path, options: PrepareOptions) -> int:
    """Write the corpus and say so; return the exit status."""
    status, written = write_corpus(sources, out, options)
    print(f"written    {out}, {written:,} records")
    return status


def write_corpus(sources: Sequence[str], out: Path, options: PrepareOptions) -> tuple[int, int]:
    """Write the corpus and print what there was; return (exit status, records written).

    Raises ClaraError where nothing is written.
    """
    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder" if out.is_dir() else "its folder does not exist"
        raise ClaraError(f"{out}: {what}; wanted the name of a file to write")
    model, max_tokens = target_of(options)
    found = find_files(sources)
    for note in found.notes:
        tell(note.text)
    files = files_without(found.files, out, sources)
    tally = Tally(Counter(skipped=len(found.notes), unknown=found.unknown), Counter())
    tokenizer = load_base_tokenizer(model)
    with staged_file(out) as beside:
        records: Iterable[Record]
        records = read = read_files(files, tokenizer, max_tokens, options.limits, tally)
        if options.questions:
            records = write_questions(list(read), options, out, tally)
        if options.candidates:
            records = choose_candidates(list(records), options)
        with beside.open("wb") as stream:
            written = sum(stream.write(encode_record(record)) > 0 for record in records)
        if not written:
            raise ClaraError("no passage in any of the sources; nothing was written")
        read_back(beside, written, options)
    print("\n".join(summary(tally, max_tokens, model)))
    return 2 if tally.counts["skipped"] or tally.counts["left_out"] else 0, written


def is_corpus(source: str) -> bool:
    """Return whether a name is that of JSON Lines, and not of a folder or document that has to be prepared.

    Raises ClaraError where there is nothing of that name.
    """
    place = Path(os.path.expanduser(source))
    if source not in BUILTIN and not place.exists():
        raise ClaraError(f"{source}: does not exist; wanted a folder, a document, or a corpus as prepare writes it")
    return not (place.is_dir() or (place.is_file() and ENDINGS.get(place.suffix.lower(), "jsonl") != "jsonl"))


@contextmanager
def corpus_of(source: str, options: PrepareOptions) -> Iterator[tuple[str, int]]:
    """Yield (JSON Lines of passages, exit status) of a corpus, or of what is prepared for as long as the block lasts.

    Raises ClaraError where there is nothing of that name.
    """
    if is_corpus(source):
        yield source, 0
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "passages.jsonl"
        yield str(out), write_corpus([source], out, options)[0]


def files_without(files: Sequence[Path], out: Path, sources: Sequence[str]) -> list[Path]:
    """Return the files without the corpus that an earlier run wrote among them, unless a source names it.

    Raises ClaraError where it is the only one.
    """
    target = os.path.realpath(out)
    named = target in [os.path.realpath(os.path.expanduser(source)) for source in sources]
    rest = [path for path in files if named or os.path.realpath(path) != target]
    if files and not rest:
        raise ClaraError(f"{out}: the only file in the sources is the output itself; name it as a source to read it")
    return rest


def target_of(options: PrepareOptions) -> tuple[str, int]:
    """Return the base and the document length that a corpus is for."""
    if options.checkpoint:
        checkpoint, _ = newest_checkpoint(run_path(options.checkpoint))
        trained = to_options(checkpoint.config, str(checkpoint.path))
    else:
        trained = to_options(resolve(new_layers("sample", ""), "pretrain"), "recipe sample")
    return options.model or trained.model, options.doc_max_tokens or trained.memory.doc_max_tokens


def read_files(
    files: Sequence[Path], tokenizer: Tokenizer, max_tokens: int, limits: Limits, tally: Tally
) -> Iterator[PassageRecord]:
    """Yield the records of files, with a progress bar on a terminal."""
    with tqdm(total=len(files), unit=" files", disable=None) as bar:

        def notify(note: str | None) -> None:
            if note is not None:
                tell(note)
                return
            bar.set_postfix_str(f"{tally.counts['passages']:,} passages", refresh=False)
            bar.update()

        yield from corpus_records(files, tokenizer, max_tokens, limits, tally, notify)


def write_questions(
    records: Sequence[PassageRecord], options: PrepareOptions, out: Path, tally: Tally
) -> list[PassageRecord]:
    """Return the records with what a model makes of those that have no questions yet.

    Raises ClaraError where memory is short for as many passages at a time as the options say.
    """
    plain = [i for i, record in enumerate(records) if record.data_type == "autoencode" and len(record.docs) == 1]
    passages = [Passage(text=records[i].docs[0], hash=content_hash(records[i].docs[0])) for i in plain]
    prepare_device()
    loaded = load_base(options.questions)
    with tqdm(total=len(plain), unit=" passages", disable=None) as bar, room_for(options.writing):
        made = work_off(
            passages,
            model_ask(loaded, options.writing),
            loaded.fingerprint,
            options.writing,
            out.with_name(out.name + JOURNAL),
            lambda done, _: bar.update(done - bar.n),
        )
    done = list(records)
    for i, each in zip(plain, made, strict=True):
        done[i] = msgspec.structs.replace(records[i], **question_fields(each))
        tally.counts.update(questions=len(each.pairs), paraphrases=each.paraphrase is not None)
        tally.rejected.update(each.rejected)
    return done


@contextmanager
def room_for(config: QuestionConfig) -> Iterator[None]:
    """Have a block in which a model writes say in words that memory was short for it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not short_of_memory(error):
            raise
        raise ClaraError(
            f"out of memory on {config.question_batch} passages at a time ({error}); lower --question-batch. "
            "Questions made so far are kept: run the same command again"
        ) from error


def choose_candidates(records: Sequence[Record], options: PrepareOptions) -> list[Record]:
    """Return a record with candidates for each question, with a progress bar on a terminal."""
    with tqdm(total=len(records), unit=" records", disable=None) as bar:
        return with_hard_candidates(records, options.candidates, options.writing.seed, bar.update)


def read_back(path: Path, count: int, options: PrepareOptions) -> None:
    """Raise ClaraError where a corpus is not what `train` reads."""
    records = iterate_records(path, Record)
    if options.candidates:
        check_stage(found := list(records), "end_to_end")
        records = iter(found)
    if (read := sum(1 for _ in records)) != count:
        raise ClaraError(f"{path}: {read:,} records came back of {count:,}; is the disk full?")


def summary(tally: Tally, max_tokens: int, model: str) -> list[str]:
    """Return the lines that tell what there was."""
    counts = tally.counts
    lines = [
        f"files      {counts['files']:,} read, {counts['skipped']:,} skipped, {counts['unknown']:,} of other kinds",
        f"documents  {counts['documents']:,}: {counts['pages']:,} pages, {counts['characters']:,} characters, "
        f"{counts['tokens']:,} tokens of {model}",
        f"passages   {counts['passages']:,} of up to {max_tokens} tokens; {counts['duplicates']:,} duplicates dropped",
    ]
    if counts["records"]:
        lines.append(f"records    {counts['records']:,} taken over as they were")
    if counts["left_out"]:
        lines.append(f"left out   {counts['left_out']:,} pages or lines, named above")
    if counts["questions"] or counts["paraphrases"] or tally.rejected:
        reasons = "; ".join(f"{reason} {number:,}" for reason, number in sorted(tally.rejected.items()))
        lines.append(f"questions  {counts['questions']:,}, and {counts['paraphrases']:,} paraphrases")
        lines.append(f"rejected   {tally.rejected.total():,}" + (f": {reasons}" if reasons else ""))
    return lines


def tell(note: str) -> None:
    """Print a note beside the progress bar."""
    tqdm.write(note, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
