"""Which record and which task: by (seed, step, place), in the shares that are asked for."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from clara.core.config import Stage
from clara.core.counterfactual import answer_table
from clara.io.altered import cloze_record
from clara.io.data_config import DataConfig
from clara.io.examples import Encoder
from clara.io.feed import Feed
from clara.io.records import Record, document_records
from clara.io.tasks import choose_task, said_otherwise, step_tasks

MIXED = DataConfig(batch_size=4, length_multiple=16, autoencode_share=0.5, paraphrase_share=0.5, qa_form="turns")
SAYING = DataConfig(batch_size=4, qa_form="turns", counterfactual_share=0.5)
TABLE = answer_table([str(1801 + i) for i in range(40)])
RECORD = Record(id="r", docs=["Built in 1907."], question=["When?", "Who?"], answers=["1907", "nobody"])


def shares(record: Record, config: DataConfig, progress: float) -> dict[str, float]:
    """Return how often each task is chosen at 1,000 even draws."""
    tasks = [choose_task(record, config, (i + 0.5) / 1000, progress) for i in range(1000)]
    return {task: tasks.count(task) / 1000 for task in sorted(set(tasks))}


@pytest.mark.parametrize(
    ("progress", "until", "wanted"),
    [
        (0.0, 1.0, {"autoencode": 0.6, "paraphrase": 0.1, "qa": 0.3}),
        (0.5, 1.0, {"autoencode": 0.3, "paraphrase": 0.175, "qa": 0.525}),
        (0.25, 0.5, {"autoencode": 0.3, "paraphrase": 0.175, "qa": 0.525}),
        (0.5, 0.5, {"paraphrase": 0.25, "qa": 0.75}),
        (0.9, 0.5, {"paraphrase": 0.25, "qa": 0.75}),
    ],
)
def test_autoencoding_fades_and_paraphrases_share_the_rest(
    progress: float, until: float, wanted: dict[str, float]
) -> None:
    config = DataConfig(autoencode_share=0.6, autoencode_until=until, paraphrase_share=0.25)
    record = Record(docs=["d"], question="q", answer="a", paraphrase="p")
    assert shares(record, config, progress) == pytest.approx(wanted)


def test_autoencoding_may_fade_to_a_floor() -> None:
    config = DataConfig(autoencode_share=0.6, autoencode_until=0.5, autoencode_floor=0.2)
    record = Record(docs=["d"], question="q", answer="a")
    for progress, share in ((0.0, 0.6), (0.25, 0.4), (0.5, 0.2), (0.9, 0.2)):
        assert shares(record, config, progress) == pytest.approx({"autoencode": share, "qa": 1 - share})
    with pytest.raises(ValueError, match=r"autoencode_floor 0.7 is more than autoencode_share 0.6, which fades to it"):
        DataConfig(autoencode_share=0.6, autoencode_floor=0.7)


def test_sentences_to_fill_in_take_their_share_of_the_rest() -> None:
    config = DataConfig(autoencode_share=0.6, cloze_share=0.5, paraphrase_share=0.25)
    plain = Record(docs=["d"], question="q", answer="a")
    own = replace(plain, paraphrase="p")
    assert shares(own, config, 0.0) == pytest.approx({"autoencode": 0.6, "cloze": 0.2, "paraphrase": 0.1, "qa": 0.1})
    assert shares(plain, config, 0.5) == pytest.approx({"autoencode": 0.3, "cloze": 0.35, "qa": 0.35})
    assert shares(plain, DataConfig(cloze_share=1.0), 0.0) == {"cloze": 1.0}
    with pytest.raises(ValueError, match=r"paraphrase_share 0.5 and cloze_share 0.75 are more than 1 together"):
        DataConfig(paraphrase_share=0.5, cloze_share=0.75)


def test_a_document_to_repeat_comes_from_the_pool(encoder: Encoder, records: list[Record], pool: list[Record]) -> None:
    feed = Feed(encoder, replace(MIXED, autoencode_until=0.5, paraphrase_share=0.0), pool=pool)
    taken = list[str]()
    for step in range(40):
        plain = step_tasks(records[:4], feed._replace(pool=()), step, step / 40)
        chosen = step_tasks(records[:4], feed, step, step / 40)
        assert [task for _, task in chosen] == [task for _, task in plain], "a pool changes no task"
        for (record, task), own in zip(chosen, records[:4], strict=True):
            assert (record in pool) is (task == "autoencode") and (record in pool or record is own)
            taken += record.docs if task == "autoencode" else []
    assert 20 < len(taken) < 60 and len(set(taken)) > 15, "drawn from all of it"


def test_a_repeated_document_is_as_long_as_the_longer_row(encoder: Encoder) -> None:
    documents = document_records([Record(id=f"p{i}", docs=["w" * 4 * i]) for i in range(1, 1000)])
    feed = Feed(encoder, replace(MIXED, autoencode_share=1.0, autoencode_until=1.0), pool=documents)
    record = Record(docs=["It is red."], question="What?", answer="w" * 2000)
    taken = [each.docs[0] for step in range(20) for each, _ in step_tasks([record] * 4, feed, step, 0.0)]
    assert min(map(len, taken)) > 1400 and max(map(len, taken)) < 2700


def test_a_pools_documents_depend_on_seed_step_and_place(
    encoder: Encoder, records: list[Record], pool: list[Record]
) -> None:
    def drawn(seed: int, step: int, count: int) -> list[str | None]:
        feed = Feed(encoder, replace(MIXED, seed=seed, autoencode_share=1.0), pool=pool)
        return [record.id for record, _ in step_tasks(records[:count], feed, step, 0.0)]

    assert drawn(0, 3, 8) == drawn(0, 3, 8) != drawn(1, 3, 8) != drawn(0, 4, 8)
    assert drawn(0, 3, 8)[:5] == drawn(0, 3, 5), "whatever else is in the batch"


def test_a_record_whose_own_task_is_to_repeat_keeps_its_document(encoder: Encoder, pool: list[Record]) -> None:
    own = Record(docs=["Own."], data_type="autoencode")
    feed = Feed(encoder, DataConfig(autoencode_share=0.0), pool=pool)
    assert step_tasks([own], feed, 0, 0.0) == [(own, "autoencode")]
    assert step_tasks([own], feed._replace(stage="instruct", config=MIXED), 0, 0.0) == [(own, "autoencode")]


CLOZE = replace(MIXED, autoencode_share=0.0, paraphrase_share=0.0, cloze_share=1.0)


def test_a_record_is_asked_about_sentences_of_what_is_read_of_its_document(encoder: Encoder) -> None:
    record = Record(id="r", docs=["Lamp 5 burns very red. Lamp 6 burns very blue."], question="q", answer="a")
    found = [cloze_record(encoder, record, seed) for seed in range(4)]
    assert all(each and (each.id, each.docs) == ("r", record.docs) for each in found)
    assert [(each.questions, each.replies) for each in found if each] == [(["Lamp ___ burns very red."], ["5"])] * 4
    wider = cloze_record(encoder._replace(doc_max_tokens=64), record, 0)
    assert wider and sorted(wider.replies) == ["5", "6"]
    assert cloze_record(encoder, Record(docs=["Too short."]), 0) is None


def test_sentences_to_fill_in_come_from_the_pool(encoder: Encoder, records: list[Record], pool: list[Record]) -> None:
    asked = document_records([Record(id="p", docs=[f"Wick {i} is cut very short." for i in range(9)])])
    feed = Feed(encoder, replace(CLOZE, cloze_share=0.5), pool=asked)
    drawn = [one for step in range(20) for one in step_tasks(records[:4], feed, step, 0.0)]
    own = [record for record, task in drawn if task == "qa"]
    filled = [record for record, task in drawn if task == "cloze"]
    assert len(own) + len(filled) == 80 and 25 < len(filled) < 55 and all(record in records for record in own)
    assert {record.docs[0] for record in filled} == {record.docs[0] for record in asked}
    assert {record.questions[0] for record in filled} == {"Wick ___ is cut very short."}
    dull = step_tasks(records[:4], feed._replace(config=CLOZE, pool=pool), 0, 0.0)
    assert dull == [(record, "qa") for record in records[:4]], "nothing of it can be left out"


def test_without_a_sentence_to_fill_in_a_record_keeps_its_own_task(encoder: Encoder, records: list[Record]) -> None:
    drawn = step_tasks(records, Feed(encoder, CLOZE), 0, 0.0)
    wanted = ["cloze" if "very" in record.docs[0] else "qa" for record in records]
    assert [task for _, task in drawn] == wanted and set(wanted) == {"cloze", "qa"}
    assert all(asked is record for (asked, task), record in zip(drawn, records, strict=True) if task == "qa")


def test_what_is_left_out_depends_on_seed_step_and_place(encoder: Encoder) -> None:
    record = Record(docs=["Ada 5 saw Ben 6 burn Cid 7 very red."], question="q", answer="a")

    def drawn(seed: int, step: int, count: int) -> list[str]:
        feed = Feed(encoder._replace(doc_max_tokens=64), replace(CLOZE, seed=seed))
        return [asked.replies[0] for asked, _ in step_tasks([record] * count, feed, step, 0.0)]

    assert drawn(0, 3, 16) == drawn(0, 3, 16) != drawn(1, 3, 16) != drawn(0, 4, 16)
    assert drawn(0, 3, 16)[:5] == drawn(0, 3, 5), "whatever else is in the batch"
    assert set(drawn(0, 3, 16)) == {"5", "6", "7", "Ben", "Cid"}


def test_a_record_without_a_paraphrase_keeps_its_own_task() -> None:
    config = DataConfig(autoencode_share=0.5, paraphrase_share=1.0)
    assert shares(Record(docs=["d"], question="q", answer="a"), config, 0.0) == {"autoencode": 0.5, "qa": 0.5}


def test_without_shares_every_record_keeps_its_own_task() -> None:
    record = Record(docs=["d"], data_type="paraphrase", paraphrase="p")
    assert shares(record, DataConfig(), 0.0) == {"paraphrase": 1.0}


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_the_share_of_a_step_says_otherwise(encoder: Encoder, stage: Stage) -> None:
    feed = Feed(encoder, SAYING, stage, answers=TABLE)
    steps = [step_tasks([RECORD] * 40, feed, step, 0.5) for step in range(20)]
    changed = sum(record != RECORD for step in steps for record, _ in step)
    assert 0.45 < changed / 800 < 0.55
    assert steps[3] == step_tasks([RECORD] * 40, feed, 3, 0.5), "by (seed, step, place)"
    assert len({record.docs[0] for step in steps for record, _ in step}) > 20, "otherwise each time"


def test_what_is_no_question_stays(encoder: Encoder) -> None:
    feed = Feed(encoder, replace(SAYING, counterfactual_share=1.0), answers=TABLE)
    chosen = [(RECORD, "autoencode"), (RECORD, "cloze"), (RECORD, "qa")]
    kept = said_otherwise(chosen, feed, 0)
    assert kept[:2] == chosen[:2] and kept[2][0] != RECORD and kept[2][1] == "qa"
    assert said_otherwise(chosen, feed._replace(stage="end_to_end"), 0) == chosen
    assert said_otherwise(chosen, feed._replace(config=DataConfig()), 0) == chosen


def test_without_answers_to_draw_from_records_stay_as_they_are(encoder: Encoder, records: list[Record]) -> None:
    assert [record for record, _ in step_tasks(records, Feed(encoder, SAYING), 0, 0.5)] == records
