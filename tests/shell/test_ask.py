"""Asking a store: the answer, its sources, what it took; and a sensible word where there is nothing to answer."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import msgspec
import pytest
from runs import Run, command_of, tiny_run
from stores import lamp, tiny_store

from clara.io.memory_store.store import opened_store
from clara.shell import ask, compress
from clara.shell.answer import answer_from, text_prompt
from clara.shell.decode import stream
from clara.shell.retrieve import default_search, retrieve
from clara.shell.setup import Session
from clara.shell.stores import checkpoint_for, session_of

QUESTION = "How does lamp number3 burn?"
CUT = "note: the answer was cut at --max-tokens 8\n"
"""The tiny base never ends an answer by itself."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a store of a model that chooses two passages."""
    yield tiny_store(tmp_path_factory.mktemp("store"), stage="end_to_end", retrieval={"top_k": 2})
    mx.enable_compile()


@pytest.fixture(scope="module")
def session(path: Path) -> Session:
    """Return the session of the store's own checkpoint."""
    return session_of(checkpoint_for(path))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], path: Path) -> Run:
    """Return the command as a function of its arguments: (exit status, output, errors)."""

    def run(*argv: str | Path, store: Path = path) -> tuple[int, str, str]:
        return command_of(ask.main, capsys, "--store", store, "--max-tokens", 8)(*argv)

    return run


def expected(path: Path, session: Session, question: str = QUESTION) -> tuple[str, str]:
    """Return what the generator says from the memories that are found, and what the base says from their texts."""
    with opened_store(path, readonly=True) as store:
        (found,) = retrieve(session, store, [question], default_search(session))
    prompt, _ = text_prompt(session, [passage.text for passage in found.passages], question, 8)
    text = stream(session.base.module, session.tokenizer, prompt, 8)
    return "".join(answer_from(session, found.memory, question, 8)).strip(), "".join(p.text for p in text).strip()


def test_an_answer_comes_from_memory_and_names_its_sources(command: Run, path: Path, session: Session) -> None:
    status, out, err = command(QUESTION)
    assert (status, err) == (0, CUT)
    answer, *sources = [line for line in out.splitlines() if line]
    assert answer == expected(path, session)[0]
    assert len(sources) == 2
    for i, line in enumerate(sources, 1):
        assert re.fullmatch(rf"  \[{i}\] +-?\d\.\d{{2,3}}  Lamps \d, p\. \d+(–\d+)?  \(lamps\d\.pdf\)", line)


def test_a_program_gets_one_line_of_json(command: Run, path: Path, session: Session) -> None:
    status, out, _ = command(QUESTION, "--json", "--no-rerank", "--top-k", "1")
    (line,) = out.splitlines()
    found = json.loads(line)
    source = msgspec.structs.asdict(lamp(3))
    assert (status, found["question"], found["read"], found["finished"], found["tokens"]) == (
        0,
        QUESTION,
        "memory",
        False,
        8,
    )
    (own,) = found["sources"]
    assert {name: own[name] for name in ("title", "source", "hash", "text")} == {
        name: source[name] for name in ("title", "source", "hash", "text")
    }
    assert own["pages"] == [4, 4] and own["score"] > 0
    assert set(found["seconds"]) == {"retrieve", "prefill", "decode"} and found["cache_bytes"] > 0


def test_the_text_of_the_passages_is_read_by_the_base(command: Run, path: Path, session: Session) -> None:
    memory, text = expected(path, session)
    assert command(QUESTION, "--text")[1].splitlines()[0] == text
    assert json.loads(command(QUESTION, "--text", "--json")[1])["read"] == "text"
    assert memory != text


