"""The rows that a teacher reads: the same questions and answers, after the documents' text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from folders import write_records
from hypothesis import given
from hypothesis import strategies as st

from clara.core.collate import ANSWER, Example
from clara.io.data_config import DataConfig
from clara.io.dataset import evaluation_batches, training_batches
from clara.io.errors import ClaraError
from clara.io.examples import Encoder, encode_record
from clara.io.feed import Feed, encode_example, to_batch
from clara.io.fitting import check_records
from clara.io.records import Record, read_records
from clara.io.taught import learnt, with_teacher
from clara.io.tokens import decode

RECORD = Record(
    id="lamp",
    docs=["The lamp is red and was lit in 1907 by Ada, who was tired of the dark."],
    question=["What colour is it?", "When was it lit?", "By whom?"],
    answers=["red", "1907", "Ada"],
    paraphrase="Ada lit a red lamp in 1907.",
)
MIXED = DataConfig(batch_size=4, length_multiple=16, autoencode_share=0.5, paraphrase_share=0.5, qa_form="turns")


def texts(encoder: Encoder, example: Example) -> tuple[str, str]:
    """Return (prompt, answers) of a teacher's row."""
    tokens, roles = example.taught or ((), ())
    parts: dict[bool, list[int]] = {True: [], False: []}
    for token, role in zip(tokens, roles, strict=True):
        parts[role == ANSWER].append(token)
    return decode(encoder.tokenizer, parts[False]), decode(encoder.tokenizer, parts[True])


@pytest.mark.parametrize(("task", "form"), [("qa", "turns"), ("qa", "pairs"), ("qa", "one"), ("paraphrase", "turns")])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_teacher_is_asked_the_same_of_what_is_compressed_of_the_text(
    task: str, form: str, turn: int, encoder: Encoder
) -> None:
    plain = encode_record(encoder, RECORD, task, turn, form)
    example = with_teacher(encoder, plain, RECORD, task, turn, form)
    assert example._replace(taught=None) == plain and example.taught is not None
    tokens, roles = example.taught
    assert tuple(t for t, role in zip(tokens, roles, strict=True) if role == ANSWER) == learnt(plain)
    assert roles[0] != ANSWER and max(tokens) < encoder.layout.vocab_size
    prompt, _ = texts(encoder, example)
    assert RECORD.docs[0][:32] in prompt and RECORD.docs[0][:33] not in prompt


@pytest.mark.parametrize("form", ["turns", "pairs"])
@given(max_tokens=st.integers(100, 400))
def test_pairs_without_room_are_in_neither_row(form: str, max_tokens: int, encoder: Encoder) -> None:
    narrow = encoder._replace(max_tokens=max_tokens)
    try:
        plain = encode_record(narrow, RECORD, "qa", 0, form)
    except ClaraError:
        return
    example = with_teacher(narrow, plain, RECORD, "qa", 0, form)
    whole = encode_record(encoder, RECORD, "qa", 0, form)
    _, answers = texts(encoder, example)
    assert ("Ada" in answers) == (learnt(plain) == learnt(whole))
    assert example.taught
    tokens, roles = example.taught
    assert learnt(example._replace(tokens=tokens, roles=roles)) == learnt(plain)


def test_a_document_that_is_repeated_is_not_taught(encoder: Encoder) -> None:
    plain = encode_record(encoder, RECORD, "autoencode")
    assert with_teacher(encoder, plain, RECORD, "autoencode").taught == ((), ())


def test_answers_of_other_tokens_are_refused_by_name(encoder: Encoder) -> None:
    plain = encode_record(encoder, RECORD, "qa")
    other = msgspec.structs.replace(RECORD, answers=["blue", "1907", "Ada"])
    with pytest.raises(ClaraError, match="lamp: its answers have other tokens after the document's text than after"):
        with_teacher(encoder, plain, other, "qa")


def test_every_batch_of_a_feed_has_a_teachers_rows_where_it_wants_them(encoder: Encoder, tmp_path: Path) -> None:
    records = read_records(str(write_records(tmp_path / "data.jsonl", range(11))))
    feed = Feed(encoder, MIXED)
    check_records(records, feed._replace(teacher=True))
    silent = []
    for plain, taught in zip(batches(records, feed), batches(records, feed._replace(teacher=True)), strict=True):
        assert plain.teacher is None and taught.teacher is not None
        assert taught.teacher.target_index.shape == taught.targets.shape
        rows = zip(*(a.tolist() for a in (*taught.teacher, taught.targets, taught.target_mask)), strict=True)
        for tokens, places, kept, targets, mask in rows:
            assert kept in (mask, [False] * len(mask))
            found = [tokens[place + 1] for place, keep in zip(places, kept, strict=True) if keep]
            assert found == targets[: len(found)]
            silent.append(not any(kept))
    assert {True, False} == set(silent), "some repeat their document, some do not"


def batches(records: list[Record], feed: Feed) -> list[Any]:
    """Return the batches of some steps of a feed, and of an evaluation."""
    steps = [batch for step in training_batches(records, feed, 6) for batch in step.batches]
    return [*steps, *evaluation_batches(records, feed, 4)]


def test_instruct_teaches_its_one_question_after_all_documents(encoder: Encoder) -> None:
    record = msgspec.structs.replace(RECORD, docs=["It is red.", "Ada lit it."])
    feed = Feed(encoder, MIXED, "instruct", teacher=True)
    example = encode_example(feed, record, "qa", turn=2)
    prompt, answer = texts(encoder, example)
    assert "It is red.\n\nAda lit it." in prompt and prompt.count("?") == 1 and answer == "Ada"
    batch = to_batch(feed, [example], mx.random.key(0))
    assert batch.teacher is not None and batch.teacher.mask.sum().item() == len(learnt(example))
