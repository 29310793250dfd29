"""Records: what a line may look like, what is refused with file and line, and the sets that come with the package."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.core.config import STAGES, Stage
from clara.io.errors import ClaraError
from clara.io.records import (
    BUILTIN,
    Record,
    check_stage,
    data_path,
    document_records,
    fault,
    golden,
    read_records,
    source_names,
    with_candidates,
)

GOOD = {"docs": ["A lamp."], "question": ["What?"], "answers": ["A lamp"]}
SEEN = [json.dumps(GOOD).encode(), b'{"docs": ["\\ud800"]}', b'{"docs": 3}']
text = st.text(min_size=1, max_size=40).filter(str.strip)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that examples of hypothesis write over."""
    return tmp_path_factory.mktemp("records") / "scratch.jsonl"


def write(folder: Path, *lines: Any, end: bytes = b"\n", start: bytes = b"") -> Path:
    """Return a file of lines: bytes as they are, anything else as JSON."""
    path = folder / "data.jsonl"
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(start + end.join(rows) + end)
    return path


def refusal(path: Path) -> str:
    """Return the message with which a file is refused."""
    with pytest.raises(ClaraError) as caught:
        read_records(str(path))
    return str(caught.value)


BAD_LINES = {
    "invalid UTF-8": (b'{"docs": ["a\xffb"]}', ["invalid UTF-8", "byte 12"]),
    "no JSON": (b'{"docs": ["a"', ["not a JSON object"]),
    "words": (b"A lamp.", ["not a JSON object", "clara.shell.prepare makes a corpus out of documents"]),
    "words in Latin-1": (b"Caf\xe9", ["invalid UTF-8 at byte 3", "clara.shell.prepare makes"]),
    "nested too deep": (b'{"docs": ["a"], "more": ' + b"[" * 100_000, ["nested too deep"]),
    "a list": (["A lamp."], ["object", "array"]),
    "a string": ("A lamp.", ["object", "str"]),
    "two records in one line": (b'{"docs": ["a"]} {"docs": ["b"]}', ["not a JSON object on one line"]),
    "a wrong type": (GOOD | {"docs": "A lamp."}, ["array", "str", "$.docs"]),
    "a wrong type inside": (GOOD | {"answers": [3]}, ["str", "int", "$.answers[0]"]),
    "null": (GOOD | {"data_type": None}, ["str", "null", "$.data_type"]),
    "missing docs": ({"question": ["What?"], "answers": ["A lamp"]}, ["missing", "docs"]),
    "a text": ({"text": "A lamp."}, ["missing required field `docs`", "clara.shell.prepare makes"]),
    "no document": (GOOD | {"docs": []}, ["docs is empty", "at least one"]),
    "an empty document": (GOOD | {"docs": ["A lamp.", ""]}, ["docs[1] is empty"]),
    "a blank document": (GOOD | {"docs": [" \n\t"]}, ["docs[0] is empty"]),
    "an unknown task": (GOOD | {"data_type": "sing"}, ["'sing'", "qa, paraphrase, autoencode"]),
    "no question": ({"docs": ["A lamp."]}, ["question is missing"]),
    "fewer answers": (GOOD | {"question": ["What?", "Why?"]}, ["2 questions but 1 answers"]),
    "more answers": (GOOD | {"answers": ["a", "b", "c"]}, ["1 questions but 3 answers"]),
    "no answer": (GOOD | {"answers": []}, ["1 questions but 0 answers"]),
    "an empty question": (GOOD | {"question": [""]}, ["question[0] is empty"]),
    "an empty single question": (GOOD | {"question": ""}, ["question[0] is empty"]),
    "an empty answer": (GOOD | {"answers": ["  "]}, ["answers[0] is empty"]),
    "an empty single answer": (GOOD | {"answers": [], "answer": ""}, ["answers[0] is empty"]),
    "an empty paraphrase": (GOOD | {"paraphrase": ""}, ["paraphrase[0] is empty"]),
    "two answers that differ": (GOOD | {"answer": "A fire"}, ["answer is none of answers"]),
    "no paraphrase": ({"docs": ["A."], "data_type": "paraphrase"}, ["0 paraphrases", "wants one"]),
    "two paraphrases": ({"docs": ["A."], "data_type": "paraphrase", "answers": ["B", "C"]}, ["2 paraphrases"]),
    "paraphrases in two fields": (
        {"docs": ["A."], "data_type": "paraphrase", "answers": ["B"], "paraphrase": "C"},
        ["2 paraphrases"],
    ),
}


