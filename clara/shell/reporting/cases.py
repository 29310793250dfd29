"""Questions that tell the most about the systems: what each answered, from which documents, and what is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from clara.core.figures import number
from clara.io.evaluation.evaluations import Evaluation
from clara.io.evaluation.labels import NONE, label
from clara.io.evaluation.predictions import Prediction
from clara.io.report.document import Cell, Section, Table

LONGEST = 400
"""Characters of an answer that are shown."""
MEASURES = {"bm25": "BM25", "tfidf": "TF-IDF"}
"""What the scores of a system are, by the end of its name; else of the reasoner."""

Case = dict[str, Prediction]
"""The answers to one question, by system."""


def cases(evaluation: Evaluation, metric: str, count: int) -> list[Section]:
    """Return a section for each of the most telling questions: those on which the systems disagree by a metric."""
    return [case_section(case, metric) for case in telling(evaluation.predictions, metric, count)]


def telling(predictions: Mapping[str, Sequence[Prediction]], metric: str, count: int) -> list[Case]:
    """Return the questions, at most `count`, on which most systems differ from the rest in being right.

    Questions on which the same systems are right come after those that show something new. All answered alike: none.
    """
    gathered: dict[str, Case] = {}
    for system, answers in predictions.items():
        for answer in answers:
            gathered.setdefault(answer.id, {})[system] = answer
    every = [case for case in gathered.values() if minority(case, metric)]
    every.sort(key=lambda case: -minority(case, metric))
    seen, turns = Counter[tuple[bool, ...]](), []
    for case in every:
        turns.append(seen[rights(case, metric)])
        seen[rights(case, metric)] += 1
    order = sorted(range(len(every)), key=lambda i: turns[i])
    return [every[i] for i in order[:count]]


def minority(case: Case, metric: str) -> int:
    """Return how many systems are right alone, or wrong alone, whichever is less."""
    right = sum(rights(case, metric))
    return min(right, len(case) - right)


def rights(case: Case, metric: str) -> tuple[bool, ...]:
    """Return of each answer whether it counts as right: at least half of what the metric gives."""
    return tuple(answer.metrics.get(metric, 0.0) >= 0.5 for answer in case.values())


def case_section(case: Case, metric: str) -> Section:
    """Return the section of a question: the gold answers, each system's answer, and the documents."""
    first = next(iter(case.values()))
    golds = "Gold answer: " if len(first.golds) == 1 else "Gold answers: "
    documents = document_table(case)
    tables = (answer_table(case, metric), *((documents,) if documents.rows else ()))
    return Section(first.question, (golds + "; ".join(first.golds), *tables))


def answer_table(case: Case, metric: str) -> Table:
    """Return a row for each system: what it answered, and whether that is right."""
    rows = []
    for (system, answer), right in zip(case.items(), rights(case, metric), strict=True):
        value = number(answer.metrics.get(metric, 0.0))
        verdict = Cell("right", value, "good") if right else Cell("wrong", value, "bad")
        end = "" if answer.finished else "cut off at the most tokens allowed"
        seconds = number(sum(answer.seconds.values())) if answer.seconds else NONE.text
        rows.append((Cell(system), Cell(clipped(answer.prediction) or "(nothing)", end), verdict, Cell(seconds)))
    return Table("Answers", ("system", "answer", label(metric), "seconds"), tuple(rows), numbers=False)


def document_table(case: Case) -> Table:
    """Return a row for each document that a system answered from: its place there, and its weight."""
    readers = {system: answer for system, answer in case.items() if answer.documents}
    documents: dict[tuple[str, str], dict[str, Cell]] = {}
    positive: dict[tuple[str, str], bool] = {}
    for system, answer in readers.items():
        for i, title in enumerate(answer.documents):
            key = (title, answer.texts[i] if i < len(answer.texts) else "")
            weight = number(answer.scores[i]) if i < len(answer.scores) else "read"
            documents.setdefault(key, {})[system] = Cell(f"no. {i + 1}", weight)
            if i < len(answer.positives):
                positive[key] = answer.positives[i]
    rows = (
        (
            Cell(*key),
            {True: Cell("yes", tone="good"), False: Cell("no"), None: NONE}[positive.get(key)],
            *(places.get(system, NONE) for system in readers),
        )
        for key, places in documents.items()
    )
    heads = (f"{system}, {measure(system)}" if answer.scores else system for system, answer in readers.items())
    caption = "Documents: which each system answered from, the best first, and with what relevance score"
    return Table(caption, ("document", "holds the answer", *heads), tuple(rows), numbers=False)


def measure(system: str) -> str:
    """Return what the relevance scores of a system are."""
    return MEASURES.get(system.rpartition("_")[2], "relevance")


def clipped(text: str) -> str:
    """Return the beginning of a text."""
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + "…"
