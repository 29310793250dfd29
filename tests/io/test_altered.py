"""Records that are changed on their way to a batch: by (seed, step, place), as many as are asked for, as they fit."""

from __future__ import annotations

import msgspec
import pytest
from folders import write_records

from clara.core.config import Stage
from clara.core.counterfactual import answer_table
from clara.io.altered import counterfactual_record
from clara.io.data_config import DataConfig
from clara.io.dataset import Feed, said_otherwise, step_tasks
from clara.io.examples import SPARE, Encoder, encode_record
from clara.io.records import Record, read_records

DATA = DataConfig(batch_size=4, qa_form="turns", counterfactual_share=0.5)
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


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_the_share_of_a_step_says_otherwise(encoder: Encoder, stage: Stage) -> None:
    feed = Feed(encoder, DATA, stage, answers=TABLE)
    steps = [step_tasks([RECORD] * 40, feed, step, 0.5) for step in range(20)]
    changed = sum(record != RECORD for step in steps for record, _ in step)
    assert 0.45 < changed / 800 < 0.55
    assert steps[3] == step_tasks([RECORD] * 40, feed, 3, 0.5), "by (seed, step, place)"
    assert len({record.docs[0] for step in steps for record, _ in step}) > 20, "otherwise each time"


def test_what_is_no_question_stays(encoder: Encoder) -> None:
    feed = Feed(encoder, msgspec.structs.replace(DATA, counterfactual_share=1.0), answers=TABLE)
    chosen = [(RECORD, "autoencode"), (RECORD, "cloze"), (RECORD, "qa")]
    kept = said_otherwise(chosen, feed, 0)
    assert kept[:2] == chosen[:2] and kept[2][0] != RECORD and kept[2][1] == "qa"
    assert said_otherwise(chosen, feed._replace(stage="end_to_end"), 0) == chosen
    assert said_otherwise(chosen, feed._replace(config=DataConfig()), 0) == chosen


def test_without_answers_to_draw_from_records_stay_as_they_are(
    encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    records = read_records(str(write_records(tmp_path_factory.mktemp("data") / "data.jsonl", range(6))))
    assert [record for record, _ in step_tasks(records, Feed(encoder, DATA), 0, 0.5)] == records