@pytest.mark.parametrize(("line", "said"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_refused_with_file_and_line_and_what_is_wrong(line: Any, said: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, b"", line, GOOD)
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert all(part in message for part in said), message


def test_a_record_that_is_only_cut_off_is_not_taken_for_a_document(tmp_path: Path) -> None:
    assert "clara.shell.prepare" not in refusal(write(tmp_path, b'{"docs": ["a"'))


def test_utf16_is_refused_once_for_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(GOOD).encode("utf-16"))
    assert refusal(path) == f"{path}: UTF-16; save it as UTF-8"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    os.mkfifo(path)
    assert refusal(path).startswith(f"{path}: not a plain file; wanted a JSON Lines file")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_records_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert refusal(path) == f"{path}: no records; wanted JSON Lines, one record a line"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path}: is a folder; wanted a JSON Lines file or one of sample")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absent.jsonl"
    assert refusal(path) == f"{path}: does not exist; wanted a JSON Lines file or one of sample, sample-heldout"


def test_byte_order_mark_line_ends_of_windows_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    plain = write(tmp_path, GOOD, GOOD | {"docs": ["B"]})
    wanted = [record.docs for record in read_records(str(plain))]
    other = write(tmp_path, GOOD, b"", b"  ", GOOD | {"docs": ["B"]}, end=b"\r\n", start=b"\xef\xbb\xbf")
    assert [record.docs for record in read_records(str(other))] == wanted == [["A lamp."], ["B"]]


def test_a_file_need_not_end_with_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    assert len(read_records(str(path))) == 2


def test_a_question_and_its_answer_may_be_single_strings(tmp_path: Path) -> None:
    single = {"docs": ["A lamp."], "question": "What?", "answer": "A lamp"}
    (record,) = read_records(str(write(tmp_path, single)))
    assert (record.questions, record.replies, record.data_type) == (["What?"], ["A lamp"], "qa")


@pytest.mark.parametrize("reply", [{"paraphrase": "B"}, {"answers": ["B"]}, {"answer": "B"}])
def test_a_paraphrase_may_stand_in_any_of_its_fields(reply: dict[str, Any], tmp_path: Path) -> None:
    (record,) = read_records(str(write(tmp_path, {"docs": ["A."], "data_type": "paraphrase"} | reply)))
    assert [*record.replies, *filter(None, [record.paraphrase])] == ["B"]


def test_a_qa_record_may_have_a_paraphrase_too(tmp_path: Path) -> None:
    (record,) = read_records(str(write(tmp_path, GOOD | {"paraphrase": "Light."})))
    assert (record.data_type, record.paraphrase, record.replies) == ("qa", "Light.", ["A lamp"])


def test_an_autoencode_record_needs_its_document_only(tmp_path: Path) -> None:
    (record,) = read_records(str(write(tmp_path, {"docs": ["A."], "data_type": "autoencode"})))
    assert (record.questions, record.replies) == ([], [])


def test_further_fields_are_ignored(tmp_path: Path) -> None:
    plain, more = read_records(str(write(tmp_path, GOOD | {"id": "a"}, GOOD | {"id": "a", "title": 3, "x": {"y": []}})))
    assert plain == more


def test_a_record_without_an_id_is_called_by_file_and_line(tmp_path: Path) -> None:
    records = read_records(str(write(tmp_path, GOOD | {"id": "lamp"}, b"", GOOD, GOOD | {"id": ""})))
    assert [record.id for record in records] == ["lamp", "data.jsonl:3", "data.jsonl:4"]


@settings(max_examples=150)
@given(st.lists(st.builds(dict, docs=st.lists(text, min_size=1, max_size=2), pair=st.tuples(text, text)), min_size=1))
def test_any_text_comes_back_as_it_was_written(scratch: Path, rows: list[dict[str, Any]]) -> None:
    lines = [
        json.dumps(
            {"docs": row["docs"], "question": row["pair"][0], "answer": row["pair"][1]}, ensure_ascii=bool(i % 2)
        )
        for i, row in enumerate(rows)
    ]
    scratch.write_bytes("\n".join(lines).encode())
    records = read_records(str(scratch))
    assert [{"docs": r.docs, "pair": (r.questions[0], r.replies[0])} for r in records] == rows


@settings(max_examples=200)
@given(
    st.lists(
        st.binary(max_size=30) | st.sampled_from([json.dumps(GOOD).encode(), b'{"docs": ["\\ud800"]}']), max_size=4
    )
)
def test_any_bytes_give_records_or_a_refusal_that_names_the_file(scratch: Path, lines: list[bytes]) -> None:
    scratch.write_bytes(b"\n".join(lines))
    try:
        assert all(record.docs == GOOD["docs"] for record in read_records(str(scratch)))
    except ClaraError as error:
        assert re.match(rf"{re.escape(str(scratch))}(:\d+)?: ", str(error))


