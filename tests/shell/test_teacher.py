"""The teacher of a run: whose it may be, how its parameters stand beside the stage's, and training with one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from folders import tiny_options, write_records
from launched import Ended, ended, launch
from mlx.utils import tree_flatten
from runs import Run, command_of, text_run, tiny_run
from tiny import assert_close, assert_same

from clara.core.bind import hidden_states
from clara.core.stages import trained_leaves
from clara.io.checkpoint import load_checkpoint, newest_checkpoint, read_manifest
from clara.io.errors import ClaraError
from clara.io.retention import checkpoints
from clara.io.runlog import read_events
from clara.shell import train
from clara.shell.job import prepare
from clara.shell.load import largest_load
from clara.shell.setup import open_session
from clara.shell.teacher import beside_teacher, teacher_lines, teacher_name, teacher_of

DISTILS = {"loss": {"distillation_weight": 1.0}}


@pytest.fixture(scope="module")
def reader(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on text whose adapters have another rank and scale than a stage's."""
    return text_run(base, tmp_path_factory.mktemp("reader"), lora={"rank": 6, "alpha": 3.0, "dropout": 0.0})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of eight records with one document each."""
    return write_records(tmp_path_factory.mktemp("data") / "data.jsonl", range(8))


@pytest.fixture
def run(base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return the training command on the tiny base, with six steps of the data."""
    common = {"model": base, "data": data, "heldout": data, "steps": 6, "save-every": 3, "batch-size": 4, "show": 0}
    sizes = {"doc-max-tokens": 32, "compression-rate": 8, "rank": 4, "max-tokens": 384, "length-multiple": 16}
    rest = {"qa-form": "turns", "learning-rate": 0.01, "keep": 5, "keep-best": "", "accumulate": 2}
    flags = [f"--{name}={value}" for name, value in (common | sizes | rest).items()]
    return command_of(train.main, capsys, *flags)


def logged(run: Path, kind: str, name: str) -> list[float]:
    """Return the values of a metric in a run's events of a kind."""
    return [event[name] for event in read_events(run / "metrics.jsonl") if event["event"] == kind]


def test_the_teachers_states_are_those_of_its_own_run(base: Path, reader: Path) -> None:
    options = tiny_options(base, teacher=str(reader), **DISTILS)
    session = open_session(options)
    teacher = teacher_of(options, session.fingerprint)
    assert teacher is not None and teacher.path == checkpoints(reader / "checkpoints")[-1]
    _, frozen = trained_leaves(session.config, session.params)
    read = beside_teacher(frozen, teacher, session.config)
    assert {**read, "adapters": {}} == {**frozen, "adapters": {}} and set(read["adapters"]) == {"teacher"}
    embeddings = mx.random.normal((1, 5, session.base.special_embeddings.shape[1]))
    own, module = teacher.params["adapters"]["generator"], session.base.module
    found = hidden_states(module, embeddings, read["adapters"]["teacher"], scale=session.config.lora.scale)
    assert_close(found, hidden_states(module, embeddings, own, scale=0.5), 1e-5)


def test_without_a_run_the_base_is_the_teacher(base: Path) -> None:
    options = tiny_options(base, **DISTILS)
    frozen: dict[str, Any] = {"adapters": {}}
    assert teacher_of(options, "any") is None and teacher_name(None) == ""
    assert beside_teacher(frozen, None, open_session(options).config) is frozen
    assert teacher_lines(options, None) == ["teacher   the base itself, which reads the documents as text; weight 1.0"]
    assert teacher_lines(tiny_options(base), None) == []


def test_what_is_no_teacher_on_this_base_is_refused(base: Path, reader: Path, tmp_path: Path) -> None:
    def options(source: Path) -> Any:
        return tiny_options(base, teacher=str(source), **DISTILS)

    with pytest.raises(ClaraError, match=r"^--teacher \S+: was trained on another base \(fingerprint \w+\) than --mod"):
        teacher_of(options(reader), "0123")
    memory = tiny_run(base, tmp_path / "memory")
    with pytest.raises(ClaraError, match=r"^--teacher \S+: was trained on memory; wanted a run with data\.reads text"):
        teacher_of(options(memory))
    with pytest.raises(ClaraError, match=r"^--teacher \S+absent: no whole checkpoint found"):
        teacher_of(options(tmp_path / "absent"))


