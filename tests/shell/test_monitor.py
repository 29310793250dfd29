"""What is seen of a run: lines when they are due, events of everything, curves, the best checkpoint, sample answers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from folders import tiny_folder, tiny_options, write_choices, write_records

from clara.core.types import TrainState
from clara.io.evaluation.labels import is_rank
from clara.io.records import Record
from clara.io.retention import Best, checkpoints, mark_best, read_best, step_of
from clara.io.runlog import METRICS, append_event, read_events
from clara.shell.answer import answer
from clara.shell.job import Job, current, prepare
from clara.shell.loop import Step
from clara.shell.monitor import draw, keep_best, measure, out_of_patience, record_step, reply, show
from clara.shell.progress import Done


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Return a job of a reading and one of a choosing stage, ready to go."""
    folder = tmp_path_factory.mktemp("place")
    base = tiny_folder(folder / "base")
    files = {
        "pretrain": write_records(folder / "data.jsonl", range(4)),
        "end_to_end": write_choices(folder / "choices.jsonl", range(4)),
    }
    jobs = {}
    for stage, path in files.items():
        data = {"data": str(path), "heldout": str(path), "batch_size": 2, "max_tokens": 512}
        options = tiny_options(
            base, stage=stage, steps=20, log_every=4, eval_generate=1, show=2, data=data, retrieval={"top_k": 2}
        )
        jobs[stage] = prepare(options, None)
    return jobs


@pytest.fixture
def job(prepared: dict[str, Job], tmp_path: Path) -> Job:
    """Return a job of the stage `pretrain` with a folder of its own."""
    return prepared["pretrain"]._replace(folder=tmp_path)


def at(job: Job, step: int) -> TrainState:
    """Return the state of a job at a step."""
    return job.state._replace(step=mx.array(step))


def told(heard: list[Any], step: int, group: str, values: Mapping[str, float]) -> None:
    """Put what a reporter is told into a list."""
    heard.append((step, group, dict(values)))


def changed(job: Job, **options: Any) -> Job:
    """Return the job with some options changed."""
    return job._replace(options=msgspec.structs.replace(job.options, **options))


