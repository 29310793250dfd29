"""Training and evaluation data as typed JSON Lines; a bad record is refused with its file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from clara.core.config import Stage
from clara.core.prompts import TASKS
from clara.io.corpus.rawtext import clean, json_lines
from clara.io.errors import ClaraError

BUILTIN = {"sample": "sample_train.jsonl", "sample-heldout": "sample_heldout.jsonl"}
"""Data that comes with the package, by the name that `--data` takes."""


class Record(Struct, frozen=True, kw_only=True):
    """One line of data. Further fields are allowed and ignored, so that records can carry their own notes."""

    docs: list[str]
    """The documents: `pretrain` takes exactly one, `instruct` reads all, the other stages choose among them."""
    data_type: str = "qa"
    """The task: qa, paraphrase or autoencode."""
    question: list[str] | str = []
    """Questions, or one question."""
    answers: list[str] = []
    """One answer for each question; for `paraphrase`, the paraphrase."""
    answer: str | None = None
    """The answer where there is one question."""
    golden_answers: list[str] = []
    """All answers that evaluation counts as right; the answer where it is missing."""
    paraphrase: str | None = None
    """The document in other words: a second task in the same record."""
    pos_index: list[int] | None = None
    """Which of the documents hold the answer, counted from 0; an empty list or none where that is not known."""
    id: str | None = None
    """A name for logs; file and line where it is missing."""

    @property
    def questions(self) -> list[str]:
        """The questions as a list."""
        return [self.question] if isinstance(self.question, str) else self.question

    @property
    def replies(self) -> list[str]:
        """The answers as a list, whichever field holds them."""
        return self.answers or ([self.answer] if self.answer is not None else [])

    @property
    def positives(self) -> list[int]:
        """Which of the documents hold the answer."""
        return self.pos_index or []


R = TypeVar("R", bound=Record)
T = TypeVar("T")

MAKER = " (python -m clara.shell.prepare makes a corpus out of documents)"
"""What is said where something else than records is given."""


def read_records(source: str) -> list[Record]:
    """Return all records of JSON Lines files and of built-in sets ("sample", "sample-heldout"), each checked, in order.

    source: one name, or several with commas between; one named twice is read twice, so that it counts for more.
    Raises ClaraError with file and line for the first bad line: invalid UTF-8 or JSON, a wrong or missing field, an
    unknown task, an empty document, answers that do not match their questions; and for a missing or empty file.
    """
    found = []
    for name in source_names(source):
        records = list(iterate_records(data_path(name), Record))
        if not records:
            raise ClaraError(f"{name}: no records; wanted JSON Lines, one record a line")
        found += records
    return found


def source_names(source: str) -> list[str]:
    """Return the names in a `--data` value: one, or several with commas between.

    A file whose own name has commas counts as one. Raises ClaraError where a name between commas is empty.
    """
    if "," not in source or Path(source).expanduser().is_file():
        return [source]
    names = [name.strip() for name in source.split(",")]
    if not all(names):
        raise ClaraError(f"{source}: an empty name; wanted one file, or several with commas between")
    return names


def data_path(source: str) -> Path:
    """Return the file that a `--data` value names. Raises ClaraError where there is none."""
    if source in BUILTIN:
        return Path(str(files("clara.io") / "data" / BUILTIN[source]))
    path = Path(source).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "not a plain file" if path.exists() else "does not exist"
        raise ClaraError(f"{source}: {what}; wanted a JSON Lines file or one of {', '.join(BUILTIN)}")
    return path


def iterate_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a file as `kind`, checked line by line; blank lines are skipped.

    Raises ClaraError with file and line as `read_records` does, when it comes to the bad line.
    """
    decoder = msgspec.json.Decoder(kind)
    for number, line in json_lines(path):
        yield decode_record(decoder, line, path, number)


def decode_record(decoder: msgspec.json.Decoder[R], line: bytes, path: Path, number: int) -> R:
    """Return the record of a line, checked and with an id. Raises ClaraError with file and line for a bad one."""
    where = f"{path}:{number}"
    hint = "" if line.lstrip().startswith(b"{") else MAKER
    try:
        record = decode_line(decoder, line, where)
    except ClaraError as error:
        raise ClaraError(f"{error}{hint}") from error
    except msgspec.ValidationError as error:
        hint = MAKER if "required field `docs`" in str(error) else hint
        raise ClaraError(f"{where}: {error}{hint}") from error
    except msgspec.DecodeError as error:
        raise ClaraError(f"{where}: not a JSON object on one line: {error}{hint}") from error
    if problem := fault(record):
        raise ClaraError(f"{where}: {problem}")
    return record if record.id else msgspec.structs.replace(record, id=clean(f"{path.name}:{number}"))


def decode_line(decoder: msgspec.json.Decoder[T], line: bytes, where: str) -> T:
    """Return what a line of JSON holds. Raises ClaraError for bytes that are not UTF-8 and for values nested too deep.

    where: file and line, for the message. Anything else that is wrong with the line raises what msgspec raises.
    """
    try:
        line.decode("utf-8")
        return decoder.decode(line)
    except UnicodeDecodeError as error:
        raise ClaraError(f"{where}: invalid UTF-8 at byte {error.start} of the line") from error
    except RecursionError as error:
        raise ClaraError(f"{where}: lists or objects nested too deep to be read") from error


