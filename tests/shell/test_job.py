"""A stage before its first step: what is read, what is refused, which parameters it trains, and what it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from folders import options_of, tiny_options, write_choices, write_records
from mlx.utils import tree_flatten, tree_map

from clara.core.config import Stage
from clara.core.packing import unpack
from clara.core.projection import whitening
from clara.io.checkpoint import Checkpoint, load_checkpoint
from clara.io.dataset import distinct_documents, training_batches
from clara.io.errors import ClaraError
from clara.shell.job import Job, current, prepare, read_data, read_pool, save, with_memories
from clara.shell.options import Options, to_options, to_plain
from clara.shell.setup import data_fingerprint, device_memory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of five records with one document each."""
    return write_records(tmp_path_factory.mktemp("data") / "data.jsonl", range(5))


def names(job: Job) -> tuple[set[str], set[str]]:
    """Return the names of the trained and the frozen parts of a job's parameters."""
    first, second = (
        {*params.get("adapters", {}), *(name for name in params if name != "adapters")}
        for params in (unpack(job.packing, job.state.params), job.frozen)
    )
    return first, second


@pytest.mark.parametrize(
    ("stage", "weight", "wanted", "negatives"),
    [
        ("retrieval", 1.0, True, True),
        ("retrieval", 1.0, False, False),
        ("end_to_end", 0.3, True, True),
        ("end_to_end", 0.0, True, False),
    ],
)
def test_batches_have_in_batch_negatives_where_the_loss_has_a_use_for_them(
    stage: Stage, weight: float, wanted: bool, negatives: bool, base: Path, data: Path, tmp_path: Path
) -> None:
    sections = {"retrieval": {"in_batch_negatives": wanted}, "loss": {"contrastive_weight": weight}}
    job = with_memories(prepare(options_of(base, data, tmp_path, stage, **sections), None))
    (batch,) = next(training_batches(job.records, job.feed, 1)).batches
    assert batch.retrieval is not None and (batch.retrieval.in_batch is not None) == negatives


JOINT = {"retrieval": {"train_compressor": True}}
BESIDE = {"memory_embeddings", "anchor_gain"}


@pytest.mark.parametrize(
    ("stage", "sections", "trained", "frozen"),
    [
        ("pretrain", {}, {"compressor", "generator", *BESIDE}, set()),
        ("instruct", {}, {"compressor", "generator", *BESIDE}, set()),
        ("retrieval", {}, {"reasoner"}, {"compressor", "generator", *BESIDE}),
        ("end_to_end", {}, {"reasoner", "generator"}, {"compressor", *BESIDE}),
        ("end_to_end", JOINT, {"reasoner", "compressor", "generator", *BESIDE}, set()),
    ],
)
def test_each_stage_has_its_own_trained_parameters_and_optimizer_state(
    stage: Stage, sections: dict[str, Any], trained: set[str], frozen: set[str], base: Path, data: Path, tmp_path: Path
) -> None:
    job = prepare(options_of(base, data, tmp_path, stage, **sections), None)
    assert names(job) == (trained, frozen) and job.start == 0 and int(job.state.step) == 0
    assert list(tmp_path.iterdir()) == [], "nothing is written before the first step"
    whole = dict(tree_flatten(job.session.params))
    assert dict(tree_flatten(current(job, job.state).params)).keys() == whole.keys()


def test_records_have_their_candidates_before_the_first_step(base: Path, data: Path, tmp_path: Path) -> None:
    records, heldout = read_data(options_of(base, data, tmp_path, "retrieval"))
    assert heldout == [] and [len(record.docs) for record in records] == [4] * 5
    assert all(record.id in {f"r{i}" for i in range(5)} and len(record.positives) == 1 for record in records)


@pytest.mark.parametrize("stage", ["pretrain", "retrieval"])
def test_data_that_the_stage_cannot_learn_from_is_refused(stage: Stage, base: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"id": "two", "docs": ["a", "b", "c", "d"], "question": "q", "answer": "a"}) + "\n")
    said = {"pretrain": "record two: 4 documents", "retrieval": "record two and all others: no pos_index"}[stage]
    with pytest.raises(ClaraError, match=said):
        prepare(options_of(base, bad, tmp_path / "run", stage), None)