def test_every_step_is_recorded_and_lines_come_when_they_are_due(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Any] = []
    done: list[Done] = []
    for number in range(1, 21):
        step = Step(number, at(job, number), {"loss": 1 / number, "next_token": 1 / number}, 100, 0.5)
        done.append(Done(step.metrics, step.tokens, step.seconds))
        record_step(job, step, done, lambda *told_: told(heard, *told_))
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[1] for words in shown] == [f"{i}/20" for i in (1, 4, 8, 12, 16, 20)]
    means = [fmean(1 / i for i in own) for own in ([1], range(2, 5), *(range(i - 3, i + 1) for i in (8, 12, 16, 20)))]
    assert [float(words[3]) for words in shown] == pytest.approx(means, abs=1e-4)
    events = read_events(job.folder / METRICS)
    assert [(event["event"], event["step"]) for event in events] == [("step", i) for i in range(1, 21)]
    for event, (step_number, group, values) in zip(events, heard, strict=True):
        assert (step_number, group) == (event["step"], "training")
        assert values == {name: value for name, value in event.items() if name not in ("event", "step")}
    assert {"loss", "tokens", "seconds", "peak_gb"} <= events[0].keys() and events[3]["loss"] == 0.25


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        ("pretrain", {"loss", "next_token", "alignment", "other_memory"}),
        ("end_to_end", {"loss", "next_token", "other_memory", "mrr", "recall_at_1", "precision_at_2"}),
    ],
)
def test_an_evaluation_is_returned_recorded_reported_and_printed(
    stage: str, wanted: set[str], prepared: dict[str, Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, heard = prepared[stage]._replace(folder=tmp_path), list[Any]()
    means = measure(job, at(job, 7), lambda *told_: told(heard, *told_))
    assert wanted | {"exact_match", "cover_exact_match", "token_f1"} <= means.keys()
    (event,) = read_events(tmp_path / METRICS)
    assert event == {"event": "heldout", "step": 7, **means} and heard == [(7, "held-out", means)]
    assert capsys.readouterr().out.startswith("held-out after step 7: ")


def test_without_held_out_records_nothing_is_measured(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(job._replace(heldout=[]), at(job, 7), lambda *_: None) == {}
    assert capsys.readouterr().out == "" and list(job.folder.iterdir()) == []


@pytest.mark.parametrize(("step", "notes"), [(0, 1), (3, 0)])
def test_a_best_that_cannot_be_found_is_said_once(
    step: int, notes: int, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(changed(job, keep_best="mrr"), at(job, step), lambda *_: None)
    assert capsys.readouterr().out.count("no best checkpoint is kept: no held-out metric mrr among loss, ") == notes


def best_after(job: Job, metric: str, values: list[float]) -> tuple[Best | None, list[int]]:
    """Return which checkpoint is the best after evaluations with these values, and which there are."""
    job = changed(job, keep_best=metric, keep=1)
    for step, value in enumerate(values, 1):
        keep_best(job, at(job, step), {metric: value, "else": 1.0})
    folder = job.folder / "checkpoints"
    return read_best(folder), [step_of(path) for path in checkpoints(folder)]


@pytest.mark.parametrize(
    ("metric", "values", "step"),
    [
        ("loss", [3.0, 2.0, 2.5], 2),
        ("other_memory", [3.0, 2.0, 2.0], 2),
        ("next_token", [-1.0, -2.0, 0.0], 2),
        ("mrr", [0.1, 0.3, 0.2], 2),
        ("token_f1", [0.0, 0.0, 0.0], 1),
        ("contrastive", [3.0, 2.0, 1.0], 3),
    ],
)
def test_the_best_is_the_lowest_loss_or_the_highest_score_and_the_first_of_equals(
    metric: str, values: list[float], step: int, job: Job
) -> None:
    best, there = best_after(job, metric, values)
    assert best == Best(step=step, metric=metric, value=values[step - 1])
    assert step in there and len(there) <= 2, "the one before goes when the next is saved"


@pytest.mark.parametrize("metric", ["", "mrr"])
def test_without_the_metric_nothing_is_kept(metric: str, job: Job) -> None:
    keep_best(changed(job, keep_best=metric), at(job, 1), {"loss": 1.0})
    keep_best(changed(job, keep_best=metric), at(job, 1), {})
    assert list(job.folder.iterdir()) == []


def test_the_best_by_another_metric_does_not_count(job: Job) -> None:
    best_after(job, "loss", [0.001])
    mark_best(job.folder / "checkpoints", Best(step=1, metric="mrr", value=0.001))
    keep_best(changed(job, keep_best="loss"), at(job, 2), {"loss": 5.0})
    best = read_best(job.folder / "checkpoints")
    assert best == Best(step=2, metric="loss", value=5.0)


def polylines(path: Path) -> int:
    """Return how many curves a picture has."""
    return len(list(ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}polyline")))


def test_the_curves_are_those_that_there_are(job: Job) -> None:
    for step in (1, 2):
        append_event(job.folder / METRICS, {"event": "step", "step": step, "loss": 2.0 / step})
    draw(job)
    assert polylines(job.folder / "loss.svg") == 1 and not (job.folder / "recall.svg").exists()
    held = {"loss": 1.0, "next_token": 1.0, "other_memory": 2.0, "mrr": 0.5, "recall_at_1": 0.25}
    append_event(job.folder / METRICS, {"event": "heldout", "step": 2, **held})
    draw(job)
    assert polylines(job.folder / "loss.svg") == 3 and polylines(job.folder / "recall.svg") == 2


def test_ranking_metrics_are_told_from_others() -> None:
    ranks = ["mrr", "recall_at_1", "recall_at_20", "precision_at_2"]
    assert all(map(is_rank, ranks)) and not any(map(is_rank, ["loss", "contrastive", "token_f1", "exact_match"]))


def test_sample_questions_are_asked_in_turn(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    show(job, job.state)
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    first, second = job.heldout[:2]
    assert [words[0] for words in shown] == ["question", "answer", "expected"] * 2
    assert shown[0][1] == first.questions[0] and shown[3][1] == second.questions[1]
    assert shown[2][1] == first.replies[0] and shown[5][1] == second.replies[1]
    text = "".join(answer(job.session, second.docs, second.questions[1])).strip()
    assert reply(job.session, second, 1) == text


def test_only_questions_are_asked(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    show(job._replace(heldout=[Record(docs=["a"], data_type="autoencode", question="Which?")]), job.state)
    assert capsys.readouterr().out == ""


def events_of(metric: str, *values: float) -> list[dict[str, Any]]:
    """Return the log of a run with an evaluation before the first step and after every second one."""
    held = [{"event": "heldout", "step": 2 * i, metric: value} for i, value in enumerate(values)]
    return [{"event": "step", "step": 1, metric: 0.0}, *held, {"event": "heldout", "step": 2, "other": 1.0}]


@pytest.mark.parametrize(
    ("metric", "values", "patience"),
    [
        ("loss", (1.0,), 9),
        ("loss", (1.0, 5.0), 9),
        ("loss", (1.0, 5.0, 4.0, 3.0), 9),
        ("loss", (1.0, 5.0, 4.0, 4.0), 1),
        ("loss", (1.0, 5.0, 4.0, 4.5, 6.0), 2),
        ("loss", (1.0, 5.0, 4.0, 4.5, 3.0), 9),
        ("mrr", (0.9, 0.1, 0.3, 0.2, 0.3, 0.1), 3),
    ],
)
def test_patience_ends_after_so_many_evaluations_without_a_better_one(
    metric: str, values: tuple[float, ...], patience: int, job: Job
) -> None:
    events = events_of(metric, *values)
    for count in range(1, 9):
        options = changed(job, patience=count, keep_best=metric, eval_every=2).options
        assert out_of_patience(options, events) is (count <= patience < 9), count
    assert not out_of_patience(changed(job, keep_best=metric).options, events)


def test_patience_has_nothing_to_count_without_the_metric(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    measure(changed(job, patience=3, keep_best="mrr", eval_every=2), at(job, 0), lambda *told: None)
    assert "patience 3 never ends the run, for want of that metric" in capsys.readouterr().out
    options = changed(job, patience=1, keep_best="mrr", eval_every=2).options
    assert not out_of_patience(options, events_of("loss", 1.0, 2.0, 3.0, 4.0))


def test_a_generator_tuned_on_text_is_measured_and_shown_on_text(
    tmp_path: Path, prepared: dict[str, Job], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared["pretrain"].options
    sections = {"eval_generate": 1, "show": 1, "loss": {"alignment_weight": 0.0}}
    data = {"data": before.data.data, "heldout": before.data.heldout, "batch_size": 2, "max_tokens": 512}
    options = tiny_options(Path(before.model), stage="instruct", data=data | {"reads": "text"}, **sections)
    job = prepare(options, None)._replace(folder=tmp_path)
    monkeypatch.setattr("clara.shell.answer.compress_texts", None)
    means = measure(job, at(job, 3), lambda *told: None)
    assert {"loss", "next_token", "token_f1"} <= set(means) and "other_memory" not in means
    show(job, job.state)
    asked = job.heldout[0]
    said = "".join(answer(current(job, job.state), asked.docs, asked.questions[0]))
    assert f"answer    {said.strip()}" in capsys.readouterr().out
