"""Records that are changed on their way to a batch: each a function of a seed, as they fit."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from clara.core.counterfactual import answer_table
from clara.io.altered import BORDER, LEAST_SHIFT, counterfactual_record, shifted_record
from clara.io.examples import SPARE, Encoder, encode_record
from clara.io.records import Record
from clara.io.tokens import encode

TABLE = answer_table([str(1801 + i) for i in range(40)])
RECORD = Record(id="r", docs=["Built in 1907."], question=["When?", "Who?"], answers=["1907", "nobody"])
OTHER = Record(id="o", docs=["The mill burnt down twice; nobody was hurt."], question=["What?"], answers=["mill"])


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


@given(part=st.floats(0, 1, exclude_max=True), room=st.integers(LEAST_SHIFT, 80))
def test_the_end_of_another_document_stands_before(encoder: Encoder, part: float, room: int) -> None:
    size = len(encode(encoder.tokenizer, RECORD.docs[0])) + BORDER + room
    made = shifted_record(encoder._replace(doc_max_tokens=size), RECORD, OTHER, part)
    assert made is not None and made.questions == RECORD.questions and made.replies == RECORD.replies
    before, own = made.docs[0].removesuffix(RECORD.docs[0]), RECORD.docs[0]
    assert made.docs[0].endswith(own) and OTHER.docs[0].endswith(before.removesuffix(" "))
    count = len(encode(encoder.tokenizer, made.docs[0]))
    assert len(encode(encoder.tokenizer, own)) < count <= size, "all of the document is read"


def test_parts_are_of_the_room_there_is(encoder: Encoder) -> None:
    wide = encoder._replace(doc_max_tokens=80)
    made = [shifted_record(wide, RECORD, OTHER, part) for part in (0.0, 0.999)]
    assert [record and record.docs[0] for record in made] == [
        f". {RECORD.docs[0]}",
        f"{OTHER.docs[0]} {RECORD.docs[0]}",
    ]


def test_without_room_or_with_several_documents_a_record_stays(encoder: Encoder) -> None:
    size = len(encode(encoder.tokenizer, RECORD.docs[0])) + BORDER
    rooms = [encoder._replace(doc_max_tokens=size + room) for room in (LEAST_SHIFT - 1, LEAST_SHIFT)]
    assert [shifted_record(each, RECORD, OTHER, 0.5) is None for each in rooms] == [True, False]
    several = msgspec.structs.replace(RECORD, docs=[*RECORD.docs, "More."])
    assert shifted_record(encoder, several, OTHER, 0.5) is None
    assert shifted_record(encoder, RECORD, RECORD, 0.5) is None


def test_where_rows_hold_the_text_it_has_to_fit(encoder: Encoder) -> None:
    reading = encoder._replace(reads="text")
    size = len(encode_record(reading, RECORD, "qa", most=1).tokens)
    assert shifted_record(reading._replace(max_tokens=size), RECORD, OTHER, 0.5) is None
    assert shifted_record(encoder._replace(max_tokens=size), RECORD, OTHER, 0.5) is not None
    assert shifted_record(reading._replace(max_tokens=size + 200), RECORD, OTHER, 0.5) is not None
