"""The preparing command: a corpus that train and compress read, whole or not at all, and what is said of bad files."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from folders import tiny_tokenizer
from pdfs import column, write_pdf
from runs import Run, command_of

from clara.io.corpus.passages import read_passages
from clara.io.errors import ClaraError
from clara.io.records import check_stage, read_records
from clara.io.tokens import encode
from clara.shell import prepare, train
from clara.shell.preparing.questions import Reply, Request

PROSE = [f"Lamp {i} stands in town {i} and burns red all night long, as lamps of its kind do." for i in range(12)]


@pytest.fixture
def command(base: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return the command as a function of its arguments: (exit status, output, errors)."""
    return command_of(prepare.main, capsys, "--model", base, "--doc-max-tokens", 100)


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    """Return a folder of good files."""
    folder = tmp_path / "papers"
    (folder / "more").mkdir(parents=True)
    write_pdf(folder / "a.pdf", [column(["!On Lamps", "", *PROSE[:4]]), column(PROSE[4:8])])
    (folder / "b.md").write_text("# Doors\n\n" + "\n\n".join(PROSE[8:10]))
    (folder / "more" / "c.html").write_text(f"<title>Towns</title><p>{PROSE[10]}</p>")
    (folder / "more" / "d.jsonl").write_text(json.dumps({"text": PROSE[11], "title": "Last"}) + "\n")
    return folder


@pytest.mark.parametrize("name", ["a.pdf", "b.md", "more", ""])
def test_folders_and_documents_are_no_corpus_yet(name: str, papers: Path) -> None:
    assert not prepare.is_corpus(str(papers / name))


@pytest.mark.parametrize("name", ["absent.pdf", "absent/", "absent"])
def test_what_is_not_there_is_neither_a_corpus_nor_a_folder(name: str, papers: Path) -> None:
    with pytest.raises(ClaraError, match=f"{name}: does not exist; wanted a folder, a document, or a corpus"):
        prepare.is_corpus(f"{papers}/{name}")


