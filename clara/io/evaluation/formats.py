"""The formats of evaluation data, each to questions in one form: this project's records and public data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct

from clara.io.errors import ClaraError
from clara.io.records import Record, decode_record


class Question(NamedTuple):
    """A question with all that a system may be given to answer it, and what its answer is measured by."""

    id: str
    text: str
    """The question; empty for a paraphrase."""
    golds: tuple[str, ...]
    """Answers that count as right, or the paraphrases."""
    documents: tuple[str, ...] = ()
    """Candidates; none where the data has none."""
    positives: tuple[int, ...] = ()
    """Which of the documents hold the answer, from 0; empty where that is not known."""
    keywords: tuple[str, ...] = ()
    """What a full answer mentions."""
    task: Literal["qa", "paraphrase"] = "qa"

    @property
    def known(self) -> tuple[str, ...]:
        """The distinct documents that hold the answer; all of them where that is not known."""
        return tuple(dict.fromkeys([self.documents[i] for i in self.positives] or self.documents))


class EvaluationRecord(Record, frozen=True, kw_only=True):
    """A record of this project, with what only evaluation reads."""

    keywords: tuple[str, ...] = ()


class OriginalRow(Struct, frozen=True):
    """A line of the original's evaluation files."""

    question: str
    docs: list[str]
    golden_answers: list[str] | str = []
    answer: list[str] | str = []
    gold_answer: list[str] | str = []
    pos_index: list[int] | int = []
    id: str | int | None = None


class HotpotRow(Struct, frozen=True, kw_only=True, rename={"id": "_id"}):
    """An entry of HotpotQA or 2WikiMultihopQA."""

    id: str
    question: str
    context: list[tuple[str, list[str]]]
    answer: str = ""
    supporting_facts: list[tuple[str, int]] = []


class MusiqueParagraph(Struct, frozen=True):
    """A paragraph of MuSiQue."""

    title: str
    paragraph_text: str
    is_supporting: bool = False


class MusiqueRow(Struct, frozen=True, kw_only=True):
    """A line of MuSiQue."""

    id: str
    question: str
    paragraphs: list[MusiqueParagraph]
    answer: str = ""
    answer_aliases: list[str] = []
    answerable: bool = True


class SquadAnswer(Struct, frozen=True):
    """An answer of SQuAD."""

    text: str


class SquadQuestion(Struct, frozen=True):
    """A question of SQuAD."""

    id: str
    question: str
    answers: list[SquadAnswer] = []
    is_impossible: bool = False


class SquadParagraph(Struct, frozen=True):
    """A paragraph of SQuAD."""

    context: str
    qas: list[SquadQuestion]


class SquadArticle(Struct, frozen=True):
    """An article of SQuAD."""

    paragraphs: list[SquadParagraph]
    title: str = ""


class SquadFile(Struct, frozen=True):
    """A file of SQuAD v1.1 or v2.0."""

    data: list[SquadArticle]


class OpenRow(Struct, frozen=True):
    """A line of NQ-open, or of the questions on the paper."""

    question: str
    answer: list[str] | str
    id: str | int | None = None
    keywords: list[str] = []


class Row(NamedTuple):
    """A piece of a file that is decoded at a time."""

    raw: bytes | Raw
    path: Path
    number: int
    """Line, or place in the array, from 1."""
    in_array: bool = False

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"{self.path}: record {self.number}" if self.in_array else f"{self.path}:{self.number}"


UNANSWERABLE = None
"""In place of a question that the data says has no answer."""

T = TypeVar("T")


