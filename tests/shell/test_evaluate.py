"""The command: whole folders, runs that go on after any stop, and the paper from PDF to comparison."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from folders import write_choices, write_records
from pdfs import column, write_pdf
from runs import Run, command_of, text_run, tiny_run

from clara.io.errors import ClaraError
from clara.io.evaluation.formats import Question
from clara.io.evaluation.predictions import Prediction, read_predictions, read_scores
from clara.io.evaluation.systems import SYSTEMS
from clara.shell import evaluate
from clara.shell.evaluate import batches_of, read_arguments, read_peaks
from clara.shell.evaluation.answering import answered
from clara.shell.evaluation.choosing import Bench, index_words, prompt_size
from clara.shell.evaluation.plan import plan_of, write_config

METHOD = (
    "CLaRa stands for Continuous Latent Reasoning. A document enters the compressor and comes out as a few memory",
    "vectors: the hidden states of memory tokens at the last layer.",
    "",
    "A prompt holds these vectors in the place of the text. Compressor and generator are adapters on one frozen base.",
    "",
    "The question is compressed by a third adapter, the reasoner, and scores its candidates by cosine similarity.",
    "A differentiable top-k estimator lets one language modeling loss train reasoner and generator together.",
    "",
    "The alignment term is the mean squared error of mean memory and mean document state.",
)
RANKED = ("memory_retrieved", "memory_fused", "memory_tfidf", "text_tfidf", "text_bm25")
ALL = [name for name in SYSTEMS if name != "tuned_text"]
"""What is asked where there is no generator that was tuned on text."""


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    """Return a run that chooses two documents."""
    return tiny_run(base, base.parent / "run", stage="end_to_end", retrieval={"top_k": 2})


@pytest.fixture(scope="module")
def data(base: Path) -> Path:
    """Return seven questions with three candidates each."""
    return write_choices(base.parent / "choices.jsonl", range(7))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], run: Path, data: Path) -> Run:
    """Return the command as a function of its arguments: (exit status, output, errors)."""

    def call(*argv: str | Path, source: Path | None = data) -> tuple[int, str, str]:
        given = ("--checkpoint", run, "--max-tokens", 6, "--batch-size", 3)
        return command_of(evaluate.main, capsys, *given)(*(("--data", source) if source else ()), *argv)

    return call


@pytest.fixture(scope="module")
def whole(run: Path, data: Path) -> Path:
    """Return the folder of an evaluation of all systems that nothing disturbed."""
    out = run.parent / "whole"
    argv = ["--checkpoint", run, "--data", data, "--max-tokens", "6", "--batch-size", "3", "--out", out]
    assert evaluate.main([str(each) for each in argv]) == 0
    return out


def untimed(folder: Path, name: str) -> list[Prediction]:
    """Return a system's predictions without their seconds."""
    found = read_predictions(folder / "predictions" / f"{name}.jsonl")
    return [msgspec.structs.replace(each, seconds={}) for each in found]


def test_a_folder_holds_predictions_scores_and_tables(whole: Path) -> None:
    scores = read_scores(whole)
    assert [each.system for each in scores.systems] == ALL
    for each in scores.systems:
        found = untimed(whole, each.system)
        assert [prediction.id for prediction in found] == [f"c{i}" for i in range(7)]
        assert each.questions == 7 and each.peak_bytes == read_peaks(whole)[each.system] > 0
        assert each.means["token_f1"].mean == sum(p.metrics["token_f1"] for p in found) / 7
        assert ("mrr" in each.means) == (each.system in RANKED)
    assert {each.first for each in scores.comparisons} == {"memory"} and len(scores.comparisons) == 3 * (len(ALL) - 1)
    text = (whole / "summary.md").read_text("utf-8")
    assert text.startswith("# Evaluation on choices.jsonl\n\ncheckpoint ") and text.count("| memory_shuffled ") == 2
    assert "ranking of each question's own candidates" in text
    config = json.loads((whole / "config.json").read_bytes())
    assert config["systems"] == ALL and config["questions"] == 7