def test_training_brings_the_generator_nearer_to_a_teacher_that_was_trained(run: Run, tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    how = ("--alignment-weight", 0, "--dropout", 0, "--steps", 20)
    status, _, err = run("--run", teacher, "--reads", "text", "--learning-rate", 0.03, *how)
    assert status == 0, err
    more = ("--teacher", teacher, "--distillation-weight", 2, "--next-token-weight", 0)
    status, out, err = run("--run", student, *more, *how)
    assert status == 0, err
    assert f"teacher   {teacher} (step 20), which reads the documents as text; weight 2.0\n" in out
    assert " nats from the teacher\n" in out
    first, last = logged(student, "heldout", "distillation")
    assert last < 0.6 * first
    names = newest_checkpoint(student)[0].params["adapters"].keys()
    assert names == {"compressor", "generator"}, "the teacher is in no checkpoint"
    losses, terms = (logged(student, "step", name) for name in ("loss", "distillation"))
    np.testing.assert_allclose(losses, 2 * np.array(terms), rtol=1e-6)


def test_a_run_with_a_teacher_goes_on_bit_for_bit(run: Run, base: Path, reader: Path, tmp_path: Path) -> None:
    teacher, whole, again = tmp_path / "teacher", tmp_path / "whole", tmp_path / "again"
    shutil.copytree(reader, teacher)
    more = ("--teacher", teacher, "--distillation-weight", 1, "--autoencode-share", 0.5, "--length-buckets", 2)
    status, _, err = run("--run", whole, *more)
    assert status == 0, err
    shutil.copytree(whole, again)
    shutil.rmtree(checkpoints(again / "checkpoints")[-1])
    assert train.main(["--resume", str(again)]) == 0
    assert logged(again, "step", "loss") == logged(whole, "step", "loss")
    assert logged(again, "heldout", "distillation") == logged(whole, "heldout", "distillation")
    ends = [load_checkpoint(checkpoints(each / "checkpoints")[-1]) for each in (again, whole)]
    assert_same(*((end.params, end.optimizer_state) for end in ends))
    shutil.rmtree(checkpoints(again / "checkpoints")[-1])
    shutil.rmtree(teacher)
    text_run(base, teacher, generator=2.0)
    status, _, err = run("--resume", again)
    assert status == 1 and f"--teacher {teacher}: not the teacher that this run was started with" in err
    shutil.rmtree(teacher)
    status, _, err = run("--resume", again)
    assert status == 1 and f"--teacher {teacher}: no whole checkpoint found" in err


def test_a_run_may_start_from_one_without_a_teacher(run: Run, base: Path, reader: Path, tmp_path: Path) -> None:
    before = tiny_run(base, tmp_path / "before", teacher=str(reader), **DISTILS)
    more = ("--stage", "instruct", "--steps", 1)
    status, out, err = run("--start-from", before, "--run", tmp_path / "plain", *more)
    assert status == 0 and "teacher  " not in out, err
    status, out, err = run("--start-from", before, "--run", tmp_path / "base", "--distillation-weight", 1, *more)
    assert status == 0 and "teacher   the base itself" in out, err
    assert logged(tmp_path / "base", "step", "distillation")[0] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--teacher", "TEXT"), "while distillation_weight is 0; wanted a weight"),
        (("--stage", "retrieval", "--distillation-weight", 1), "stage retrieval has no teacher"),
        (("--stage", "all", "--alignment-weight", 0, "--distillation-weight", 1), "stage end_to_end: "),
        (("--reads", "text", "--alignment-weight", 0, "--distillation-weight", 1), "with reads text"),
        (("--teacher", "absent", "--distillation-weight", 1), "--teacher absent: no whole checkpoint found"),
        (
            ("--stage", "pretrain,instruct", "--instruct.teacher", "absent", "--instruct.distillation-weight", 1),
            "--teacher absent: no whole checkpoint found",
        ),
    ],
)
def test_what_has_no_use_for_a_teacher_is_refused_before_anything_is_done(
    more: tuple[Any, ...], said: str, run: Run, reader: Path, tmp_path: Path
) -> None:
    status, _, err = run("--run", tmp_path / "run", *(str(reader) if each == "TEXT" else each for each in more))
    assert status == 1 and said in err and not (tmp_path / "run").exists()


