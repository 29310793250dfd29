"""The folder of an evaluation: predictions that survive a crash, scores that come back, damage that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from clara.io.errors import ClaraError
from clara.io.evaluation.predictions import (
    SCORES,
    Comparison,
    Interval,
    Prediction,
    Scores,
    SystemScores,
    append_predictions,
    predictions_path,
    read_predictions,
    read_scores,
    write_predictions,
    write_scores,
)


def prediction(number: int) -> Prediction:
    """Return a prediction with something in every field."""
    return Prediction(
        id=f"q{number}",
        system="memory",
        question="Which lamp?\n",
        golds=["red", "é"],
        prediction="\u2028red",
        documents=["Lamp"],
        texts=["Lamp: red."],
        scores=[0.5],
        positives=[True],
        candidates=3,
        ranking={"mrr": 1.0},
        metrics={"exact_match": 1.0},
        seconds={"decode": 0.25},
        prompt_tokens=12,
        tokens=3,
        finished=False,
    )


def test_predictions_come_back_in_their_order(tmp_path: Path) -> None:
    path = predictions_path(tmp_path, "memory")
    assert path == tmp_path / "predictions" / "memory.jsonl"
    assert read_predictions(path) == []
    write_predictions(path, [prediction(0)])
    append_predictions(path, [prediction(1), prediction(2)])
    append_predictions(path, [])
    assert read_predictions(path) == [prediction(0), prediction(1), prediction(2)]
    write_predictions(path, [prediction(2)])
    assert read_predictions(path) == [prediction(2)]


def test_a_line_that_was_cut_off_anywhere_is_left_out(tmp_path: Path) -> None:
    path = predictions_path(tmp_path, "memory")
    write_predictions(path, [prediction(0), prediction(1)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert read_predictions(path) == [prediction(0)], end


@pytest.mark.parametrize("line", [b"", b"{}", b'{"id": 3}', b"red", b"\xff"])
def test_a_damaged_line_is_named(line: bytes, tmp_path: Path) -> None:
    path = predictions_path(tmp_path, "memory")
    write_predictions(path, [prediction(0)])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ClaraError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}:2: not a prediction") and "remove the file" in str(caught.value)


def test_scores_come_back(tmp_path: Path) -> None:
    interval = Interval(0.5, 0.25, 0.75)
    system = SystemScores(
        system="memory",
        questions=3,
        means={"exact_match": interval},
        seconds={"decode": 0.1},
        prompt_tokens=7.5,
        peak_bytes=2**33,
    )
    compared = Comparison(first="memory", second="text", metric="exact_match", difference=interval, p_value=0.03)
    scores = Scores(systems=[system], comparisons=[compared])
    write_scores(tmp_path, scores)
    assert read_scores(tmp_path) == scores


def test_scores_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=r"scores\.json: cannot be read \(No such file.*that evaluate has written"):
        read_scores(tmp_path)
    (tmp_path / SCORES).write_text("{}")
    with pytest.raises(ClaraError, match=r"scores\.json: damaged, or of another version of clara"):
        read_scores(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "predictions").write_text("a file")
    path = predictions_path(tmp_path, "memory")
    for write in (append_predictions, write_predictions):
        with pytest.raises(ClaraError, match=r"memory\.jsonl: cannot be written"):
            write(path, [prediction(0)])