def test_batches_do_not_change_an_answer(whole: Path, command: Run, tmp_path: Path) -> None:
    status, _, err = command("--batch-size", "1", "--out", tmp_path / "out", "--systems", "memory,text,text_bm25")
    assert (status, err) == (0, "")
    for name in ("memory", "text", "text_bm25"):
        assert untimed(tmp_path / "out", name) == untimed(whole, name)


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4, 6])
@pytest.mark.parametrize("torn", [False, True], ids=["whole lines", "a torn line"])
def test_a_run_goes_on_where_it_stopped(kept: int, torn: bool, whole: Path, command: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = out / "predictions" / "memory_retrieved.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept]) + (lines[kept][:40] if torn else b""))
    (out / "scores.json").unlink()
    status, said, err = command("--out", out, "--systems", "memory_retrieved")
    assert (status, err) == (0, "") and "9 of 9 documents are compressed" in said
    assert untimed(out, "memory_retrieved") == untimed(whole, "memory_retrieved")
    again, before = (
        [msgspec.structs.replace(each, seconds={}, peak_bytes=0) for each in read_scores(folder).systems]
        for folder in (out, whole)
    )
    assert again == before, "and the other systems are scored with it"


def test_a_finished_run_computes_nothing(whole: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*.jsonl")}
    scores = read_scores(whole)
    monkeypatch.setattr(evaluate, "answered", None)
    assert command("--out", whole)[0] == 0
    assert {path: path.read_bytes() for path in whole.rglob("*.jsonl")} == before
    assert read_scores(whole) == scores


def test_ctrl_c_ends_after_a_batch_and_the_same_command_goes_on(
    whole: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    def interrupting(*arguments: Any) -> list[Prediction]:
        calls.append("")
        if len(calls) == 2:  # the first call warms up
            signal.raise_signal(signal.SIGINT)
        return answered(*arguments)

    monkeypatch.setattr(evaluate, "answered", interrupting)
    status, said, _ = command("--out", tmp_path / "out", "--systems", "text")
    assert status == 130 and f"interrupted; the same command goes on in {tmp_path / 'out'}" in said
    assert len(untimed(tmp_path / "out", "text")) == 3 and not (tmp_path / "out" / "scores.json").exists()
    monkeypatch.setattr(evaluate, "answered", answered)
    assert command("--out", tmp_path / "out", "--systems", "text")[0] == 0
    assert untimed(tmp_path / "out", "text") == untimed(whole, "text")


def test_the_first_batch_is_answered_once_before_it_is_timed(
    whole: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[tuple[str, list[str]]]()

    def noted(bench: Any, name: str, questions: list[Question]) -> list[Prediction]:
        calls.append((name, [each.id for each in questions]))
        return answered(bench, name, questions)

    monkeypatch.setattr(evaluate, "answered", noted)
    assert command("--out", tmp_path / "out", "--systems", "text,closed_book")[0] == 0
    for name in ("text", "closed_book"):
        batches = [ids for system, ids in calls if system == name]
        assert len(batches) == 1 + 3 and batches[0] == batches[1] != batches[2]
        assert untimed(tmp_path / "out", name) == untimed(whole, name)


def test_a_folder_that_another_process_took_meanwhile_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", run, "--data", data, "--out", tmp_path / "out", "--systems", "closed_book"]
    plan = plan_of(read_arguments([str(each) for each in arguments]))
    (tmp_path / "out").mkdir()
    write_config(plan._replace(config={**plan.config, "seed": 9}))
    with pytest.raises(ClaraError, match="holds an evaluation with seed 9, not 0"):
        evaluate.evaluate(plan)
    write_config(plan._replace(config={**plan.config, "systems": ["text"]}))
    assert evaluate.evaluate(plan) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["systems"] == ["text", "closed_book"]


def test_a_batch_that_is_too_large_for_the_memory_is_answered_in_parts(
    command: Run, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 1

    def within(bench: Bench, name: str, questions: Sequence[Question]) -> list[Prediction]:
        if len(questions) > most:
            raise RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory")
        return answered(bench, name, questions)

    monkeypatch.setattr(evaluate, "answered", within)
    status, said, _ = command("--out", tmp_path / "out", "--systems", "text")
    assert status == 0 and "out of memory on 3 questions at a time; 2 are tried (--batch-size)" in said
    assert [each.prediction for each in untimed(tmp_path / "out", "text")] == [
        each.prediction for each in untimed(whole, "text")
    ]
    most = 0
    status, _, err = command("--out", tmp_path / "other", "--systems", "text")
    assert status == 1 and "system text, question c" in err and "out of memory" in err


def test_documents_of_systems_that_are_done_are_not_compressed_again(whole: Path, command: Run, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    shutil.rmtree(out / "memories")
    status, said, _ = command("--out", out, "--systems", ",".join(ALL))
    assert status == 0 and "compressed, in" not in said and not (out / "memories").exists()
    assert untimed(out, "memory_retrieved") == untimed(whole, "memory_retrieved")


def test_systems_are_added_to_a_folder(whole: Path, command: Run, tmp_path: Path) -> None:
    assert command("--out", tmp_path / "out", "--systems", "closed_book")[0] == 0
    assert not (tmp_path / "out" / "memories").exists(), "nothing is compressed for the base alone"
    assert command("--out", tmp_path / "out", "--systems", "memory")[0] == 0
    assert [each.system for each in read_scores(tmp_path / "out").systems] == ["memory", "closed_book"]
    status, _, err = command("--out", tmp_path / "out", "--systems", "memory", "--seed", "3")
    assert status == 1 and "seed 0, not 3; give another --out" in err


def test_memories_may_be_shared(whole: Path, command: Run, tmp_path: Path) -> None:
    shared = ("--memories", whole / "memories", "--systems", "memory,memory_shuffled")
    status, said, _ = command("--out", tmp_path / "out", *shared)
    assert status == 0 and "7 of 7 documents are compressed" in said
    assert not (tmp_path / "out" / "memories").exists()
    assert untimed(tmp_path / "out", "memory") == untimed(whole, "memory")


def test_records_of_one_document_and_their_paraphrases(command: Run, tmp_path: Path) -> None:
    records = write_records(tmp_path / "records.jsonl", range(3))
    names = "memory,text,text_tfidf,memory_shuffled"
    status, _, err = command("--out", tmp_path / "out", "--paraphrases", "--systems", names, source=records)
    assert (status, err) == (0, "")
    counts = {each.system: each.questions for each in read_scores(tmp_path / "out").systems}
    assert counts == {"memory": 9, "text": 9, "memory_shuffled": 9, "text_tfidf": 6}
    found = untimed(tmp_path / "out", "memory")
    assert [each.id for each in found[:3]] == ["r0#1", "r0#2", "r0#paraphrase"]
    assert set(found[2].metrics) == {"rouge_l", "entities"} and found[0].documents == ["Lamp 0 burns red."]


def test_the_paper_from_pdf_to_comparison(command: Run, tmp_path: Path) -> None:
    paper = write_pdf(tmp_path / "paper.pdf", [column(METHOD[:5]), column(METHOD[5:])])
    status, said, err = command("--paper", paper, "--out", tmp_path / "out", source=None)
    assert (status, err) == (0, "") and "20 questions in format nq" in said
    scores = read_scores(tmp_path / "out")
    names = [*RANKED, "tuned_closed_book", "closed_book"]
    assert [each.system for each in scores.systems] == names
    assert all(each.questions == 20 and "keyword_match" in each.means for each in scores.systems)
    assert {each.first for each in scores.comparisons} == {"memory_retrieved"}
    found = {each.id: each for each in untimed(tmp_path / "out", "text_tfidf")}
    assert "stands for continuous" in " ".join(found["factual-1"].texts).lower()
    assert {len(each.texts) for each in found.values()} == {2}
    assert "keywords" in (tmp_path / "out" / "summary.md").read_text("utf-8")


def test_a_generator_tuned_on_text_reads_documents_that_say_otherwise(command: Run, base: Path, tmp_path: Path) -> None:
    data = tmp_path / "facts.jsonl"
    lines = [
        {"id": f"f{i}", "docs": [f"The lamp was lit in {1900 + i}."], "question": "When?", "answer": str(1900 + i)}
        for i in range(3)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = text_run(base, tmp_path / "text")
    argv = ("--text-checkpoint", text, "--counterfactual", "--systems", "memory,tuned_text,text")
    status, said, err = command(*argv, "--out", tmp_path / "out", source=data)
    assert (status, err) == (0, "") and "(tuned_text)" in said
    assert [each.system for each in read_scores(tmp_path / "out").systems] == ["memory", "text", "tuned_text"]
    summary = (tmp_path / "out" / "summary.md").read_text("utf-8")
    assert summary.startswith("# Evaluation on facts.jsonl, counterfactual\n") and "| tuned_text " in summary
    for each in untimed(tmp_path / "out", "tuned_text"):
        assert each.id.endswith("#counterfactual") and each.texts == [f"The lamp was lit in {each.golds[0]}."]
        assert each.seconds == {} and each.positives == [True]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--limit", "-1"], "--limit -1: wanted 0 or more"),
        (["--batch-size", "0"], "--batch-size 0: wanted 1 or more"),
        (["--top-k", "many"], "--top-k many: wanted a whole number"),
        (["--systems", "telepathy"], "--systems telepathy: not one of memory"),
    ],
)
def test_bad_arguments_are_refused_in_words(argv: list[str], said: str, command: Run) -> None:
    status, _, err = command(*argv)
    assert status == 1 and err.startswith("error: ") and said in err


def test_arguments_become_options() -> None:
    found = read_arguments(["--checkpoint", "RUN", "--data", "FILE", "--top-k", "3", "--paraphrases"])
    assert (found.checkpoint, found.data, found.top_k, found.paraphrases, found.max_tokens) == (
        "RUN",
        "FILE",
        3,
        True,
        64,
    )


def test_help_names_every_system_and_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in (*SYSTEMS, "musique", "squad", "nq"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_batches_hold_each_question_once_and_similar_ones_together(name: str) -> None:
    questions = [
        Question(
            *(str(i), f"w{i % 5} " + "q" * (i * 7 % 13), ("a",), (f"w{i % 5} " + "d" * (i * 5 % 11),), (), ()),
            "qa" if i % 4 else "paraphrase",
        )
        for i in range(22)
    ]
    texts = tuple(dict.fromkeys(each.documents[0] for each in questions))
    others = {each.id: texts[:1] for each in questions}
    bench: Any = Bench(None, texts, index_words(texts, questions), others, 2, 8)  # type: ignore[arg-type]
    batches = batches_of(bench, name, questions, 4)
    assert sorted(int(each.id) for batch in batches for each in batch) == list(range(22))
    assert all(len({each.task for each in batch}) == 1 and len(batch) <= 4 for batch in batches)
    assert len(batches) == 4 + 2
    sizes = [prompt_size(bench, name, each) for batch in batches[:4] for each in batch]
    assert sizes == sorted(sizes)