@pytest.mark.parametrize("name", ["more/d.jsonl", "records.json", "sample"])
def test_json_lines_are_read_as_a_corpus(name: str, papers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(papers)
    (papers / "records.json").write_text('{"docs": ["A lamp."]}')
    assert prepare.is_corpus(name)


def test_a_folder_becomes_a_corpus_that_train_reads(papers: Path, base: Path, command: Run, tmp_path: Path) -> None:
    out = tmp_path / "corpus.jsonl"
    status, said, errors = command(papers, "--out", out)
    assert (status, errors) == (0, "")
    records, passages = read_records(str(out)), list(read_passages(str(out)))
    check_stage(records, "pretrain")
    assert [passage.text for passage in passages] == [record.docs[0] for record in records]
    assert {record.data_type for record in records} == {"autoencode"}
    tokenizer = tiny_tokenizer(tmp_path / "again")
    assert all(passage.tokens == len(encode(tokenizer, passage.text)) <= 100 for passage in passages)
    assert {passage.title for passage in passages} == {"On Lamps", "Doors", "Towns", "Last"}
    for sentence in PROSE:
        (where,) = [passage for passage in passages if sentence in " ".join(passage.text.split())]
        assert where.pages == (
            {True: (1, 1), False: (2, 2)}[PROSE.index(sentence) < 4] if PROSE.index(sentence) < 8 else None
        )
    assert "files      4 read, 0 skipped" in said and f"written    {out}, {len(records)} records" in said
    assert "documents  4: 2 pages" in said
    argv = ["--model", base, "--data", out, "--heldout", "", "--steps", 2, "--show", 0, "--rank", 4, "--batch-size", 2]
    argv += ["--doc-max-tokens", 100, "--compression-rate", 20, "--max-tokens", 512, "--run", tmp_path / "run"]
    assert train.main([str(argument) for argument in [*argv, "--autoencode-share", "1"]]) == 0


def test_bad_files_are_named_and_the_rest_is_written(papers: Path, command: Run, tmp_path: Path) -> None:
    whole = (papers / "a.pdf").read_bytes()
    (papers / "cut.pdf").write_bytes(whole[: len(whole) // 3])
    (papers / "empty.txt").write_text("")
    (papers / "z.xyz").write_text("x")
    write_pdf(papers / "locked.pdf", [column(PROSE)], password="secret")
    write_pdf(papers / "scan.pdf", [[], []])
    out = tmp_path / "corpus.jsonl"
    status, said, errors = command(papers, tmp_path / "absent.pdf", "--out", out)
    assert status == 2
    named = [Path(line.split(": ")[0]).name for line in errors.splitlines()]
    assert sorted(named) == ["absent.pdf", "cut.pdf", "empty.txt", "locked.pdf", "scan.pdf"]
    assert "files      4 read, 5 skipped, 1 of other kinds" in said
    good = {passage.text for passage in read_passages(str(out))}
    assert command(papers / "a.pdf", papers / "b.md", papers / "more", "--out", out)[0] == 0
    assert {passage.text for passage in read_passages(str(out))} == good


def test_where_nothing_can_be_done_nothing_is_written(command: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.pdf").write_text("x")
    out = tmp_path / "corpus.jsonl"
    out.write_text("mine")
    for sources in ([tmp_path / "bad.pdf"], [tmp_path / "absent"]):
        status, said, errors = command(*sources, "--out", out)
        assert (status, said) == (1, "") and "error: no passage in any of the sources; nothing was written" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pdf", "corpus.jsonl"] and out.read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--out", "{tmp}"], "is a folder; wanted the name of a file"),
        (["--out", "{tmp}/no/corpus.jsonl"], "its folder does not exist"),
        (["--out", "{tmp}/a.jsonl", "--attempts", "0"], "error: --attempts 0: wanted 1 or more"),
        (["--out", "{tmp}/a.jsonl", "--max-pages", "many"], "error: --max-pages many: wanted a whole number"),
        (["--out", "{tmp}/a.jsonl", "--max-megabytes", "inf"], "--max-megabytes inf: wanted 1000000 or less"),
        (["--out", "{tmp}/a.jsonl", "--page-seconds", "inf"], "--page-seconds inf: wanted 86400 or less"),
        (["--out", "{tmp}/a.jsonl", "--max-characters", "9" * 20], f"{'9' * 20}: wanted 10000000000 or less"),
        (["--out", "{tmp}/a.jsonl", "--doc-max-tokens", "9" * 20], f"{'9' * 20}: wanted 1000000 or less"),
        (["--out", "{tmp}/a.jsonl", "--seed", "9" * 20], f"--seed {'9' * 20}: wanted 9223372036854775807 or less"),
        (["--out", "{tmp}/a.jsonl", "--checkpoint", "{tmp}"], "no whole checkpoint found"),
        (["--out", "{tmp}/a.jsonl", "--candidates", "3"], "no record has a question"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    argv: list[str], said: str, papers: Path, command: Run, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    status, _, errors = command(papers, *(argument.replace("{tmp}", str(tmp_path)) for argument in argv))
    assert status == 1 and errors.splitlines()[-1].startswith("error: ") and said in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_a_corpus_in_the_folder_of_its_sources_is_none_of_them(papers: Path, command: Run) -> None:
    out = papers / "corpus.jsonl"
    assert command(papers, "--out", out)[0] == 0
    first = out.read_bytes()
    assert command(papers, "--out", out)[0] == 0
    assert out.read_bytes() == first


def test_a_corpus_that_is_named_is_read_however_it_is_written(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("t.jsonl", "./t.jsonl", tmp_path / "t.jsonl"):
        Path("t.jsonl").write_text(json.dumps({"text": PROSE[0]}))
        status, _, errors = command(source, "--out", "t.jsonl")
        assert (status, errors) == (0, "")
        assert [passage.text for passage in read_passages("t.jsonl")] == [PROSE[0]]
    status, _, errors = command(".", "--out", "t.jsonl")
    assert status == 1 and "t.jsonl: the only file in the sources is the output itself; name it" in errors


def test_links_that_lead_nowhere_are_named(papers: Path, command: Run, tmp_path: Path) -> None:
    os.symlink("loop.jsonl", papers / "loop.jsonl")
    status, _, errors = command(papers, "--out", tmp_path / "corpus.jsonl")
    assert status == 2 and errors.startswith(f"{papers / 'loop.jsonl'}: ")


def test_bad_lines_bad_names_and_pipes_are_left_out_and_the_rest_is_written(
    papers: Path, command: Run, tmp_path: Path
) -> None:
    (papers / "bytes.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "Good."}\n')
    (papers / "deep.jsonl").write_bytes(b'{"more": ' + b"[" * 100_000)
    os.mkfifo(papers / "pipe.jsonl")
    with contextlib.suppress(OSError):  # some file systems have no such names
        (papers / "name\udcff.txt").write_text("A lamp by another name.")
    out = tmp_path / "corpus.jsonl"
    status, _, errors = command(papers, "--out", out)
    assert status == 2
    assert sorted(Path(line.split(": ")[0]).name for line in errors.splitlines()) == [
        "bytes.jsonl:1",
        "deep.jsonl:1",
        "pipe.jsonl",
    ]
    sources = Counter(passage.source for passage in read_passages(str(out)))
    assert sources[str(papers / "bytes.jsonl")] == 1
    assert sources[str(papers / "name?.txt")] == ("name\udcff.txt" in os.listdir(papers))


def test_limits_are_options(papers: Path, command: Run, tmp_path: Path) -> None:
    status, _, errors = command(papers, "--out", tmp_path / "corpus.jsonl", "--max-pages", "1")
    assert status == 2 and "a.pdf: 2 pages, more than 1; raise --max-pages" in errors


def test_lengths_and_base_are_those_of_the_recipe_or_of_a_run(base: Path, tmp_path: Path) -> None:
    options = prepare.PrepareOptions()
    assert prepare.target_of(options) == ("smollm2-135m", 96)
    argv = [
        "--model",
        base,
        "--heldout",
        "",
        "--steps",
        1,
        "--show",
        0,
        "--rank",
        4,
        "--batch-size",
        1,
        "--run",
        tmp_path / "run",
    ]
    argv += ["--doc-max-tokens", 48, "--compression-rate", 8, "--max-tokens", 512]
    assert train.main([str(argument) for argument in argv]) == 0
    trained = prepare.PrepareOptions(checkpoint=str(tmp_path / "run"))
    assert prepare.target_of(trained) == (str(base), 48)
    other = prepare.PrepareOptions(checkpoint=str(tmp_path / "run"), model="other", doc_max_tokens=7)
    assert prepare.target_of(other) == ("other", 7)


def fake_model(*_: Any) -> Callable[[Sequence[Request], int | None], list[Reply]]:
    """Return a model that asks which lamp it is, paraphrases, and affirms everything but harder questions."""

    def ask(requests: Sequence[Request], draw: int | None) -> list[Reply]:
        replies = []
        for request in requests:
            text = request.values["{text}"]
            if draw is None:
                replies.append("No" if "harder" in request.values["{question}"] else "Yes")
            elif "questions" in request.template:
                kind = "harder" if "harder" in request.template else "simple"
                replies.append(f"Q: What {kind} thing is told of it?\nA: {' '.join(text.split()[:2])}")
            else:
                replies.append(f"As one may say, {text}")
        return [Reply(reply, True) for reply in replies]

    return ask


def test_questions_and_candidates_are_what_the_stages_read(
    papers: Path, base: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "model_ask", fake_model)
    out, chosen = tmp_path / "corpus.jsonl", tmp_path / "candidates.jsonl"
    status, said, _ = command(papers, "--out", out, "--questions", base, "--attempts", "2")
    records = read_records(str(out))
    assert status == 0 and {record.data_type for record in records} == {"qa"}
    assert all(record.questions == ["What simple thing is told of it?"] and record.paraphrase for record in records)
    count = len(records)
    assert f"questions  {count}, and {count} paraphrases" in said
    assert f"complex: not affirmed {2 * count}" in said and f"simple: asked before {count}" in said
    assert all(passage.title for passage in read_passages(str(out))), "the notes are still there"
    status, said, _ = command(out, "--out", chosen, "--candidates", "4")
    found = read_records(str(chosen))
    assert (status, len(found)) == (0, count) and f"records    {count} taken over as they were" in said
    for stage in ("retrieval", "end_to_end"):
        check_stage(found, stage)
    assert {len(record.docs) for record in found} == {4}
    assert [record.docs[record.positives[0]] for record in found] == [record.docs[0] for record in records]
    both = tmp_path / "both.jsonl"
    assert command(papers, "--out", both, "--questions", base, "--attempts", "2", "--candidates", "4")[0] == 0
    assert both.read_bytes() == chosen.read_bytes()


def test_memory_that_is_short_is_said_and_what_was_made_is_kept(
    papers: Path, base: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def short(*_: Any) -> Callable[[Sequence[Request], int | None], list[Reply]]:
        whole = fake_model()

        def ask(requests: Sequence[Request], draw: int | None) -> list[Reply]:
            asked.append(len(requests))
            if len(asked) > 2:
                raise RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory")
            return whole(requests, draw)

        return ask

    monkeypatch.setattr(prepare, "model_ask", short)
    out = tmp_path / "corpus.jsonl"
    argv = (papers, "--out", out, "--questions", base, "--attempts", "1", "--question-batch", "1")
    status, _, errors = command(*argv)
    assert status == 1 and "out of memory on 1 passages at a time" in errors and "lower --question-batch" in errors
    assert not out.exists() and len(out.with_name("corpus.jsonl.questions").read_text().splitlines()) == 1
    monkeypatch.setattr(prepare, "model_ask", fake_model)
    assert command(*argv)[0] == 0 and {record.data_type for record in read_records(str(out))} == {"qa"}


def test_a_random_model_leaves_passages_for_autoencoding(
    papers: Path, base: Path, command: Run, tmp_path: Path
) -> None:
    out = tmp_path / "corpus.jsonl"
    argv = (papers / "b.md", "--out", out, "--questions", base, "--reply-tokens", "8", "--attempts", "1")
    status, said, _ = command(*argv)
    assert status == 0 and {record.data_type for record in read_records(str(out))} == {"autoencode"}
    assert "questions  0, and 0 paraphrases" in said and "simple: nothing to read in the reply" in said
    first, journal = out.read_bytes(), out.with_name("corpus.jsonl.questions")
    kept = journal.read_bytes()
    assert command(*argv)[0] == 0 and (out.read_bytes(), journal.read_bytes()) == (first, kept)


def test_an_interruption_writes_nothing_and_says_what_to_do(
    papers: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "corpus_records", stop)
    status, _, errors = command(papers, "--out", tmp_path / "corpus.jsonl")
    assert status == 130 and "run the same command again" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["papers"]


def test_a_corpus_that_does_not_come_back_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"docs": ["a"], "data_type": "autoencode"}\n')
    prepare.read_back(path, 1, prepare.PrepareOptions())
    with pytest.raises(ClaraError, match="1 records came back of 2"):
        prepare.read_back(path, 2, prepare.PrepareOptions())
    with pytest.raises(ClaraError, match="stage end_to_end wants qa"):
        prepare.read_back(path, 1, prepare.PrepareOptions(candidates=3))


def test_records_of_several_documents_get_candidates_where_the_right_one_is_not_known(
    command: Run, tmp_path: Path
) -> None:
    (tmp_path / "many.jsonl").write_text(
        "".join(
            json.dumps({"docs": [PROSE[i], PROSE[i + 1]], "question": f"Where is lamp {i}?", "answer": f"town {i}"})
            + "\n"
            for i in range(6)
        )
    )
    status, _, err = command(tmp_path / "many.jsonl", "--candidates", "4", "--out", tmp_path / "out.jsonl")
    assert (status, err) == (0, "")
    assert {len(record.docs) for record in read_records(str(tmp_path / "out.jsonl"))} == {4}
