"""Candidates: as many as wanted, none that holds the answer, the hard ones first, the right place of the right one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.lexical import terms
from clara.io.errors import ClaraError
from clara.io.records import Record, check_stage, fault, read_records
from clara.shell.preparing.candidates import holds, single_questions, with_hard_candidates

WORDS = ["lamp", "red", "blue", "door", "burns", "opens", "1851", "Tamsin"]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
answers = st.sampled_from([*WORDS, "red lamp", "?"])


@st.composite
def corpus(draw: st.DrawFn) -> list[Record]:
    """Return records of which the first has questions; some have several documents."""
    records = []
    for i in range(draw(st.integers(1, 8))):
        docs = draw(st.lists(texts, min_size=1, max_size=3 if draw(st.booleans()) else 1))
        asked = i == 0 or draw(st.booleans())
        pairs = draw(st.lists(st.tuples(texts, answers), min_size=1, max_size=3)) if asked else []
        known = draw(st.none() | st.just([len(docs) - 1]))
        records.append(
            Record(
                id=f"r{i}",
                docs=docs,
                data_type="qa" if asked else "autoencode",
                question=[question for question, _ in pairs],
                answers=[answer for _, answer in pairs],
                pos_index=known,
            )
        )
    return records


@given(records=corpus(), count=st.integers(1, 12), seed=st.integers(0, 3))
def test_each_question_gets_its_documents_and_others_without_the_answer(
    records: list[Record], count: int, seed: int
) -> None:
    found = with_hard_candidates(records, count, seed)
    assert found == with_hard_candidates(records, count, seed)
    pool = {text for record in records for text in record.docs}
    asked = [(record, pair) for record in records for pair in zip(record.questions, record.replies, strict=True)]
    check_stage(found, "end_to_end")
    for (record, (question, answer)), new in zip(asked, found, strict=True):
        added = Counter(new.docs) - Counter(record.docs)
        assert (new.questions, new.replies, fault(new)) == ([question], [answer], None)
        assert set(added.values()) <= {1} and set(added) <= pool - set(record.docs)
        held = [text for text in added if f" {' '.join(terms(answer))} " in f" {' '.join(terms(text))} "]
        assert not terms(answer) or held == []
        possible = [text for text in pool - set(record.docs) if not holds(f" {' '.join(terms(text))} ", answer)]
        assert len(new.docs) == max(len(record.docs), min(count, len(record.docs) + len(possible)))
        right = (
            record.docs
            if record.pos_index is None and len(record.docs) == 1
            else [record.docs[i] for i in record.positives]
        )
        assert [new.docs[i] for i in new.positives] == right


def test_the_hardest_come_before_others() -> None:
    records = [
        Record(
            id="a", docs=["The bridge was built by Tamsin."], question="Who built the bridge of Orrel?", answer="Tamsin"
        ),
        *(Record(id=f"n{i}", docs=[f"Nothing number {i}."], data_type="autoencode") for i in range(30)),
        Record(id="b", docs=["The bridge of Orrel was built well."], data_type="autoencode"),
        Record(id="c", docs=["Tamsin built the bridge of Orrel."], data_type="autoencode"),
        Record(id="d", docs=["Orrel has a bridge."], data_type="autoencode"),
    ]
    (found,) = with_hard_candidates(records, 3, 0)
    assert set(found.docs) == {records[0].docs[0], "The bridge of Orrel was built well.", "Orrel has a bridge."}
    (more,) = with_hard_candidates(records, 10, 0)
    assert (
        set(found.docs) < set(more.docs)
        and len(more.docs) == 10
        and "Tamsin built the bridge of Orrel." not in more.docs
    )


def test_the_right_one_stands_in_any_place_and_seeds_differ() -> None:
    records = read_records("sample")
    one, other = (with_hard_candidates(records, 6, seed) for seed in (0, 1))
    assert len(one) == sum(len(record.questions) for record in records)
    assert {record.positives[0] for record in one} == set(range(6))
    assert [record.docs for record in one] != [record.docs for record in other]
    assert len({record.id for record in one}) == len(one)
    check_stage(one, "retrieval")


def test_a_record_of_one_question_keeps_its_id_and_gold_answers() -> None:
    record = Record(id="a", docs=["x", "y"], question="q", answer="a", golden_answers=["a", "b"], pos_index=[1])
    assert list(single_questions(record)) == [record]


def test_no_negative_holds_any_gold_answer() -> None:
    record = Record(id="a", docs=["lamp"], question="lamp", answer="red", golden_answers=["red", "crimson"])
    others = [Record(docs=[text], data_type="autoencode") for text in ("lamp crimson", "lamp red", "lamp redder")]
    (found,) = with_hard_candidates([record, *others], 4, 0)
    assert sorted(found.docs) == ["lamp", "lamp redder"]


def test_a_corpus_without_questions_is_refused() -> None:
    with pytest.raises(ClaraError, match="no record has a question; --candidates wants some: make them by --questions"):
        with_hard_candidates([Record(docs=["a"], data_type="autoencode")], 3, 0)
