"""Many questions of a file: answered in order, together as alone, written whole, bad lines named first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from runs import command_of
from stores import tiny_store

from clara.io.errors import ClaraError
from clara.shell import ask, asked, compress
from clara.shell.asked import read_queries

QUERIES = [
    {"question": "How does lamp number3 burn?", "id": "a"},
    {"question": "Zeppelin?", "note": "further fields are ignored"},
    {"question": "Is number7 white, and which of all lamps burns amber then?"},
    {"question": "number1", "id": "d"},
    {"question": "Which lamps burn red?"},
]
Run = Callable[..., tuple[int, list[dict[str, object]], str]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a store of a model that chooses two passages."""
    yield tiny_store(tmp_path_factory.mktemp("store"), stage="end_to_end", retrieval={"top_k": 2})
    mx.enable_compile()


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """Return the file of questions."""
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(query) + "\n\n" for query in QUERIES))
    return file


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], path: Path) -> Run:
    """Return the command as a function of its arguments: (exit status, answers printed, errors)."""

    def run(*argv: str | Path) -> tuple[int, list[dict[str, object]], str]:
        status, out, err = command_of(ask.main, capsys, "--store", path, "--max-tokens", 6)(*argv)
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


@pytest.mark.parametrize("way", [[], ["--text"]], ids=["memory", "text"])
@pytest.mark.parametrize("size", ["1", "2", "9"])
def test_each_question_is_answered_as_alone_in_the_order_of_the_file(
    command: Run, batch: Path, size: str, way: list[str]
) -> None:
    status, answers, err = command("--batch", batch, "--batch-size", size, *way)
    assert status == 0 and f"answered  {len(QUERIES)}/{len(QUERIES)}, " in err
    for query, found in zip(QUERIES, answers, strict=True):
        _, (alone,), _ = command(query["question"], "--json", *way)
        assert found["id"] == query.get("id")
        for name in ("question", "answer", "read", "prompt_tokens", "tokens", "finished"):
            assert found[name] == alone[name]
        assert [s["hash"] for s in found["sources"]] == [s["hash"] for s in alone["sources"]]  # type: ignore[attr-defined]
    assert answers[1]["answer"] is None and answers[1]["sources"] == []


def test_a_file_of_answers_is_what_would_be_printed(command: Run, batch: Path, tmp_path: Path) -> None:
    _, printed, _ = command("--batch", batch)
    status, out, _ = command("--batch", batch, "--out", tmp_path / "answers.jsonl")
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert (status, out) == (0, [])
    for answer in (*printed, *written):
        assert answer.pop("seconds")
    assert written == printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a"}\n{"question": 7}\n', ":2: "),
        (b'{"question": "a"}\n\nnothing\n', ":3: "),
        (b'{"id": "a"}\n', ":1: "),
        (b'{"question": " "}\n', ":1: the question is empty"),
        (b'{"question": "\xff"}\n', ":1: "),
        (b"\n\n", ": no questions; wanted JSON Lines"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_answered(
    command: Run, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(ClaraError, match=f"bad.jsonl{message}"):
        read_queries(file)
    status, out, err = command("--batch", file)
    assert (status, out) == (1, []) and f"{file}{message}" in err
    assert "cannot be read" in command("--batch", tmp_path / "none.jsonl")[2]


def test_questions_are_read_as_other_tools_write_them(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"question": "a", "id": 3}\r\n{"question": ["b", "c"], "id": "r"}\r\n')
    assert read_queries(file) == [("a", "3"), ("b", "r#1"), ("c", "r#2")]


def test_after_ctrl_c_the_answers_so_far_are_there(
    path: Path, batch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    real = asked.batch_answers

    def press(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(asked, "batch_answers", press)
    out = tmp_path / "answers.jsonl"
    arguments = ["--store", path, "--batch", batch, "--batch-size", "2", "--max-tokens", "6", "--out", out]
    assert ask.main([str(argument) for argument in arguments]) == 130
    assert capsys.readouterr().out == ""
    assert len(out.read_text().splitlines()) == 2


KILLED = """
import os, signal, sys
from clara.shell import ask, asked
real, calls = asked.batch_answers, []
def dying(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
asked.batch_answers = dying
ask.main(sys.argv[1:])
"""


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by every question that is answered."""
    seen: list[str] = []
    real = asked.batch_answers

    def watched(session: Any, store: Any, how: Any, part: Any, *rest: Any) -> Any:
        seen.extend(query.question for query in part)
        return real(session, store, how, part, *rest)

    monkeypatch.setattr(asked, "batch_answers", watched)
    return seen


def untimed(text: str) -> list[dict[str, object]]:
    """Return the answers of a file without what they took."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]


def test_a_killed_command_goes_on_where_it_stopped(
    path: Path, batch: Path, command: Run, questions: list[str], tmp_path: Path
) -> None:
    """It is killed in its third batch: two are in the log, and half a line, as a kill while writing leaves it."""
    (folder := tmp_path / "out").mkdir()
    out, whole = folder / "answers.jsonl", tmp_path / "whole.jsonl"
    argv = [*("--batch", str(batch), "--batch-size", "2"), "--out"]
    store = ["--store", str(path), "--max-tokens", "6"]
    environment = os.environ | {"PYTHONPATH": str(Path(ask.__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILLED, *store, *argv, str(out)], env=environment, timeout=120)
    log = folder / "answers.jsonl.partial"
    assert killed.returncode == -signal.SIGKILL and not out.exists() and len(log.read_bytes().splitlines()) == 2
    log.write_bytes(log.read_bytes() + b'{"key":"half')
    status, _, err = command(*argv, out)
    assert status == 0 and f"answered  4 before, taken from {log}\nanswered  5/5, " in err
    assert questions == [QUERIES[4]["question"]]
    assert [each.name for each in folder.iterdir()] == ["answers.jsonl"]
    assert command(*argv, whole)[0] == 0
    assert untimed(out.read_text()) == untimed(whole.read_text())


@pytest.mark.parametrize("change", [["--top-k", "1"], ["--text"], ["--first-stage", "both"], ["--max-tokens", "5"]])
def test_answers_of_another_command_are_not_taken(
    batch: Path, command: Run, questions: list[str], change: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--batch", batch, "--batch-size", "3", "--out", tmp_path / "answers.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(asked, "remove", lambda path: None)
        assert command(*argv)[0] == 0
    assert len(questions) == len(QUERIES)
    assert command(*argv, *change)[0] == 0
    assert len(questions) == 2 * len(QUERIES)


def test_answers_from_other_passages_are_not_taken(
    path: Path, batch: Path, command: Run, questions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copytree(path, tmp_path / "store")
    argv = ["--batch", batch, "--store", store, "--out", tmp_path / "answers.jsonl"]
    monkeypatch.setattr(asked, "remove", lambda path: None)
    for _ in range(2):
        assert command(*argv)[0] == 0 and len(questions) == len(QUERIES)
    assert compress.main(["--store", str(store), "--delete", "lamps1.pdf"]) == 0
    assert command(*argv)[0] == 0 and len(questions) == 2 * len(QUERIES)


def test_a_log_of_something_else_is_refused(batch: Path, command: Run, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl.partial").write_text('{"key": "k", "answers": []}\nmine\n')
    status, _, err = command("--batch", batch, "--out", tmp_path / "answers.jsonl")
    assert status == 1 and "answers.jsonl.partial:2: no answers (" in err and "move it away to begin anew" in err
    assert not (tmp_path / "answers.jsonl").exists()
