"""Folders that a report is made of: what is in them comes back, and what is missing or damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import NASTY, SYSTEMS, made_up, write_evaluation, write_run

from clara.io.errors import ClaraError
from clara.io.evaluation.evaluations import Evaluation, Run, asked, read_config, read_evaluation, read_folder
from clara.io.evaluation.predictions import Scores, append_predictions, predictions_path, read_scores, write_scores


def test_an_evaluation_comes_back(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "dev", rate=16, count=5, checkpoint="runs/one")
    (found,) = read_folder(folder)
    assert isinstance(found, Evaluation) and found.path == folder and found.scores == read_scores(folder)
    assert list(found.predictions) == list(SYSTEMS)
    assert found.predictions["text"] == [made_up("text", i) for i in range(5)]
    assert NASTY in {answer.prediction for answer in found.predictions["memory"]}
    facts = found.facts
    assert (facts.compression_rate, facts.num_memory_tokens, facts.checkpoint, facts.model) == (16, 16, "runs/one", "")


def test_a_run_comes_back(tmp_path: Path) -> None:
    (found,) = read_folder(write_run(tmp_path / "run", 4, stage="pretrain"))
    assert isinstance(found, Run) and found.config == {"stage": "pretrain"}
    assert [event["step"] for event in found.events] == [0, 1, 2, 3, 3, 4]


def test_a_curriculum_comes_back_stage_by_stage_with_its_evaluations(tmp_path: Path) -> None:
    for stage in ("end_to_end", "instruct", "pretrain"):
        write_run(tmp_path / stage)
    write_evaluation(tmp_path / "end_to_end" / "evaluations" / "dev")
    (tmp_path / "end_to_end" / "evaluations" / "unfinished" / "predictions").mkdir(parents=True)
    names = [each.path.relative_to(tmp_path).as_posix() for each in read_folder(tmp_path)]
    assert names == ["pretrain", "instruct", "end_to_end", "end_to_end/evaluations/dev"]


@pytest.mark.parametrize(
    ("made", "found"), [(False, "no such folder"), (True, "holds neither scores.json nor metrics")]
)
def test_a_folder_of_neither_kind_is_refused(made: bool, found: str, tmp_path: Path) -> None:
    if made:
        (tmp_path / "x").mkdir()
    with pytest.raises(ClaraError, match=rf"x: {found}"):
        read_folder(tmp_path / "x")


def test_an_evaluation_that_has_not_finished_says_how_far_it_is(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "dev", count=3, systems=("memory", "text"))
    (folder / "scores.json").unlink()
    predictions_path(folder, "text").unlink()
    with pytest.raises(ClaraError, match=r"dev: .* not finished: memory 3 of 3, text 0 of 3 questions; run evaluate"):
        read_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ClaraError, match=r"not finished: memory 3 of 0 questions"):
        read_folder(folder)


def test_predictions_that_do_not_match_the_scores_are_named(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "dev", count=3)
    append_predictions(predictions_path(folder, "text"), [made_up("text", 4)])
    with pytest.raises(ClaraError, match=r"predictions/text.jsonl: 4 predictions, but scores.json counts 3 questions"):
        read_folder(folder)
    predictions_path(folder, "text").unlink()
    with pytest.raises(ClaraError, match=r"predictions/text.jsonl: 0 predictions, but"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.json", "{", r"scores.json: damaged"),
        ("config.json", "[]", r"config.json: damaged"),
        ("config.json", '{"compression_rate": "four"}', r"config.json: damaged .*compression_rate"),
        ("predictions/memory.jsonl", "{}\n", r"memory.jsonl:1: not a prediction"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "dev", count=2)
    (folder / name).write_text(content)
    with pytest.raises(ClaraError, match=message):
        read_folder(folder)


@pytest.mark.parametrize("content", ["", "{"])
def test_a_log_without_an_event_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ClaraError, match=r"metrics.jsonl: no event"):
        read_folder(tmp_path)


def test_no_configuration_is_an_empty_one(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {}
    write_scores(tmp_path, Scores(systems=[]))
    assert read_evaluation(tmp_path).facts.questions == 0


def test_evaluations_are_of_one_kind_where_all_that_numbers_depend_on_is_equal(tmp_path: Path) -> None:
    same = {"one": {}, "seed": {"seed": 7}, "rate": {"compression_rate": 64}, "device": {"device": "gpu"}}
    other = {
        "part": {"limit": 5},
        "drawn": {"limit": 5, "seed": 7},
        "data": {"data": "x"},
        "corpus": {"corpus": "y"},
        "passages": {"corpus_fingerprint": "f"},
        "top_k": {"top_k": 3},
        "model": {"model": "z"},
        "max_tokens": {"max_tokens": 9},
        "beams": {"beams": 4},
        "paraphrases": {"paraphrases": True},
        "counterfactual": {"counterfactual": True},
        "counterfactual drawn": {"counterfactual": True, "seed": 7},
    }
    found = {
        name: asked(read_evaluation(write_evaluation(tmp_path / name, count=1, **how)))
        for name, how in (same | other).items()
    }
    assert len({found[name] for name in same}) == 1 and len(set(found.values())) == 1 + len(other)
