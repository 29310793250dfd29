"""Passages: their hash, their line in a corpus, and what is read back from corpora and from training data."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.io.corpus.passages import Passage, content_hash, encode_record, passage_record, read_passages
from clara.io.errors import ClaraError
from clara.io.records import check_stage, read_records

PASSAGE = Passage(text="The lamp is red.", title="Lamps", source="lamps.pdf", pages=(2, 3), start=40, end=56, tokens=5)


def write(folder: Path, *rows: dict[str, Any] | bytes) -> str:
    """Return a corpus of rows: bytes as they are, anything else as JSON."""
    path = folder / "corpus.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return str(path)


def hashed(passage: Passage) -> Passage:
    """Return the passage with its hash."""
    return Passage(
        **{**{name: getattr(passage, name) for name in passage.__struct_fields__}, "hash": content_hash(passage.text)}
    )


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("", "e3b0c44298fc1c149afbf4c8996fb924"),
        ("abc", "ba7816bf8f01cfea414140de5dae2223"),
        ("é", "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"[:32]),
    ],
)
def test_the_hash_is_the_beginning_of_the_sha256_of_the_utf8(text: str, digits: str) -> None:
    assert content_hash(text) == digits


def test_half_a_surrogate_pair_counts_as_a_question_mark() -> None:
    assert content_hash("a\ud800b") == content_hash("a?b") != content_hash("ab")


def test_a_name_that_is_not_utf8_does_not_stop_a_line_from_being_written(tmp_path: Path) -> None:
    record = passage_record(
        Passage(text="A lamp.", title="b\udcff", source="b\udcff.txt", hash="0"), question=["\ud800"]
    )
    (passage,) = read_passages(write(tmp_path, encode_record(record)))
    assert (passage.title, passage.source) == ("b?", "b?.txt")


def test_a_passage_comes_back_from_its_line(tmp_path: Path) -> None:
    passage = hashed(PASSAGE)
    line = encode_record(passage_record(passage))
    path = write(tmp_path, line)
    assert list(read_passages(path)) == [passage]
    assert json.loads(line)["start"] == 40 and json.loads(line)["id"] == passage.hash
    (record,) = read_records(path)
    assert (record.data_type, record.docs, record.id) == ("autoencode", [passage.text], passage.hash)
    check_stage([record], "pretrain")


def test_a_passage_with_questions_is_a_qa_record(tmp_path: Path) -> None:
    more = {"data_type": "qa", "question": ["Which colour?"], "answers": ["red"], "paraphrase": "A red lamp."}
    path = write(tmp_path, encode_record(passage_record(hashed(PASSAGE), **more)))
    (record,) = read_records(path)
    assert (record.data_type, record.questions, record.replies) == ("qa", ["Which colour?"], ["red"])
    assert record.paraphrase == "A red lamp."
    assert list(read_passages(path)) == [hashed(PASSAGE)]


@given(text=st.text(min_size=1).filter(str.strip), title=st.text(), start=st.integers(0, 9), pages=st.booleans())
def test_any_passage_comes_back(
    text: str, title: str, start: int, pages: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    passage = hashed(
        Passage(text=text, title=title, source="a", pages=(1, 2) if pages else None, start=start, end=start + len(text))
    )
    path = write(tmp_path_factory.getbasetemp(), encode_record(passage_record(passage)))
    assert list(read_passages(path)) == [passage]


def test_training_data_gives_its_documents_once_each(tmp_path: Path) -> None:
    qa = {"question": "q", "answer": "a"}
    path = write(
        tmp_path,
        {"docs": ["A", "B", "A"], **qa},
        {"docs": ["B"], **qa, "title": "late"},
        {"docs": ["C"], **qa, "title": "C"},
    )
    passages = list(read_passages(path))
    assert [(p.text, p.title, p.source, p.pages) for p in passages] == [
        ("A", "", "corpus.jsonl", None),
        ("B", "", "corpus.jsonl", None),
        ("C", "C", "corpus.jsonl", None),
    ]
    assert [(p.start, p.end, p.tokens, p.hash) for p in passages] == [(0, 1, 0, content_hash(p.text)) for p in passages]


def test_the_built_in_sample_is_a_corpus() -> None:
    passages = list(read_passages("sample"))
    assert len(passages) == len(read_records("sample"))
    assert (passages[0].title, passages[0].source) == ("Vessany Bridge", "sample_train.jsonl")


def test_the_hash_that_a_line_says_is_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path, {"docs": ["A"], "data_type": "autoencode", "hash": "0" * 32})
    assert [passage.hash for passage in read_passages(path)] == [content_hash("A")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"docs": ["a"', "not a JSON object"),
        ({"docs": []}, "docs is empty"),
        ({"docs": ["A"], "title": 3}, "$.title"),
    ],
)
def test_a_bad_line_is_refused_when_it_is_reached(line: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"docs": ["A"], "data_type": "autoencode"}, line)
    passages = read_passages(path)
    assert [passage.text for passage in islice(passages, 1)] == ["A"]
    with pytest.raises(ClaraError) as caught:
        next(passages)
    assert str(caught.value).startswith(f"{path}:2: ") and said in str(caught.value)