def test_times_are_told_of_both_ways(command: Run) -> None:
    _, out, _ = command(QUESTION, "--time")
    lines = out.splitlines()
    (head,) = (i for i, line in enumerate(lines) if "retrieve" in line)
    assert re.fullmatch(r" +retrieve +prefill +decode +prompt +answer +KV cache", lines[head])
    row = r" +[\d,]+ ms +[\d,]+ ms +[\d,]+ ms +(\d+) +8 +\d+\.\d MB"
    rows = [
        re.fullmatch(f"  {way} *{row}", line) for way, line in zip(("memory", "text"), lines[head + 1 :], strict=True)
    ]
    assert all(rows)
    _, out, _ = command(QUESTION, "--time", "--json")
    assert [json.loads(line)["read"] for line in out.splitlines()] == ["memory", "text"]


def test_questions_are_read_one_by_one(
    command: Run, monkeypatch: pytest.MonkeyPatch, path: Path, session: Session
) -> None:
    other = "Is number7 white?"
    for between in ("", "\n \n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n{between}{other}\n"))
        status, out, err = command()
        assert (status, err) == (0, 2 * CUT)
        found = [line for line in out.splitlines() if line and not line.startswith("  [")]
        assert found == [expected(path, session, each)[0] for each in (QUESTION, other)]


def test_sampling_is_not_greedy(command: Run) -> None:
    mx.random.seed(0)
    texts = {command(QUESTION, "--temperature", "9")[1].splitlines()[0] for _ in range(4)}
    assert len(texts) > 1


def test_a_search_with_beams_finds_what_a_session_with_as_many_answers(
    command: Run, path: Path, session: Session, tmp_path: Path
) -> None:
    greedy = expected(path, session, QUESTION)[0]
    found = expected(path, session._replace(beams=3), QUESTION)[0]
    assert found != greedy
    for argv in ((QUESTION, "--beams", "3"), (QUESTION, "--beams", "3", "--json")):
        status, out, _ = command(*argv)
        assert status == 0 and found in out
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"question": QUESTION}))
    for beams, answer in (("1", greedy), ("3", found), ("1", greedy)):
        _, out, _ = command("--batch", str(file), "--beams", beams)
        assert json.loads(out)["answer"] == answer


def test_nothing_found_is_said_and_is_no_failure(command: Run) -> None:
    assert command("Zeppelin?") == (0, ask.NOTHING + "\n", "")
    status, out, _ = command("Zeppelin?", "--json")
    assert (status, json.loads(out)["answer"], json.loads(out)["sources"]) == (0, None, [])
    assert command("Zeppelin?", "--first-stage", "memory")[1].count("[") == 2