def test_an_unknown_reporter_is_refused_first(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match="smoke: no such reporter"):
        prepare(options_of(base, tmp_path / "absent", tmp_path / "run", report_to="smoke"), None)


def moved(job: Job, amount: float, step: int = 2) -> Checkpoint:
    """Return the checkpoint of a job whose trained parameters have been moved."""
    params = tree_map(lambda leaf: leaf + amount, job.state.params)
    return load_checkpoint(save(job, job.state._replace(params=params, step=mx.array(step))))


def values(tree: Any) -> dict[str, list[Any]]:
    """Return the leaves of a tree as plain values."""
    return {name: leaf.tolist() for name, leaf in tree_flatten(tree)}


def test_what_is_saved_is_all_that_a_run_goes_on_from(base: Path, data: Path, tmp_path: Path) -> None:
    options = options_of(base, data, tmp_path / "run", "retrieval")
    job = prepare(options, None)
    checkpoint = moved(job, 0.5)
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.stage, manifest.base) == (2, "retrieval", job.session.fingerprint)
    assert (manifest.data, manifest.seed, manifest.started_from) == (data_fingerprint(str(data)), 0, "")
    assert to_options(checkpoint.config) == options
    again = prepare(options, checkpoint)
    assert again.start == int(again.state.step) == 2
    assert values(again.session.params) == values(checkpoint.params)
    assert values(again.state.params) == {name: (leaf + 0.5).tolist() for name, leaf in tree_flatten(job.state.params)}
    assert values(again.frozen) == values(job.frozen)
    assert values(again.state.optimizer_state) == values(job.state.optimizer_state)
    assert again.session.base.special_embeddings.tolist() == job.session.base.special_embeddings.tolist()


@pytest.mark.parametrize("carried", [True, False])
def test_a_stage_carries_the_generator_on_or_begins_it_anew(
    carried: bool, base: Path, data: Path, tmp_path: Path
) -> None:
    first = prepare(options_of(base, data, tmp_path / "first"), None)
    start = moved(first, 0.5)
    sections = {"start_from": str(tmp_path / "first"), "carry_generator": carried}
    options = options_of(base, data, tmp_path / "second", "instruct", **sections)
    second = prepare(options, None)
    before, after = start.params["adapters"], second.session.params["adapters"]
    assert values(after["compressor"]) == values(before["compressor"])
    assert (values(after["generator"]) == values(before["generator"])) is carried
    if not carried:
        assert values(after["generator"]) == values(first.session.params["adapters"]["generator"])
    again = prepare(options, moved(second, 0.25))
    assert values(again.state.params) == {
        name: (leaf + 0.25).tolist() for name, leaf in tree_flatten(second.state.params)
    }, "a resumed stage keeps what it has learnt"


def test_other_data_and_fewer_steps_are_refused_on_resume(base: Path, data: Path, tmp_path: Path) -> None:
    options = options_of(base, data, tmp_path / "run")
    checkpoint = moved(prepare(options, None), 0.5, step=4)
    assert prepare(options, checkpoint).start == 4
    fewer = to_options(to_plain(options) | {"steps": 3})
    with pytest.raises(ClaraError, match="has done 4 of 3 steps; give a larger --steps"):
        prepare(fewer, checkpoint)
    other = write_records(tmp_path / "other.jsonl", range(6))
    with pytest.raises(ClaraError, match=f"^{other}: not the data that this run was started with"):
        prepare(options_of(base, other, tmp_path / "run"), checkpoint)


def test_an_optimizer_state_that_lacks_a_leaf_is_refused_on_resume(base: Path, data: Path, tmp_path: Path) -> None:
    options = options_of(base, data, tmp_path / "run")
    checkpoint = moved(prepare(options, None), 0.5, step=4)
    state = {name: leaf for name, leaf in checkpoint.optimizer_state.items() if name != "memory_embeddings"}
    with pytest.raises(ClaraError, match="step-000004: its optimizer state has no memory_embeddings; --start-from it"):
        prepare(options, checkpoint._replace(optimizer_state=state))


