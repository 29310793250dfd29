"""The questions of an evaluation: read from a file of any known format, and checked before anything is computed."""

from __future__ import annotations

import codecs
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from clara.core.scoring import normalize_answer
from clara.io.errors import ClaraError
from clara.io.evaluation.formats import FORMATS, UNANSWERABLE, Question, Row, decode_row
from clara.io.files import reason
from clara.io.records import data_path

PAPER = str(files("clara.io") / "data" / "paper_questions.jsonl")
"""The file of questions on the CLaRa paper that comes with the package."""


class QuestionSet(NamedTuple):
    """The questions of a file."""

    questions: list[Question]
    format: str
    left_out: int
    """Questions that the data calls unanswerable, or whose gold answers are nothing but articles and punctuation."""


def read_questions(source: str, format: str = "auto", paraphrases: bool = False) -> QuestionSet:
    """Return the questions of a data file, or of a built-in set of records, each checked.

    format: one of `FORMATS`, or "auto" to tell from the first record. paraphrases: also ask for the paraphrases that
    records have. Raises ClaraError, naming file and record, for an unknown format, a wrong or missing field, a missing
    gold answer, two questions of one id, and a file without questions.
    """
    path = data_path(source)
    rows = _rows(path)
    if not rows:
        raise ClaraError(f"{source}: no questions; the file is empty")
    name = _detect(rows[0]) if format == "auto" else format
    if name not in FORMATS:
        raise ClaraError(f"--format {name}: not one of auto, {', '.join(FORMATS)}")
    found: dict[str, Question] = {}
    places: dict[str, str] = {}
    left_out = 0
    for row in rows:
        for question in FORMATS[name](row):
            if question is UNANSWERABLE or (usable := _usable(question, row.where)) is None:
                left_out += 1
            elif usable.task == "qa" or paraphrases:
                if usable.id in found:
                    raise ClaraError(f"{row.where}: id {usable.id!r} is also that of {places[usable.id]}")
                found[usable.id], places[usable.id] = usable, row.where
    if not found:
        raise ClaraError(f"{source}: no question with an answer, in format {name}; {left_out} have none")
    return QuestionSet(list(found.values()), name, left_out)


def _rows(path: Path) -> list[Row]:
    """Return the elements of a JSON array, the one JSON object of a file, or its lines."""
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({reason(error)})") from error
    if raw.lstrip().startswith(b"["):
        try:
            return [Row(each, path, i, True) for i, each in enumerate(msgspec.json.decode(raw, type=list[Raw]), 1)]
        except msgspec.DecodeError as error:
            raise ClaraError(f"{path}: not a JSON array ({error})") from error
    try:
        return [Row(msgspec.json.decode(raw, type=Raw), path, 1)]
    except msgspec.DecodeError:
        return [Row(line, path, i) for i, line in enumerate(raw.split(b"\n"), 1) if line.strip()]


def _detect(row: Row) -> str:
    """Return the format that a file's first row is in. Raises ClaraError where it is none that is known."""
    fields = decode_row(row, dict[str, Any])
    if "docs" in fields:
        record = not isinstance(fields.get("question"), str) or isinstance(fields.get("answer"), str)
        return "records" if record or "answers" in fields else "original"
    signs = {"squad": "data", "musique": "paragraphs", "hotpotqa": "context", "nq": "question"}
    for name, sign in signs.items():
        if sign in fields:
            return name
    wanted = ", ".join(f"{sign} ({name})" for name, sign in {"records, original": "docs", **signs}.items())
    raise ClaraError(f"{row.where}: unknown format: found the fields {', '.join(fields) or '(none)'}; wanted {wanted}")


def _usable(question: Question, where: str) -> Question | None:
    """Return a question with the golds that say something; None without one. Raises ClaraError for what is missing."""
    if not question.golds:
        raise ClaraError(f"{where}: no gold answer for {question.id!r}; wanted a data set with answers")
    if question.task == "qa" and not question.text.strip():
        raise ClaraError(f"{where}: the question {question.id!r} is empty; wanted text")
    for name, texts in (("document", question.documents), ("keyword", question.keywords)):
        if (empty := next((i for i, text in enumerate(texts) if not text.strip()), None)) is not None:
            raise ClaraError(f"{where}: {name} {empty} of {question.id!r} is empty; wanted text")
    if not set(question.positives) <= set(range(len(question.documents))):
        raise ClaraError(
            f"{where}: the answer of {question.id!r} is said to be in documents {list(question.positives)} of "
            f"{len(question.documents)}; wanted numbers counted from 0"
        )
    golds = tuple(gold for gold in dict.fromkeys(question.golds) if normalize_answer(gold))
    return question._replace(golds=golds) if golds else None
