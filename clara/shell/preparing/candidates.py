"""Records with candidates: each question among its own document and hard negatives of the same corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clara.core.lexical import LexicalIndex, best, bm25_scores, build_index, terms
from clara.io.errors import ClaraError
from clara.io.records import Record, check_stage


def with_hard_candidates(
    records: Sequence[Record], count: int, seed: int, notify: Callable[[], None] = lambda: None
) -> list[Record]:
    """Return a record for each question, with its own documents and hard negatives, `count` documents in all.

    The negatives are those documents of all records that BM25 ranks highest for the question and that do not hold an
    answer; where these are too few, drawn ones. Their order is drawn. A corpus of too few documents gives fewer. The
    one document of a record without pos_index counts as its positive; of several, those of other records are added.
    notify: is called after each record. Raises ClaraError where no record has a question.
    """
    pool = list(dict.fromkeys(text for record in records for text in record.docs))
    worded = [_worded(text) for text in pool]
    index = build_index(pool)
    out = []
    for at, record in enumerate(records):
        for i, asked in enumerate(single_questions(record)):
            rng = np.random.default_rng([seed, at, i])
            negatives = _negatives(asked, pool, worded, index, count - len(asked.docs), rng)
            out.append(_shuffled(asked, negatives, rng))
        notify()
    if not out:
        raise ClaraError("no record has a question; --candidates wants some: make them by --questions MODEL")
    check_stage(out, "end_to_end")
    return out


def single_questions(record: Record) -> Iterator[Record]:
    """Yield a record for each question of a record, with its one answer, its documents and its positives."""
    if record.data_type != "qa":
        return
    alone = len(record.questions) == 1
    for i, (question, answer) in enumerate(zip(record.questions, record.replies, strict=True), 1):
        yield Record(
            id=record.id if alone else f"{record.id}-{i}",
            docs=record.docs,
            question=question,
            answer=answer,
            golden_answers=record.golden_answers if alone else [],
            pos_index=[0] if record.pos_index is None and len(record.docs) == 1 else record.pos_index,
        )


def holds(worded: str, answer: str) -> bool:
    """Return whether a text, as `_worded` has it, holds an answer: its words one after the other, in whatever case."""
    wanted = _worded(answer)
    return bool(wanted.strip()) and wanted in worded


def _worded(text: str) -> str:
    """Return the words of a text with single spaces between and around them."""
    return f" {' '.join(terms(text))} "


def _negatives(
    record: Record,
    pool: Sequence[str],
    worded: Sequence[str],
    index: LexicalIndex,
    count: int,
    rng: np.random.Generator,
) -> list[str]:
    """Return at most `count` documents that do not hold the answer, the most alike first, then drawn ones."""
    own = set(record.docs)
    answers = [*record.replies, *record.golden_answers]

    def fits(i: int) -> bool:
        return pool[i] not in own and not any(holds(worded[i], answer) for answer in answers)

    scores = bm25_scores(index, record.questions[0])
    found: dict[int, None] = {}
    reach = 2 * count
    while len(found) < count:
        ranked = best(scores, reach)
        found = dict.fromkeys([i for i, _ in ranked if fits(i)][:count])
        if len(ranked) < reach:
            break
        reach *= 4
    for i in rng.permutation(len(pool)).tolist() if len(found) < count else ():
        if len(found) == count:
            break
        if i not in found and fits(i):
            found[i] = None
    return [pool[i] for i in found]


def _shuffled(record: Record, negatives: Sequence[str], rng: np.random.Generator) -> Record:
    """Return the record with documents added and all of them in a drawn order."""
    docs = [*record.docs, *negatives]
    order = rng.permutation(len(docs)).tolist()
    return Record(
        id=record.id,
        docs=[docs[i] for i in order],
        question=record.question,
        answer=record.answer,
        golden_answers=record.golden_answers,
        pos_index=None if record.pos_index is None else sorted(order.index(i) for i in record.pos_index),
    )