def test_stage_pretrain_wants_exactly_one_document() -> None:
    one, two = Record(id="one", docs=["a"]), Record(id="two", docs=["a", "b"])
    check_stage([one, one], "pretrain")
    with pytest.raises(ClaraError, match="record two: 2 documents; stage pretrain wants exactly one"):
        check_stage([one, two], "pretrain")


def test_the_sample_is_large_enough_to_train_on() -> None:
    assert len(read_records("sample")) >= 80
    assert len(read_records("sample-heldout")) >= 4


@pytest.mark.parametrize("name", BUILTIN)
def test_every_built_in_record_has_one_document_four_pairs_and_a_paraphrase(name: str) -> None:
    records = read_records(name)
    for stage in STAGES:
        check_stage(with_candidates(records, 0 if stage == "pretrain" else 5, 0), stage)
    assert [r.id for r in records if len(r.questions) < 4 or len(r.replies) < 4 or not r.paraphrase] == []


def test_built_in_records_share_neither_id_nor_document() -> None:
    records = [record for name in BUILTIN for record in read_records(name)]
    assert len({record.id for record in records}) == len(records)
    assert len({" ".join(record.docs[0].lower().split()) for record in records}) == len(records)
    assert not any(re.search(r"\.jsonl:\d+$", record.id or "") for record in records), "an id of their own"


def test_a_built_in_name_goes_before_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").write_text("x")
    assert data_path("sample").name == "sample_train.jsonl"


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ([2], "pos_index is [2]; wanted numbers of the 2 documents, counted from 0"),
        ([0, -1], "pos_index is [0, -1]; wanted numbers of the 2 documents, counted from 0"),
        ([1, 0, 1], "pos_index is [1, 0, 1]; wanted each document once"),
        ([0.5], "$.pos_index[0]"),
        (1, "$.pos_index"),
    ],
)
def test_a_wrong_pos_index_is_refused(index: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, GOOD | {"docs": ["A", "B"], "pos_index": index})
    message = refusal(path)
    assert message.startswith(f"{path}:2: ") and said in message


@pytest.mark.parametrize(
    ("more", "positives"),
    [({}, []), ({"pos_index": None}, []), ({"pos_index": []}, []), ({"pos_index": [1, 0]}, [1, 0])],
)
def test_positives_are_those_of_pos_index(more: dict[str, Any], positives: list[int], tmp_path: Path) -> None:
    (record,) = read_records(str(write(tmp_path, GOOD | {"docs": ["A", "B"]} | more)))
    assert record.positives == positives


@pytest.mark.parametrize("stage", ["instruct", "retrieval", "end_to_end"])
@pytest.mark.parametrize("task", ["paraphrase", "autoencode"])
def test_later_stages_want_questions(stage: Stage, task: str) -> None:
    good = Record(id="good", docs=["a", "b"], question="q", answer="a", pos_index=[0])
    check_stage([good], stage)
    with pytest.raises(ClaraError, match=f"record bad: data_type is '{task}'; stage {stage} wants qa"):
        check_stage([good, Record(id="bad", docs=["a"], data_type=task, paraphrase="p")], stage)


def test_retrieval_wants_a_record_with_a_known_positive() -> None:
    unknown = Record(id="unknown", docs=["a", "b"], question="q", answer="a")
    known = Record(id="known", docs=["a", "b"], question="q", answer="a", pos_index=[1])
    check_stage([unknown, known], "retrieval")
    check_stage([unknown], "end_to_end")
    with pytest.raises(ClaraError, match="record unknown and all others: no pos_index; stage retrieval wants"):
        check_stage([unknown, unknown], "retrieval")


texts = st.sampled_from([f"text {i}" for i in range(9)])


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    """Return a record of one to four documents, its positives known or not."""
    docs = draw(st.lists(texts, min_size=1, max_size=4))
    where = st.lists(st.integers(0, len(docs) - 1), unique=True, max_size=len(docs))
    return Record(docs=docs, question="q", answer="a", pos_index=draw(st.none() | where))


