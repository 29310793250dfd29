"""Records that are changed on their way to a batch: each a function of a seed, as they fit."""

from __future__ import annotations

import msgspec

from clara.core.counterfactual import answer_table
from clara.io.altered import counterfactual_record
from clara.io.examples import SPARE, Encoder, encode_record
from clara.io.records import Record

TABLE = answer_table([str(1801 + i) for i in range(40)])
RECORD = Record(id="r", docs=["Built in 1907."], question=["When?", "Who?"], answers=["1907", "nobody"])


def test_a_record_says_otherwise_and_is_asked_for_that(encoder: Encoder) -> None:
    made = counterfactual_record(encoder, RECORD, TABLE, 0)
    assert made is not None and made.id == "r" and made.questions == ["When?"]
    assert made.replies[0] in TABLE.kinds["number"] and made.docs == [f"Built in {made.replies[0]}."]


def test_what_is_not_read_of_a_document_is_not_asked(encoder: Encoder) -> None:
    narrow = encoder._replace(doc_max_tokens=16)
    late = msgspec.structs.replace(RECORD, docs=["x" * 16 + " in 1907."])
    assert counterfactual_record(encoder, late, TABLE, 0) is not None
    assert counterfactual_record(narrow, late, TABLE, 0) is None
    pushed = Record(docs=["1907, 5000 oxen"], question=["When?", "How many?"], answers=["1907", "5000"])
    table = answer_table(["1 of May 1811", "7777"])
    for seed in range(40):
        if made := counterfactual_record(narrow, pushed, table, seed):
            assert all(answer in made.docs[0][:16] for answer in made.replies)


def test_an_answer_that_may_not_fit_is_not_taken(encoder: Encoder) -> None:
    long, encoder = answer_table(["9" * 50]), encoder._replace(doc_max_tokens=64)
    made = counterfactual_record(encoder, RECORD, long, 0)
    assert made is not None
    size = len(encode_record(encoder, made, "qa").tokens)
    tight = [encoder._replace(max_tokens=each) for each in range(size - 1, size + 2 * SPARE)]
    kept = [counterfactual_record(each, RECORD, long, 0) for each in tight]
    assert kept[0] is None and kept[-1] == made
    assert kept == sorted(kept, key=lambda record: record is not None), "it fits from some length on"
