"""Every format as it is distributed, in a few lines of its own shape, to the same form of question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_data import HOTPOT, MUSIQUE, ORIGINAL, RECORD, SQUAD

from clara.io.errors import ClaraError
from clara.io.evaluation.formats import FORMATS, Question, Row


def read(name: str, row: Any) -> list[Question | None]:
    """Return what a format makes of a row."""
    return list(FORMATS[name](Row(json.dumps(row).encode(), Path("folder/data.jsonl"), 7)))


def test_hotpotqa() -> None:
    docs = ("Meet Corliss: A series. It ran.", "Kiss and Tell: A film.")
    third = "Shirley Temple: She acted. She was Chief of Protocol."
    wanted = Question("5a8b", HOTPOT["question"], ("Chief of Protocol",), (*docs, third), (1, 2))
    assert read("hotpotqa", HOTPOT) == [wanted]
    assert wanted.known == (docs[1], third)


def test_musique() -> None:
    golds = ("Miquette Giraudy", "Giraudy")
    docs = ("Green: Steve Hillage made it.", "Blue: A colour.")
    assert read("musique", MUSIQUE) == [Question("2hop__1_2", "Who is the spouse?", golds, docs, (0,))]
    assert read("musique", MUSIQUE | {"answerable": False}) == [None]


def test_squad() -> None:
    first, impossible, last = read("squad", SQUAD)
    assert first == Question("56be", "Who won?", ("Denver", "Denver"), ("Super Bowl 50: Denver won.",), (0,))
    assert impossible is None
    assert last == Question("56bf", "When?", ("2016",), ("Super Bowl 50: In 2016.",), (0,))


@pytest.mark.parametrize(
    ("row", "golds", "name"),
    [
        ({"question": "q", "answer": ["14 December 1972", "December 1972"]}, 2, "data.jsonl:7"),
        ({"question": "q", "answer": "one"}, 1, "data.jsonl:7"),
        ({"question": "q", "answer": "one", "id": 12}, 1, "12"),
        ({"question": "q", "answer": []}, 0, "data.jsonl:7"),
    ],
)
def test_nq_open(row: dict[str, Any], golds: int, name: str) -> None:
    (found,) = read("nq", row)
    assert found is not None
    assert (len(found.golds), found.id, found.documents, found.known) == (golds, name, (), ())


@pytest.mark.parametrize(
    ("changes", "golds", "positives"),
    [
        ({}, ("x", "y"), (1,)),
        ({"pos_index": 0}, ("x", "y"), (0,)),
        ({"pos_index": []}, ("x", "y"), ()),
        ({"golden_answers": "x", "answer": "z"}, ("x",), (1,)),
        ({"golden_answers": [], "answer": ["z"]}, ("z",), (1,)),
        ({"golden_answers": [], "gold_answer": "w"}, ("w",), (1,)),
    ],
)
def test_the_originals_files(changes: dict[str, Any], golds: tuple[str, ...], positives: tuple[int, ...]) -> None:
    assert read("original", ORIGINAL | changes) == [Question("data.jsonl:7", "q", golds, ("a", "b"), positives)]


def test_each_question_of_a_record_counts() -> None:
    docs = ("Lamp: red.",)
    assert read("records", RECORD) == [
        Question("r#1", "Which?", ("red",), docs, (0,)),
        Question("r#2", "How?", ("dim",), docs, (0,)),
    ]


@pytest.mark.parametrize(
    ("changes", "golds", "positives"),
    [
        ({}, ("red",), (0,)),
        ({"golden_answers": ["Red", "crimson"]}, ("Red", "crimson"), (0,)),
        ({"docs": ["a", "b"]}, ("red",), ()),
        ({"docs": ["a", "b"], "pos_index": [1]}, ("red",), (1,)),
        ({"keywords": ["red"]}, ("red",), (0,)),
    ],
)
def test_a_record_of_one_question(changes: dict[str, Any], golds: tuple[str, ...], positives: tuple[int, ...]) -> None:
    (found,) = read("records", {"id": "r", "docs": ["a"], "question": "Which?", "answer": "red"} | changes)
    assert found is not None
    assert (found.id, found.golds, found.positives) == ("r", golds, positives)
    assert found.keywords == tuple(changes.get("keywords", ()))


@pytest.mark.parametrize(
    "record",
    [
        {"id": "r", "docs": ["Lamp."], "data_type": "paraphrase", "answers": ["Light."]},
        {"id": "r", "docs": ["Lamp."], "data_type": "autoencode", "paraphrase": "Light."},
    ],
)
def test_a_paraphrase_is_a_task_of_its_own(record: dict[str, Any]) -> None:
    assert read("records", record) == [Question("r#paraphrase", "", ("Light.",), ("Lamp.",), (0,), task="paraphrase")]
    assert [each and each.task for each in read("records", RECORD | {"paraphrase": "Light."})] == [
        "qa",
        "qa",
        "paraphrase",
    ]


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("hotpotqa", HOTPOT | {"context": [["Title"]]}, "$.context[0]"),
        ("hotpotqa", {"_id": "a", "question": "q"}, "context"),
        ("musique", MUSIQUE | {"paragraphs": [{"title": "a"}]}, "$.paragraphs[0]"),
        ("squad", {"data": [{"paragraphs": [{"qas": []}]}]}, "$.data[0].paragraphs[0]"),
        ("nq", {"question": "q"}, "answer"),
        ("original", {"question": ["q"], "docs": ["a"]}, "$.question"),
        ("records", {"docs": []}, "docs is empty"),
    ],
)
def test_a_row_of_another_shape_is_refused_by_name(name: str, row: Any, said: str) -> None:
    with pytest.raises(ClaraError) as caught:
        read(name, row)
    assert str(caught.value).startswith("folder/data.jsonl:7: ") and said in str(caught.value)
