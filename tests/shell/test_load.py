"""The largest step that a stage can have is as large as any, and layers are recomputed where it does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from folders import options_of, write_records
from mlx.utils import tree_flatten

from clara.core.config import Stage
from clara.core.packing import unpack
from clara.io.checkpoint import load_checkpoint, newest_checkpoint
from clara.io.dataset import training_batches
from clara.shell.job import Job, prepare, save, with_memories
from clara.shell.load import MEMORY_SHARE, largest_load
from clara.shell.options import to_options

JOINT = {"retrieval": {"train_compressor": True}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of five records with one document each."""
    return write_records(tmp_path_factory.mktemp("data") / "data.jsonl", range(5))


def sized(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Let the device have so many bytes."""
    monkeypatch.setattr("clara.shell.load.device_memory", lambda: size)


def recomputed(job: Job) -> tuple[Any, Any]:
    """Return (which layers the steps of a job recompute, which were asked for)."""
    saved = to_options(load_checkpoint(save(job, job.state)).config)
    return job.session.config.compute.grad_checkpoint, saved.compute.grad_checkpoint


def test_layers_are_recomputed_where_a_step_does_not_fit_the_device(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(base, data, tmp_path)
    sized(monkeypatch, 1e9)
    assert recomputed(prepare(options, None)) == (0, "auto")
    said = re.search(
        r"^compute   steps of up to \d\.\d GB by estimate, 1 GB there; no layer", capsys.readouterr().out, re.M
    )
    assert said is not None
    sized(monkeypatch, 0)
    checkpoint, _ = newest_checkpoint(tmp_path)
    assert recomputed(prepare(options, checkpoint)) == (1, "auto"), "a resumed run chooses anew"
    assert "every layer recomputed; may not fit: raise --accumulate" in capsys.readouterr().out


@pytest.mark.parametrize("every", [0, 2])
def test_a_number_that_is_asked_for_is_taken(
    every: int, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 0)
    job = prepare(options_of(base, data, tmp_path, compute={"grad_checkpoint": every}), None)
    assert recomputed(job) == (every, every)


def test_part_of_the_memory_is_left_to_what_is_not_counted(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara.shell.load.step_bytes", lambda *_: 1000)
    monkeypatch.setattr("clara.shell.load.recomputed_layers", lambda shapes, config, load, limit: int(limit))
    sized(monkeypatch, 1000)
    job = prepare(options_of(base, data, tmp_path), None)
    assert job.session.config.compute.grad_checkpoint == 1000 * MEMORY_SHARE


@pytest.mark.parametrize(
    ("stage", "sections"),
    [("pretrain", {}), ("instruct", {}), ("retrieval", {}), ("end_to_end", {}), ("end_to_end", JOINT)],
)
def test_no_batch_is_larger_than_the_largest(
    stage: Stage, sections: dict[str, Any], base: Path, data: Path, tmp_path: Path
) -> None:
    job = prepare(options_of(base, data, tmp_path, stage, **sections), None)
    job = job if job.session.config.trains_compressor else with_memories(job)
    trained = unpack(job.packing, job.state.params)
    load = largest_load(job.options, job.feed, job.records, (trained, job.frozen))
    for each in training_batches(job.records, job.feed, 4):
        for batch in each.batches:
            found = [] if isinstance(batch.documents, mx.array) else [batch.documents.tokens.shape]
            found += [batch.retrieval.questions.tokens.shape] if batch.retrieval else []
            found += [batch.tokens.shape] if stage != "retrieval" else []
            assert len(found) == len(load.passes)
            assert all(r <= rows and t <= length for (r, t), (rows, length) in zip(found, load.passes, strict=True))
            assert stage == "retrieval" or batch.target_index.size <= load.answers
            assert batch.candidates.size * job.session.base.layout.num_memory_tokens <= load.memories
    assert load.trained == sum(leaf.size for _, leaf in tree_flatten(job.state.params)) and not load.several