def test_a_question_longer_than_the_context_is_cut(
    command: Run, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    monkeypatch.setattr(ask, "session_of", lambda *_: session._replace(context=200))
    status, out, err = command("number3 " * 400, "--json")
    assert (status, err) == (0, "note: the base reads 200 tokens; not all of the prompt fitted\n")
    assert json.loads(out)["prompt_tokens"] == 200 - 8
    status, _, err = command(QUESTION, "--top-k", "40", "--candidates", "40", "--first-stage", "both")
    assert status == 0


def test_memories_that_do_not_fit_into_the_context_are_refused(
    command: Run, monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    monkeypatch.setattr(ask, "session_of", lambda *_: session._replace(context=120))
    status, _, err = command(QUESTION, "--top-k", "10", "--first-stage", "both")
    assert status == 1 and "error: " in err and "Traceback" not in err


def test_an_empty_store_says_how_to_fill_it(command: Run, tmp_path: Path, path: Path) -> None:
    store = shutil.copytree(path, tmp_path / "store")
    for source in ("lamps0.pdf", "lamps1.pdf"):
        assert compress.main(["--store", str(store), "--delete", source]) == 0
    status, out, err = command(QUESTION, store=store)
    assert (status, out) == (1, "")
    assert err == f"error: {store}: holds no passages; add some with python -m clara.shell.compress CORPUS --store …\n"


def test_what_is_no_store_is_refused(command: Run, tmp_path: Path) -> None:
    status, _, err = command(QUESTION, store=tmp_path)
    assert status == 1 and "no memory store" in err


def test_another_compressor_is_refused(command: Run, path: Path, tmp_path: Path) -> None:
    run = tiny_run(path.parent / "base", tmp_path / "run", compressor=0.5)
    status, _, err = command(QUESTION, "--checkpoint", run)
    assert status == 1 and "another compressor" in err


def test_another_generator_of_the_same_compressor_is_taken(command: Run, path: Path, tmp_path: Path) -> None:
    run = tiny_run(path.parent / "base", tmp_path / "run", generator=-3.0, stage="end_to_end", retrieval={"top_k": 2})
    status, out, _ = command(QUESTION, "--checkpoint", run)
    assert status == 0 and out.splitlines()[0] != command(QUESTION)[1].splitlines()[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["  "], "the question is empty"),
        (["q", "--top-k", "0"], "--top-k 0: wanted 1 or more"),
        (["q", "--max-tokens", "-1"], "--max-tokens -1: wanted 1 or more"),
        (["q", "--beams", "0"], "--beams 0: wanted 1 or more"),
        (["q", "--beams", "2", "--temperature", "1"], "--beams 2: the likeliest answer is not drawn; leave --temp"),
        (["q", "--temperature", "-1"], "--temperature -1.0: wanted 0 or more"),
        (["q", "--temperature", "nan"], "--temperature nan: wanted 0 or more"),
        (["--batch", "f", "--out", "none/f"], "--out none/f: wanted the name of a file in a folder that is there"),
        (["q", "--batch", "f"], "--batch answers its file's questions"),
        (["q", "--out", "f"], "--out is for --batch"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_loaded(
    command: Run, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.setattr(ask, "session_of", lambda *_: pytest.fail("a base was loaded"))
    status, out, err = command(*argv)
    assert (status, out) == (1, "") and message in err


def test_without_a_reasoner_the_compressor_reads_the_question_and_that_is_said(command: Run, tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    status, out, err = command(QUESTION, store=store)
    assert (status, err, out.count("  [")) == (0, CUT, 1)
    assert lamp(3).title in out
    status, out, err = command(QUESTION, "--first-stage", "memory", "--top-k", "3", store=store)
    assert status == 0 and "note: no reasoner was trained" in err and out.count("  [") == 3


def test_an_empty_line_on_a_terminal_ends(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter([QUESTION, "", "not asked"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    status, out, _ = command()
    assert status == 0 and out.startswith("10 passages; an empty line ends\n") and out.count("[1]") == 1
    assert next(lines) == "not asked"


def test_without_question_and_input_that_is_said(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert command() == (1, "", "error: no question, and no input to read some from\n")


def test_more_candidates_than_passages_are_all_of_them(command: Run) -> None:
    status, out, _ = command(QUESTION, "--candidates", str(10**30), "--top-k", "3", "--json")
    assert status == 0 and len(json.loads(out)["sources"]) == 3


def test_a_base_that_was_moved_is_asked_for(command: Run, tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    status, _, err = command(QUESTION, store=store)
    assert status == 1 and "is not there; --model says where it is now" in err
    assert command(QUESTION, "--model", tmp_path / "moved", store=store)[0] == 0


def test_a_store_without_its_checkpoint_asks_for_the_run(command: Run, tmp_path: Path) -> None:
    store = tiny_store(tmp_path)
    shutil.rmtree(store / "checkpoint")
    status, _, err = command(QUESTION, store=store)
    assert status == 1 and "--checkpoint RUN names the run that made the store" in err
    assert command(QUESTION, "--checkpoint", tmp_path / "run", store=store)[0] == 0


def test_what_a_terminal_would_obey_is_not_shown(path: Path) -> None:
    source = ask.source_of(msgspec.structs.replace(lamp(1), title="T\x1b[31m\nline", source="a\tb.pdf"), 0.5)
    assert ask.source_line(1, source) == "  [1]    0.5  T [31m line, p. 2–3  (a b.pdf)"