@settings(max_examples=200)
@given(records=st.lists(any_record(), min_size=1, max_size=5), count=st.integers(0, 12), seed=st.integers(0, 3))
def test_candidates_are_filled_up_and_nothing_is_lost(records: list[Record], count: int, seed: int) -> None:
    pool = {text for record in records for text in record.docs}
    filled = with_candidates(records, count, seed)
    assert filled == with_candidates(records, count, seed)
    for before, after in zip(records, filled, strict=True):
        own = Counter(before.docs)
        room = len(before.docs) + len(pool - set(before.docs))
        assert len(after.docs) == max(len(before.docs), min(count, room))
        added = Counter(after.docs) - own
        assert own <= Counter(after.docs) and set(added.values()) <= {1}
        assert set(added) <= pool - set(before.docs)
        if len(after.docs) == len(before.docs) and count <= len(before.docs):
            assert after == before
            continue
        lone = before.pos_index is None and len(before.docs) == 1
        wanted = before.docs if lone else [before.docs[i] for i in before.positives]
        assert sorted(after.docs[i] for i in after.positives) == sorted(wanted)
        assert fault(after) is None


def test_candidates_of_other_seeds_and_places_are_others() -> None:
    records = [Record(id=str(i), docs=[f"text {i}"], question="q", answer="a") for i in range(20)]
    one, other = (with_candidates(records, 5, seed) for seed in (0, 1))
    assert [record.docs for record in one] != [record.docs for record in other]
    assert len({tuple(record.positives) for record in one}) > 2, "the answer stands in any place"
    assert len({frozenset(record.docs) for record in one}) == 20


def test_unknown_positives_stay_unknown() -> None:
    records = [Record(docs=["a", "b"], question="q", answer="a"), Record(docs=["c"], question="q", answer="a")]
    first, second = with_candidates(records, 3, 0)
    assert first.positives == [] and [second.docs[i] for i in second.positives] == ["c"]


def test_several_files_are_read_in_order_and_a_bad_one_is_named(tmp_path: Path) -> None:
    for name, ids in (("a", "xy"), ("b", "z")):
        lines = [json.dumps({"id": each, "docs": ["d"], "data_type": "autoencode"}) for each in ids]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    source = f"{tmp_path / 'a.jsonl'}, {tmp_path / 'b.jsonl'},sample"
    assert [record.id for record in read_records(source)][:3] == ["x", "y", "z"]
    assert len(read_records(source)) == 3 + len(read_records("sample"))
    twice = f"{tmp_path / 'a.jsonl'},{tmp_path / 'a.jsonl'}"
    assert [record.id for record in read_records(twice)] == ["x", "y", "x", "y"], "it counts for more"
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(ClaraError, match=r"^[^,]*c\.jsonl: no records"):
        read_records(f"{tmp_path / 'a.jsonl'},{tmp_path / 'c.jsonl'}")
    with pytest.raises(ClaraError, match=r"^absent\.jsonl: does not exist"):
        read_records(f"{tmp_path / 'a.jsonl'},absent.jsonl")
    with pytest.raises(ClaraError, match="an empty name; wanted one file, or several with commas between"):
        read_records(f"{tmp_path / 'a.jsonl'},")


def test_a_file_whose_name_has_a_comma_is_one(tmp_path: Path) -> None:
    (tmp_path / "a,b.jsonl").write_text("")
    assert source_names(str(tmp_path / "a,b.jsonl")) == [str(tmp_path / "a,b.jsonl")]
    assert source_names("a.jsonl,b.jsonl") == ["a.jsonl", "b.jsonl"]


def test_golden_documents_are_those_that_hold_the_answer() -> None:
    record = Record(id="r", docs=["a", "b", "c"], question="q", answer="x", pos_index=[2, 0])
    (found,) = golden([record])
    assert (found.docs, found.positives, found.questions) == (["c", "a"], [0, 1], ["q"])
    alone = Record(id="s", docs=["a"], question="q", answer="x")
    assert golden([alone]) == [alone]
    with pytest.raises(ClaraError, match="record t: 2 documents, but no pos_index; gold_only wants to know"):
        golden([record, Record(id="t", docs=["a", "b"], question="q", answer="x")])


def test_each_distinct_document_becomes_a_record_of_its_own() -> None:
    records = [
        Record(id="r", docs=["a", "b"], question="q", answer="x", pos_index=[0]),
        Record(id="s", docs=["b", "c"], question="q", answer="x", paraphrase="p"),
    ]
    found = document_records(records)
    assert [(each.docs, each.id) for each in found] == [
        (["a"], "r, document 0"),
        (["b"], "r, document 1"),
        (["c"], "s, document 1"),
    ]
    assert [fault(each) for each in found] == [None] * 3
    assert {(each.data_type, each.paraphrase) for each in found} == {("autoencode", None)}
