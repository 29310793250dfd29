"""The compressing command: every passage once, on after an interruption, and a store that needs nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from folders import tiny_folder, write_records
from runs import Run, built_in, command_of, tiny_run

from clara.core.collate import Tokens
from clara.io.corpus.passages import Passage, content_hash, encode_record, passage_record
from clara.io.errors import ClaraError
from clara.io.memory_store.search import memories_of, passages_of, search_memory, search_text
from clara.io.memory_store.store import Store, count, opened_store, sources
from clara.shell import compress
from clara.shell.answer import compress_texts
from clara.shell.ranks import ALONE
from clara.shell.setup import Session
from clara.shell.stores import checkpoint_for, session_of


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return the command as a function of its arguments: (exit status, output, errors)."""
    return command_of(compress.main, capsys)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the tiny base beside it."""
    folder = tmp_path_factory.mktemp("run")
    return tiny_run(tiny_folder(folder / "base"), folder / "run")


def passage(number: int) -> Passage:
    """Return a passage, one of four lengths, of which the longest is more than the compressor takes."""
    text = f"Lamp {number} burns {'very ' * (number % 4)}red."
    return Passage(
        text=text, title=f"Lamps {number % 3}", source=f"lamps{number % 3}.pdf", pages=(number, number + 1),
        start=number, end=number + len(text), tokens=len(text), hash=content_hash(text),
    )  # fmt: skip


def corpus(path: Path, numbers: range) -> Path:
    """Return a corpus of passages."""
    path.write_bytes(b"".join(encode_record(passage_record(passage(number))) for number in numbers))
    return path


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Tokens]]:
    """Return a list that grows by every batch that is compressed."""
    seen: list[list[Tokens]] = []
    real = compress.compress_tokens

    def watched(session: Session, documents: list[Tokens]) -> mx.array:
        seen.append(documents)
        return real(session, documents)

    monkeypatch.setattr(compress, "compress_tokens", watched)
    return seen


def contents(path: Path) -> list[Passage]:
    """Return the passages of a store, in the order of their hashes."""
    with opened_store(path, readonly=True) as store:
        return sorted(passages_of(store, ids_of(store)), key=lambda each: each.hash)


def ids_of(store: Store) -> list[int]:
    """Return the ids of all passages."""
    return [id_ for (id_,) in store.database.execute("SELECT id FROM passages")]


def expected(numbers: range) -> list[Passage]:
    """Return passages in the order of their hashes."""
    return sorted(map(passage, numbers), key=lambda each: each.hash)


def test_a_corpus_becomes_a_store_that_needs_nothing_else(run: Path, command: Run, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "run")
    status, out, err = command(
        corpus(tmp_path / "c.jsonl", range(30)), "--checkpoint", moved, "--store", tmp_path / "s"
    )
    assert (status, err) == (0, "")
    assert re.search(r"corpus    30 passages of .*c\.jsonl\n", out)
    assert re.search(r"added     30 passages in 0:0\d, 5 of them cut to 32 tokens\n", out)
    assert re.search(r"store     30 passages of 3 sources, 0\.\d MB, in ", out)
    assert "memory    4 vectors of 32 numbers for each, bfloat16" in out
    shutil.rmtree(moved)
    assert contents(tmp_path / "s") == expected(range(30))
    session = session_of(checkpoint_for(tmp_path / "s"))
    with opened_store(tmp_path / "s", readonly=True) as store:
        ids = ids_of(store)
        memory = compress_texts(session, [each.text for each in passages_of(store, ids)])
        assert mx.allclose(memories_of(store, ids).astype(mx.float32), memory, rtol=2**-7, atol=1e-6)
        assert [hits[0].id for hits in search_memory(store, memory, 1)] == ids
        (hit,) = search_text(store, "17", 1)
        assert passages_of(store, [hit.id]) == [passage(17)]


def test_what_is_there_is_skipped_and_what_is_new_added_by_the_stores_own_checkpoint(
    run: Path, command: Run, tmp_path: Path, batches: list[list[Tokens]]
) -> None:
    store = tmp_path / "s"
    assert command(corpus(tmp_path / "a.jsonl", range(10)), "--checkpoint", run, "--store", store)[0] == 0
    batches.clear()
    status, out, _ = command(corpus(tmp_path / "b.jsonl", range(5, 17)), "--store", store, "--batch-size", "3")
    assert status == 0 and "added     7 passages" in out and "; 5 were there\n" in out
    assert [len(batch) for batch in batches] == [3, 3, 1]
    lengths = [len(document) for batch in batches for document in batch]
    assert lengths == sorted(lengths), "of similar length"
    batches.clear()
    status, out, _ = command(tmp_path / "b.jsonl", "--checkpoint", run, "--store", store)
    assert status == 0 and "added     0 passages in 0:00; 12 were there\n" in out and batches == []
    assert contents(store) == expected(range(17))


def test_training_data_is_a_corpus_too(run: Path, command: Run, tmp_path: Path) -> None:
    data = write_records(tmp_path / "r.jsonl", range(4))
    with open(data, "a") as file:
        file.write(json.dumps({"docs": ["One.", "Two.", "One."], "question": "?", "answer": "!"}) + "\n")
    assert command(data, "--checkpoint", run, "--store", tmp_path / "s")[0] == 0
    with opened_store(tmp_path / "s", readonly=True) as store:
        assert sources(store) == [("r.jsonl", 6)]


@pytest.mark.parametrize(
    ("flags", "said"), [(["--dtype", "float16"], "float16"), (["--bits", "8"], "8 bits, scales in")]
)
def test_memories_are_packed_as_asked(flags: list[str], said: str, run: Path, command: Run, tmp_path: Path) -> None:
    data = corpus(tmp_path / "c.jsonl", range(8))
    status, out, _ = command(data, "--checkpoint", run, "--store", tmp_path / "s", *flags)
    assert status == 0 and f"4 vectors of 32 numbers for each, {said}" in out
    assert command(data, "--store", tmp_path / "s", *flags)[0] == 0
    other = {"--dtype": ["--dtype", "bfloat16"], "--bits": ["--bits", "4"]}[flags[0]]
    status, _, err = command(data, "--store", tmp_path / "s", *other)
    assert status == 1 and err.startswith(f"error: {' '.join(other)}: the store has {flags[1]}; leave it out")


def test_a_corpus_is_read_a_window_at_a_time(
    run: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, real = list[int](), compress.missing
    monkeypatch.setattr(compress, "missing", lambda store, window: sizes.append(len(window)) or real(store, window))
    monkeypatch.setattr(compress, "WINDOW", 4)
    assert command(corpus(tmp_path / "c.jsonl", range(10)), "--checkpoint", run, "--store", tmp_path / "s")[0] == 0
    assert sizes == [4, 4, 2]
    assert contents(tmp_path / "s") == expected(range(10))


def test_a_run_that_breaks_off_is_gone_on_with(
    run: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[list[Tokens]]
) -> None:
    argv = [
        corpus(tmp_path / "c.jsonl", range(10)),
        "--checkpoint",
        run,
        "--store",
        tmp_path / "s",
        "--batch-size",
        "2",
    ]
    real = compress.add_passages

    def add(store: Store, *more: Any) -> int:
        if count(store) == 6:
            raise KeyboardInterrupt
        return real(store, *more)

    with monkeypatch.context() as patched:
        patched.setattr(compress, "add_passages", add)
        status, _, err = command(*argv)
    assert (status, err) == (130, "\nstopped at once; what was added before, if anything, is in the store\n")
    batches.clear()
    status, out, _ = command(*argv)
    assert status == 0 and "added     4 passages" in out and "; 6 were there\n" in out and len(batches) == 2
    assert contents(tmp_path / "s") == expected(range(10))


def test_ctrl_c_stops_after_the_batch_and_says_how_to_go_on(
    run: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, real = corpus(tmp_path / "c.jsonl", range(10)), compress.compress_tokens

    def press(session: Session, documents: list[Tokens]) -> mx.array:
        signal.raise_signal(signal.SIGINT)
        return real(session, documents)

    with monkeypatch.context() as patched:
        patched.setattr(compress, "compress_tokens", press)
        argv = [data, "--checkpoint", run, "--store", tmp_path / "s", "--batch-size", "4", "--compact"]
        status, out, err = command(*argv)
    assert (status, err) == (130, "") and "stopping after this batch; press Ctrl-C again to stop at once" in out
    assert "added     4 passages" in out and "rows of removed" not in out
    goes_on = re.search(r"interrupted; go on with: python -m clara\.shell\.compress (.*)\n", out)
    assert goes_on and len(contents(tmp_path / "s")) == 4
    status, out, _ = command(*goes_on[1].split())
    assert status == 0 and "added     6 passages" in out and "rows of removed" in out
    assert contents(tmp_path / "s") == expected(range(10))


def test_progress_is_told_from_time_to_time(
    run: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress, "EVERY", 0.0)
    data = corpus(tmp_path / "c.jsonl", range(10))
    _, out, _ = command(data, "--checkpoint", run, "--store", tmp_path / "s", "--batch-size", "4")
    lines = re.findall(r"compress  (\d+)/10, [\d.,]+ passages/s, 0:\d\d left\n", out)
    assert lines == ["4", "8", "10"]


def test_sources_are_listed_removed_and_given_back(run: Path, command: Run, tmp_path: Path) -> None:
    store = tmp_path / "s"
    assert command(corpus(tmp_path / "c.jsonl", range(20)), "--checkpoint", run, "--store", store)[0] == 0
    status, out, _ = command("--store", store, "--list")
    assert status == 0
    assert out.startswith(
        "        7 lamps0.pdf\n        7 lamps1.pdf\n        6 lamps2.pdf\nstore     20 passages of 3"
    )
    status, out, _ = command("--store", store, "--delete", "lamps1.pdf", "--delete", "other.pdf", "--compact")
    assert status == 0
    assert "removed   7 passages of lamps1.pdf\nremoved   0 passages of other.pdf; --list shows" in out
    assert "compact   7 rows of removed passages given back\nstore     13 passages of 2 sources" in out
    status, out, _ = command(tmp_path / "c.jsonl", "--store", store, "--delete", "lamps0.pdf")
    assert status == 0 and "added     14 passages" in out and "; 6 were there" in out
    assert contents(store) == expected(range(20))


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_a_checkpoint_a_new_store_takes_the_built_in_one_which_nothing_is_written_to(
    run: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built_in(run.parent / "base", tmp_path / "built-in", monkeypatch)
    before = contents_of(folder)
    data, store = corpus(tmp_path / "c.jsonl", range(4)), tmp_path / "s"
    status, out, _ = command(data, "--store", store)
    assert status == 0 and out.startswith("note      no --checkpoint: small is taken, which comes with the package")
    assert contents(store) == expected(range(4)) and "step-000003" in out
    assert contents_of(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built-in", "built-in-run", "c.jsonl", "s"]
    status, out, _ = command(data, "--store", store)
    assert status == 0 and "small" not in out, "the store has its own"
    assert "note" not in command(data, "--store", tmp_path / "t", "--checkpoint", "small")[1], "it was asked for"
    status, out, _ = command(data, "--store", store, "--checkpoint", "small")
    assert status == 0 and "; 4 were there" in out


def test_the_built_in_checkpoint_is_refused_for_another_base(
    run: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in(run.parent / "base", tmp_path / "built-in", monkeypatch)
    other = tiny_folder(tmp_path / "other", seed=5)
    data = corpus(tmp_path / "c.jsonl", range(2))
    said = refused(command, data, "--store", tmp_path / "s", "--model", other)
    assert f"than --model {other}" in said and "or a run that was trained on this one" in said
    assert not (tmp_path / "s").exists()


def test_a_folder_of_documents_is_prepared_first(run: Path, command: Run, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    for number in range(3):
        (tmp_path / "papers" / f"lamp{number}.md").write_text(f"# Lamp {number}\n\nLamp {number} burns red.\n")
    argv = (tmp_path / "papers", "--checkpoint", run, "--store", tmp_path / "s")
    status, out, _ = command(*argv)
    assert status == 0 and f"corpus    3 passages of {tmp_path / 'papers'}" in out
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [], "nothing is left beside the store"
    with opened_store(tmp_path / "s", readonly=True) as store:
        assert [Path(name).name for name, _ in sources(store)] == [f"lamp{number}.md" for number in range(3)]
    (tmp_path / "papers" / "lamp3.txt").write_text("Lamp 3 burns blue.")
    status, out, _ = command(*argv)
    assert status == 0 and "added     1 passages" in out and "; 3 were there" in out
    status, out, _ = command(tmp_path / "papers" / "lamp3.txt", "--checkpoint", run, "--store", tmp_path / "t")
    assert status == 0 and "added     1 passages" in out, "one document"


def test_what_is_left_out_of_a_folder_is_named_and_tells_in_the_status(
    run: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "lamp.md").write_text("# Lamp\n\nLamp 1 burns red.\n")
    (tmp_path / "papers" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    status, out, err = command(tmp_path / "papers", "--checkpoint", run, "--store", tmp_path / "new" / "deep")
    assert status == 2 and "added     1 passages" in out and "broken.pdf" in err
    monkeypatch.chdir(tmp_path / "new")
    status, out, _ = command(tmp_path / "papers" / "lamp.md", "--store", "deep")
    assert status == 0 and "1 were there" in out


def test_several_processes_want_a_corpus_that_was_prepared(run: Path, tmp_path: Path) -> None:
    arguments = compress.parser().parse_args([str(tmp_path), "--checkpoint", str(run), "--store", "s"])
    with pytest.raises(ClaraError, match="several processes want JSON Lines: python -m"):
        compress.run(arguments, ALONE._replace(size=2))


def refused(command: Run, *argv: str | Path) -> str:
    """Return the message with which the command ends."""
    status, _, err = command(*argv)
    assert status == 1 and err.startswith("error: ")
    return err


def test_what_cannot_be_done_is_said_before_the_base_is_loaded(
    run: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(compress, "session_of")
    good, store = corpus(tmp_path / "c.jsonl", range(3)), tmp_path / "s"
    (tmp_path / "bad.jsonl").write_bytes(good.read_bytes() + b'{"docs": 3}\n')
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    asked = ["--checkpoint", run, "--store", store]
    assert f"{tmp_path / 'bad.jsonl'}:4: " in refused(command, tmp_path / "bad.jsonl", *asked)
    assert "no passages; wanted JSON Lines" in refused(command, tmp_path / "empty.jsonl", *asked)
    assert "does not exist" in refused(command, tmp_path / "absent.jsonl", *asked)
    assert "--batch-size 0: wanted 1 or more" in refused(command, good, *asked, "--batch-size", "0")
    assert "no whole checkpoint found" in refused(command, good, "--checkpoint", tmp_path, "--store", store)
    for more in ([], ["--list"], ["--compact"], ["--delete", "x"]):
        assert "no memory store (no store.sqlite)" in refused(command, "--store", store, *more)
    assert not store.exists()


def test_another_compressor_is_refused_and_the_store_left_alone(run: Path, command: Run, tmp_path: Path) -> None:
    data, store = corpus(tmp_path / "c.jsonl", range(3)), tmp_path / "s"
    assert command(data, "--checkpoint", run, "--store", store)[0] == 0
    other = tiny_run(run.parent / "base", tmp_path / "other", compressor=1.5)
    more = corpus(tmp_path / "d.jsonl", range(6))
    assert "memories are those of another compressor" in refused(command, more, "--checkpoint", other, "--store", store)
    assert contents(store) == expected(range(3))


def test_a_folder_that_is_something_else_is_left_alone(run: Path, command: Run, tmp_path: Path) -> None:
    data = corpus(tmp_path / "c.jsonl", range(3))
    assert "holds something else than a memory store" in refused(command, data, "--checkpoint", run, "--store", run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints"]


def test_the_module_runs_as_a_command(run: Path, tmp_path: Path) -> None:
    data = corpus(tmp_path / "c.jsonl", range(5))
    argv = [sys.executable, "-m", "clara.shell.compress", data, "--checkpoint", run, "--store", tmp_path / "s"]
    environment = os.environ | {"PYTHONPATH": str(Path(compress.__file__).parents[2])}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and "store     5 passages of 3 sources" in done.stdout


@pytest.mark.parametrize("option", [["--bits", "8"], ["--dtype", "float16"], ["--checkpoint", "r"], ["--model", "m"]])
def test_what_is_for_compressing_is_refused_without_a_corpus(command: Run, tmp_path: Path, option: list[str]) -> None:
    assert f"{option[0]} is for compressing: give CORPUS too" in refused(command, "--store", tmp_path, *option)


def test_a_file_is_no_store(run: Path, command: Run, tmp_path: Path) -> None:
    data = corpus(tmp_path / "c.jsonl", range(2))
    assert "is a file; wanted the folder" in refused(command, data, "--checkpoint", run, "--store", data)
