"""Records with other questions than their own, or with documents that say otherwise; each a function of a seed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from clara.core.cloze import cloze_pairs
from clara.core.counterfactual import Answers, Pair, otherwise, stands
from clara.io.examples import Encoder, encode_record, shortened, surely_fits
from clara.io.records import Record

MOST_BLANKS = 8
"""Sentences of a document that one example fills in, at most."""


def cloze_record(encoder: Encoder, record: Record, seed: int) -> Record | None:
    """Return the record with sentences of its document to fill in, drawn by seed, as its questions.

    They are of what is read of the document, its first doc_max_tokens. None where there is none, or the first does not
    fit into max_tokens.
    """
    pairs = cloze_pairs(shortened(encoder, record.docs[0]), seed, MOST_BLANKS)
    if not pairs:
        return None
    asked = asking(record, pairs)
    whole = encode_record(encoder._replace(max_tokens=sys.maxsize), asked, "cloze", most=1)
    return asked if len(whole.tokens) <= encoder.max_tokens else None


def asking(record: Record, pairs: Sequence[Pair]) -> Record:
    """Return a record with other questions and their answers."""
    return msgspec.structs.replace(record, question=[pair[0] for pair in pairs], answers=[pair[1] for pair in pairs])


def counterfactual_record(
    encoder: Encoder, record: Record, answers: Answers, seed: int, form: str = "turns"
) -> Record | None:
    """Return the record with other answers in its documents, and those of its questions that then have one.

    They are drawn by seed from answers, as `otherwise` has it, in what is read of documents, their first
    doc_max_tokens; form: as in `encode_record`. None where no answer can give way, or one question does not surely fit
    into max_tokens.
    """
    pairs = list(zip(record.questions, record.replies, strict=True))
    made = otherwise([shortened(encoder, text) for text in record.docs], pairs, answers, seed)
    if made is None:
        return None
    docs, read = made[0], [shortened(encoder, text) for text in made[0]]
    asked = [(question, answer) for question, answer in made[1] if stands(answer, read)]
    if not asked:
        return None
    changed = asking(msgspec.structs.replace(record, docs=docs), asked)
    return changed if surely_fits(encoder, changed, form) else None
