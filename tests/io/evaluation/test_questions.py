"""Files of questions: the format told from the content, and whatever is wrong with them found before anything runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from evaluation_data import HOTPOT, MUSIQUE, ORIGINAL, RECORD, SQUAD
from hypothesis import given
from hypothesis import strategies as st

from clara.core.scoring import answer_scores
from clara.io.errors import ClaraError
from clara.io.evaluation.questions import PAPER, read_questions

OPEN = {"question": "Where?", "answer": ["here"]}
FILES = {
    "records": [RECORD, RECORD | {"id": "s"}],
    "original": [ORIGINAL, ORIGINAL],
    "musique": [MUSIQUE, MUSIQUE | {"id": "2"}],
    "nq": [OPEN, OPEN],
    "hotpotqa": [HOTPOT, HOTPOT | {"_id": "2"}],
}


def lines(path: Path, *rows: Any, indent: int | None = None) -> Path:
    """Return a file with rows one under another: bytes as they are, anything else as JSON."""
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else json.dumps(r, indent=indent).encode() for r in rows))
    return path


def refusal(path: Path, **how: Any) -> str:
    """Return the message with which a file is refused."""
    with pytest.raises(ClaraError) as caught:
        read_questions(str(path), **how)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("array", [False, True], ids=["lines", "array"])
def test_the_format_is_told_from_the_content(name: str, array: bool, tmp_path: Path) -> None:
    path = lines(tmp_path / "data", *([FILES[name]] if array else FILES[name]))
    found = read_questions(str(path))
    assert found.format == name
    assert len(found.questions) == (4 if name == "records" else 2) and found.left_out == 0
    assert read_questions(str(path), name) == found


@pytest.mark.parametrize("indent", [None, 2])
def test_squad_is_one_object(indent: int | None, tmp_path: Path) -> None:
    found = read_questions(str(lines(tmp_path / "dev.json", SQUAD, indent=indent)))
    assert (found.format, found.left_out) == ("squad", 1)
    assert [each.id for each in found.questions] == ["56be", "56bf"]
    assert found.questions[0].golds == ("Denver",), "the same gold twice counts once"


def test_one_line_is_one_record(tmp_path: Path) -> None:
    assert len(read_questions(str(lines(tmp_path / "data", b"\xef\xbb\xbf", OPEN))).questions) == 1
    assert len(read_questions(str(lines(tmp_path / "data", OPEN, b"", b"  ", OPEN))).questions) == 2


def test_paraphrases_are_asked_for_where_that_is_wanted(tmp_path: Path) -> None:
    path = lines(tmp_path / "data", RECORD | {"paraphrase": "Light."})
    assert [each.id for each in read_questions(str(path)).questions] == ["r#1", "r#2"]
    assert [each.id for each in read_questions(str(path), paraphrases=True).questions] == ["r#1", "r#2", "r#paraphrase"]


def test_golds_that_say_nothing_do_not_count(tmp_path: Path) -> None:
    path = lines(tmp_path / "data", OPEN | {"answer": ["The", "here", "!"]}, OPEN | {"answer": ["a"]})
    found = read_questions(str(path))
    assert [each.golds for each in found.questions] == [("here",)] and found.left_out == 1


BAD = {
    "an unknown format": ([{"text": "a", "label": 1}], "data:1: unknown format: found the fields text, label; wanted"),
    "no object": ([[1, 2]], "data: record 1: Expected `object`"),
    "no JSON": ([b"red"], "data:1: JSON is malformed"),
    "a broken array": ([b"[1, "], "data: not a JSON array"),
    "invalid UTF-8": ([b'{"question": "\xff", "answer": "a"}'], "data:1: "),
    "a bad second line": (
        [OPEN, {"question": 3, "answer": "a"}],
        "data:2: Expected `str`, got `int` - at `$.question`",
    ),
    "missing gold": (
        [OPEN, OPEN | {"answer": []}],
        "data:2: no gold answer for 'data:2'; wanted a data set with answers",
    ),
    "a test set": ([{k: v for k, v in HOTPOT.items() if k != "answer"}], "no gold answer for '5a8b'"),
    "missing gold of the original": ([ORIGINAL | {"golden_answers": []}], "data:1: no gold answer"),
    "an empty question": ([OPEN | {"question": " "}], "data:1: the question 'data:1' is empty"),
    "an empty document": ([ORIGINAL | {"docs": ["a", ""]}], "document 1 of 'data:1' is empty"),
    "an empty keyword": ([OPEN | {"keywords": [""]}], "keyword 0 of 'data:1' is empty"),
    "a positive that is not there": ([ORIGINAL | {"pos_index": [2]}], "in documents [2] of 2; wanted numbers counted"),
    "duplicate ids": ([MUSIQUE, MUSIQUE], "data:2: id '2hop__1_2' is also that of "),
    "duplicate ids in an array": ([[HOTPOT, HOTPOT]], "data: record 2: id '5a8b' is also that of "),
    "zero questions": ([[]], "no questions; the file is empty"),
    "no line": ([b"\n\n"], "no questions; the file is empty"),
    "no answerable question": ([MUSIQUE | {"answerable": False}], "no question with an answer, in format musique; 1"),
    "only autoencoding": (
        [{"docs": ["a"], "data_type": "autoencode"}],
        "no question with an answer, in format records",
    ),
}


@pytest.mark.parametrize(("rows", "said"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said(rows: list[Any], said: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "data", *rows)
    message = refusal(path)
    assert message.startswith(str(path)) and said in message


def test_a_format_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    path = lines(tmp_path / "data", OPEN)
    assert "$.answer" in refusal(path, format="hotpotqa")
    assert refusal(path, format="trivia").startswith("--format trivia: not one of auto, records, original, hotpotqa")
    assert "does not exist" in refusal(tmp_path / "absent")


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_in_words(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    assert str(scratch) in refusal(scratch)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that examples of hypothesis write over."""
    return tmp_path_factory.mktemp("questions") / "scratch"


def test_the_questions_on_the_paper_are_whole() -> None:
    rows = [json.loads(line) for line in Path(PAPER).read_text("utf-8").splitlines()]
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(["factual", "technical", "comparative", "detailed"], 5)
    assert all(row["section"] and row["keywords"] for row in rows)
    found = read_questions(PAPER)
    assert [each.text for each in found.questions] == [row["question"] for row in rows]
    assert len({each.text for each in found.questions}) == 20
    for each in found.questions:
        scores = answer_scores(each.golds[0], each.golds, each.keywords)
        assert set(scores.values()) == {1.0}, f"{each.id}: its own answer is a full one"
        asked = answer_scores(each.text, each.golds, each.keywords)
        assert asked["keyword_match"] <= 0.5, f"{each.id}: the question does not give the answer away"


@pytest.mark.parametrize("name", ["sample", "sample-heldout"])
def test_built_in_records_are_data_too(name: str) -> None:
    found = read_questions(name, paraphrases=True)
    assert len(found.questions) % 6 == 0 and found.format == "records"