def decode_row(row: Row, kind: type[T]) -> T:
    """Return a row as `kind`. Raises ClaraError that names it."""
    try:
        return msgspec.json.decode(row.raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClaraError(f"{row.where}: {error}") from error


def _from_records(row: Row) -> Iterator[Question | None]:
    """Yield the questions of a record, and its paraphrase."""
    decoder = msgspec.json.Decoder(EvaluationRecord)
    record = decode_record(decoder, bytes(row.raw), row.path, row.number)
    docs, id_, count = tuple(record.docs), str(record.id), len(record.questions)
    # The one document of a record is what its questions are about.
    positives = (0,) if len(docs) == 1 and not record.positives else tuple(record.positives)
    asked = record.data_type == "qa"
    for i, (text, answer) in enumerate(zip(record.questions, record.replies, strict=True) if asked else ()):
        golds = (answer,) if count > 1 else tuple(record.golden_answers) or (answer,)
        name = f"{id_}#{i + 1}" if count > 1 else id_
        yield Question(name, text, golds, docs, positives, record.keywords if count == 1 else ())
    paraphrase = record.paraphrase or (record.replies[0] if record.data_type == "paraphrase" else None)
    if paraphrase and len(docs) == 1:
        yield Question(f"{id_}#paraphrase", "", (paraphrase,), docs, positives, task="paraphrase")


def _from_original(row: Row) -> Iterator[Question | None]:
    """Yield the question of a line of the original's."""
    found = decode_row(row, OriginalRow)
    golds = next((_list(each) for each in (found.golden_answers, found.answer, found.gold_answer) if each), [])
    positives = [found.pos_index] if isinstance(found.pos_index, int) else found.pos_index
    yield Question(_id(found.id, row), found.question, tuple(golds), tuple(found.docs), tuple(positives))


def _from_hotpot(row: Row) -> Iterator[Question | None]:
    """Yield the question of an entry of HotpotQA."""
    found = decode_row(row, HotpotRow)
    supporting = {title for title, _ in found.supporting_facts}
    docs = [titled(title, " ".join(sentence.strip() for sentence in text)) for title, text in found.context]
    positives = tuple(i for i, (title, _) in enumerate(found.context) if title in supporting)
    yield Question(found.id, found.question, tuple(filter(None, [found.answer])), tuple(docs), positives)


def _from_musique(row: Row) -> Iterator[Question | None]:
    """Yield the question of a line of MuSiQue."""
    found = decode_row(row, MusiqueRow)
    docs = tuple(titled(each.title, each.paragraph_text) for each in found.paragraphs)
    positives = tuple(i for i, each in enumerate(found.paragraphs) if each.is_supporting)
    golds = tuple(filter(None, [found.answer, *found.answer_aliases]))
    yield Question(found.id, found.question, golds, docs, positives) if found.answerable else UNANSWERABLE


def _from_squad(row: Row) -> Iterator[Question | None]:
    """Yield the questions of a file of SQuAD, each with its paragraph."""
    for article in decode_row(row, SquadFile).data:
        for paragraph in article.paragraphs:
            docs = (titled(article.title.replace("_", " "), paragraph.context),)
            for each in paragraph.qas:
                golds = tuple(answer.text for answer in each.answers)
                yield UNANSWERABLE if each.is_impossible else Question(each.id, each.question, golds, docs, (0,))


def _from_open(row: Row) -> Iterator[Question | None]:
    """Yield a question without documents."""
    found = decode_row(row, OpenRow)
    golds = tuple(filter(None, _list(found.answer)))
    yield Question(_id(found.id, row), found.question, golds, keywords=tuple(found.keywords))


def titled(title: str, text: str) -> str:
    """Return a document as the project's data has them: its title, a colon, its text."""
    return f"{title}: {text}" if title else text


def _list(value: list[str] | str) -> Sequence[str]:
    """Return one answer or several as a list."""
    return [value] if isinstance(value, str) else value


def _id(value: str | int | None, row: Row) -> str:
    """Return what a question is called; file and place where it has no id."""
    return f"{row.path.name}:{row.number}" if value is None else str(value)


FORMATS: dict[str, Callable[[Row], Iterator[Question | None]]] = {
    "records": _from_records,
    "original": _from_original,
    "hotpotqa": _from_hotpot,
    "musique": _from_musique,
    "squad": _from_squad,
    "nq": _from_open,
}
"""What reads a row of each format; hotpotqa also reads 2WikiMultihopQA."""