@pytest.mark.parametrize(("before", "now"), [("rank", {"rank": 2}), ("alpha", {"alpha": 5.0})])
def test_a_checkpoint_of_other_options_is_not_started_from(
    before: str, now: dict[str, Any], base: Path, data: Path, tmp_path: Path
) -> None:
    moved(prepare(options_of(base, data, tmp_path / "first"), None), 0.5)
    options = options_of(base, data, tmp_path / "second", "instruct", start_from=str(tmp_path / "first"), lora=now)
    with pytest.raises(ClaraError, match=f"step-000002: was trained with {before} .*; leave these options out"):
        prepare(options, None)


def test_a_checkpoint_without_a_reasoner_gets_a_copy_of_the_compressor(base: Path, data: Path, tmp_path: Path) -> None:
    start = moved(prepare(options_of(base, data, tmp_path / "first"), None), 0.5)
    assert "reasoner" not in start.params["adapters"]
    job = prepare(options_of(base, data, tmp_path / "second", "end_to_end", start_from=str(start.path)), None)
    assert values(job.session.params["adapters"]["reasoner"]) == values(start.params["adapters"]["compressor"])


@pytest.mark.parametrize(
    ("stage", "sections", "kept"),
    [
        ("pretrain", {}, False),
        ("retrieval", {}, True),
        ("end_to_end", {}, True),
        ("end_to_end", JOINT, False),
    ],
)
def test_memories_are_kept_where_the_compressor_is_frozen(
    stage: Stage, sections: dict[str, Any], kept: bool, base: Path, data: Path, tmp_path: Path
) -> None:
    job = with_memories(prepare(options_of(base, data, tmp_path / "run", stage, **sections), None))
    assert (job.feed.memory is not None) is kept is (tmp_path / "run" / "memories").exists()


def test_memories_may_have_a_folder_of_their_own(base: Path, tmp_path: Path) -> None:
    data = write_choices(tmp_path / "data.jsonl", range(4))
    options = options_of(base, data, tmp_path / "run", "end_to_end", memories=str(tmp_path / "elsewhere"))
    with_memories(prepare(options, None))
    assert (tmp_path / "elsewhere").is_dir() and not (tmp_path / "run").exists()


def test_reading_stages_take_the_documents_that_hold_the_answer_where_they_are_to(base: Path, tmp_path: Path) -> None:
    choices = write_choices(tmp_path / "choices.jsonl", range(3))
    for stage, gold_only, count in (("instruct", False, 3), ("instruct", True, 1), ("end_to_end", True, 3)):
        data = {"data": str(choices), "heldout": str(choices), "gold_only": gold_only}
        sets = read_data(tiny_options(base, stage=stage, data=data))
        assert [[len(record.docs) for record in records] for records in sets] == [[count] * 3] * 2, stage
    data = {"data": str(choices), "heldout": "", "gold_only": True, "candidates": 9}
    records, _ = read_data(tiny_options(base, data=data))
    assert [record.docs for record in records] == [
        [f"Lamp {i + i % 3} burns {'very ' * ((i + i % 3) % 3)}red."] for i in range(3)
    ]