def test_one_stage_of_several_may_have_a_teacher(run: Run, reader: Path, tmp_path: Path) -> None:
    weights = ("--instruct.teacher", reader, "--instruct.distillation-weight", 0.5)
    status, _, err = run("--run", tmp_path / "run", "--stage", "pretrain,instruct", *weights, "--steps", 1)
    assert status == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())["stages"]
    assert [config[stage]["teacher"] for stage in ("pretrain", "instruct")] == ["", str(reader)]
    assert logged(tmp_path / "run" / "instruct", "heldout", "distillation")


def test_a_teacher_of_all_stages_is_not_read_where_documents_are_chosen(run: Run, reader: Path, tmp_path: Path) -> None:
    weights = ("--teacher", reader, "--pretrain.distillation-weight", 1, "--retrieval.batch-size", 2)
    stages = ("--stage", "pretrain,retrieval", "--retrieval.candidates", 3, "--steps", 1, "--accumulate", 1)
    status, out, err = run("--run", tmp_path / "run", *stages, *weights)
    assert status == 0, err
    assert out.count("teacher is not read: stage retrieval has none") == 1 and out.count("teacher   ") == 1
    saved = [checkpoints(tmp_path / "run" / stage / "checkpoints")[-1] for stage in ("pretrain", "retrieval")]
    assert [bool(read_manifest(path).teacher) for path in saved] == [True, False]


def test_no_teachers_row_is_longer_than_the_largest(base: Path, data: Path, reader: Path, tmp_path: Path) -> None:
    settings = {"data": str(data), "batch_size": 4, "max_tokens": 512}
    options = tiny_options(base, steps=2, run=str(tmp_path), data=settings, teacher=str(reader), **DISTILS)
    job = prepare(options, None)
    assert not list(tmp_path.iterdir()) and "teacher" not in job.frozen["adapters"]
    load = largest_load(options, job.feed, job.records, (job.session.params, job.frozen))
    assert load.taught is not None and load.answers
    for batch in (batch for step in train.training_batches(job.records, job.feed, 2) for batch in step.batches):
        assert batch.teacher is not None
        assert batch.teacher.tokens.shape[0] <= load.taught[0] and batch.teacher.tokens.shape[1] <= load.taught[1]
    plain = largest_load(tiny_options(base, data=settings), job.feed, job.records, (job.session.params, job.frozen))
    assert plain == load._replace(taught=None)
    assert sum(leaf.size for _, leaf in tree_flatten(job.frozen)) == load.frozen


@pytest.mark.parametrize("how", [(), ("--shard",)])
def test_two_ranks_are_taught_what_one_is(
    how: tuple[str, ...], run: Run, base: Path, data: Path, reader: Path, tmp_path: Path
) -> None:
    flags = ["--teacher", str(reader), "--distillation-weight=1", "--dropout=0", "--eps=1e-5", "--steps=3"]
    status, _, err = run("--run", tmp_path / "one", *flags)
    assert status == 0, err
    fixed = json.loads((tmp_path / "one" / "config.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps({**fixed, "run": ""}))
    argv = ["-m", "clara.shell.train", "--config", str(tmp_path / "same.json"), "--run", str(tmp_path / "two"), *how]
    first, second = ended(launch(2, tmp_path, *argv))
    assert (first.status, second) == (0, Ended(0, "", "")), (first, second)
    for kind in ("step", "heldout"):
        for name in ("loss", "distillation", "next_token"):
            found, wanted = (logged(tmp_path / each, kind, name) for each in ("two", "one"))
            assert found == pytest.approx(wanted, abs=1e-5, rel=1e-5)
    ends = [newest_checkpoint(tmp_path / each)[0].params for each in ("two", "one")]
    assert_close(*ends, 1e-4)