def fault(record: Record) -> str | None:
    """Return what is wrong with a record, or None."""
    if record.data_type not in TASKS:
        return f"data_type is {record.data_type!r}; wanted one of {', '.join(TASKS)}"
    if not record.docs:
        return "docs is empty; wanted at least one document"
    texts = {
        "docs": record.docs,
        "question": record.questions,
        "answers": record.replies,
        "golden_answers": record.golden_answers,
    }
    if record.paraphrase is not None:
        texts["paraphrase"] = [record.paraphrase]
    for field, values in texts.items():
        for i, text in enumerate(values):
            if not text.strip():
                return f"{field}[{i}] is empty; wanted text"
    if record.answers and record.answer is not None and record.answer not in record.answers:
        return "answer is none of answers; give one of the two fields"
    if any(not 0 <= i < len(record.docs) for i in record.positives):
        return f"pos_index is {record.positives}; wanted numbers of the {len(record.docs)} documents, counted from 0"
    if len(set(record.positives)) < len(record.positives):
        return f"pos_index is {record.positives}; wanted each document once"
    return {"qa": questions_fault, "paraphrase": paraphrase_fault}.get(record.data_type, lambda _: None)(record)


def questions_fault(record: Record) -> str | None:
    """Return what is wrong with the questions and answers of a qa record, or None."""
    questions, replies = record.questions, record.replies
    if not questions:
        return "question is missing; a qa record wants at least one"
    if len(questions) != len(replies):
        return f"{len(questions)} questions but {len(replies)} answers; wanted one answer for each question"
    return None


def paraphrase_fault(record: Record) -> str | None:
    """Return what is wrong with the reply of a paraphrase record, or None."""
    count = len(record.replies) + (record.paraphrase is not None)
    return None if count == 1 else f"{count} paraphrases; a paraphrase record wants one, as answers or paraphrase"


def check_stage(records: Sequence[Record], stage: Stage) -> None:
    """Raise ClaraError, naming the record, for the first that the stage cannot learn from.

    `pretrain` wants one document, the others a question with its answer. `retrieval` learns from known positives alone.
    """
    for record in records:
        if stage == "pretrain" and len(record.docs) != 1:
            raise ClaraError(f"record {record.id}: {len(record.docs)} documents; stage pretrain wants exactly one")
        if stage != "pretrain" and record.data_type != "qa":
            raise ClaraError(f"record {record.id}: data_type is {record.data_type!r}; stage {stage} wants qa")
    if stage == "retrieval" and records and not any(record.positives for record in records):
        raise ClaraError(
            f"record {records[0].id} and all others: no pos_index; stage retrieval wants to know which documents "
            "hold the answer"
        )


def golden(records: Sequence[Record]) -> list[Record]:
    """Return the records with those of their documents alone that hold the answer; one of one document stays as it is.

    Raises ClaraError, naming the record, for one of several documents of which none is known to hold the answer.
    """
    return [_golden(record) for record in records]


def _golden(record: Record) -> Record:
    """Return a record with the documents that hold its answer."""
    if len(record.docs) == 1:
        return record
    if not record.positives:
        raise ClaraError(
            f"record {record.id}: {len(record.docs)} documents, but no pos_index; gold_only wants to know which of "
            "them hold the answer"
        )
    docs = [record.docs[i] for i in record.positives]
    return msgspec.structs.replace(record, docs=docs, pos_index=list(range(len(docs))))


def document_records(records: Sequence[Record]) -> list[Record]:
    """Return a record for each distinct document of the records, shortest first, whose task is to repeat it."""
    names: dict[str, str] = {}
    for record in records:
        for i, text in enumerate(record.docs):
            names.setdefault(text, f"{record.id}, document {i}")
    return [Record(docs=[text], data_type="autoencode", id=names[text]) for text in sorted(names, key=len)]


def with_candidates(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return the records with at least `count` documents each: those that have fewer get documents of other records.

    The added ones, and the places of all, are a function of seed and of the record's place. The one document of a
    record without pos_index counts as its positive. A data set with too few distinct documents gives what it has.
    """
    pool = list(dict.fromkeys(text for record in records for text in record.docs))
    return [_filled(record, pool, count, np.random.default_rng([seed, 2, i])) for i, record in enumerate(records)]


def _filled(record: Record, pool: Sequence[str], count: int, rng: np.random.Generator) -> Record:
    """Return the record with documents of the pool added until there are `count`, in a drawn order."""
    missing = count - len(record.docs)
    if missing <= 0:
        return record
    own = set(record.docs)
    drawn = rng.permutation(len(pool))[: missing + len(own)]
    docs = [*record.docs, *[pool[i] for i in drawn if pool[i] not in own][:missing]]
    positives = [0] if record.pos_index is None and len(record.docs) == 1 else record.positives
    order = rng.permutation(len(docs)).tolist()
    return msgspec.structs.replace(
        record, docs=[docs[i] for i in order], pos_index=sorted(order.index(i) for i in positives)
    )