@pytest.mark.parametrize(
    ("docs", "how", "said"),
    [
        (2, {"gold_only": True, "candidates": 4}, "record r0: 2 documents, but no pos_index; gold_only wants to know"),
        (2, {"candidates": 4}, "record r0: 2 documents; stage pretrain wants exactly one"),
        (1, {"candidates": 4}, "--candidates 4: stage pretrain wants one document a record; leave it out"),
    ],
)
def test_documents_that_are_counted_are_a_records_own(
    docs: int, how: dict[str, Any], said: str, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    rows = [
        {"id": f"r{i}", "docs": [f"Lamp {i} {j}." for j in range(docs)], "question": "q", "answer": "a"}
        for i in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ClaraError, match=f"^{said}"):
        read_data(tiny_options(base, data={"data": str(path), "heldout": "", **how}))


def pooled(base: Path, data: Path, pool: Path, **more: Any) -> Options:
    """Return options of a run that repeats the documents of a pool."""
    settings = {"data": str(data), "batch_size": 2, "max_tokens": 512, "autoencode_data": str(pool)}
    return tiny_options(base, steps=4, data={"autoencode_share": 0.5, **settings, **more}, run=str(data.parent / "run"))


def test_documents_to_repeat_are_read_where_some_are_repeated(base: Path, data: Path, tmp_path: Path) -> None:
    pool = write_choices(tmp_path / "pool.jsonl", range(4))
    job = prepare(pooled(base, data, pool), None)
    lamps = [f"Lamp {i} burns {'very ' * (i % 3)}red." for i in range(6)]
    assert [record.docs for record in job.feed.pool] == [[text] for text in sorted(lamps, key=len)]
    assert job.data == f"{data_fingerprint(str(data))}-{data_fingerprint(str(pool))}"
    assert read_pool(pooled(base, data, pool, autoencode_share=0.0)) == []
    assert read_pool(pooled(base, data, pool, autoencode_share=0.0, cloze_share=0.5)) == job.feed.pool
    without = prepare(pooled(base, data, pool, autoencode_data=""), None)
    assert (without.data, without.feed.pool) == (data_fingerprint(str(data)), [])


def test_other_documents_to_repeat_are_refused_on_resume(base: Path, data: Path, tmp_path: Path) -> None:
    pool = write_choices(tmp_path / "pool.jsonl", range(4))
    job = prepare(pooled(base, data, pool), None)._replace(folder=tmp_path / "run")
    checkpoint = load_checkpoint(save(job, job.state))
    write_choices(pool, range(5))
    with pytest.raises(ClaraError, match=r"data\.jsonl and .*pool\.jsonl: not the data that this run was started with"):
        prepare(job.options, checkpoint)


def test_several_files_have_one_fingerprint_of_all(tmp_path: Path) -> None:
    first, second = write_records(tmp_path / "a.jsonl", range(2)), write_records(tmp_path / "b.jsonl", range(3))
    found = {data_fingerprint(f"{one},{two}") for one in (first, second) for two in (first, second)}
    assert len(found | {data_fingerprint(str(first)), data_fingerprint(str(second))}) == 6


POOLED = {"retrieval": {"relevance": "pooled"}}


def test_pooled_relevance_begins_with_the_whitening_of_the_documents(base: Path, data: Path, tmp_path: Path) -> None:
    job = with_memories(prepare(options_of(base, data, tmp_path / "run", "retrieval", **POOLED), None))
    params = current(job, job.state).params
    assert job.feed.memory is not None
    memory = np.array(job.feed.memory(distinct_documents(job.records, job.session.encoder)).astype(mx.float32))
    center, weights = whitening(memory.reshape(-1, memory.shape[-1]))
    np.testing.assert_allclose(np.array(params["relevance_center"]), center, atol=1e-6)
    np.testing.assert_allclose(np.array(params["relevance_map"]), weights, atol=1e-5)
    assert {"relevance_center", "relevance_map"} <= unpack(job.packing, job.state.params).keys(), "it is trained"


def test_a_trained_lens_is_not_begun_anew(base: Path, data: Path, tmp_path: Path) -> None:
    options = options_of(base, data, tmp_path / "run", "retrieval", **POOLED)
    job = prepare(options, None)
    trained = moved(job, 0.25, step=4)
    later = options_of(base, data, tmp_path / "next", "end_to_end", start_from=str(trained.path), **POOLED)
    after = with_memories(prepare(later, None))
    params = current(after, after.state).params
    np.testing.assert_allclose(np.array(params["relevance_map"]), np.array(trained.params["relevance_map"]))


def test_answers_of_questions_alone_take_the_place_of_others(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "mixed.jsonl"
    asked = {"docs": ["Built in 1907."], "question": "When?", "answer": "1907"}
    told = {"docs": ["It is red."], "data_type": "paraphrase", "paraphrase": "Red it is"}
    data.write_text("".join(json.dumps(each) + "\n" for each in (asked, told)))
    share = {"data": str(data), "max_tokens": 512, "counterfactual_share": 0.5}
    job = prepare(tiny_options(base, run=str(tmp_path / "run"), steps=1, data=share), None)
    assert job.feed.answers.kinds == {"number": ["1907"]}


@pytest.mark.parametrize(
    ("told", "size"),
    [({"total_memory": 7, "name": "H"}, 7), ({"max_recommended_working_set_size": 5, "memory_size": 8}, 5), ({}, 6)],
)
def test_memory_is_what_the_gpu_says_or_else_the_machines(
    told: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara.shell.setup.mx.device_info", lambda: told)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 2, "SC_PHYS_PAGES": 3}.__getitem__)
    assert device_memory() == size
