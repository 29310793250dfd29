"""The memories of a data set: each computed once, the same after an interruption, and as good as compressing anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from folders import tiny_folder, tiny_options, tiny_session, write_choices
from mlx.utils import tree_flatten, tree_map

from clara.core.collate import Tokens
from clara.io.dataset import distinct_documents, training_batches
from clara.io.examples import encode_document
from clara.io.memories import Memories, read_memories
from clara.shell import memories as module
from clara.shell.answer import compress_texts
from clara.shell.job import Job, prepare, with_memories
from clara.shell.loop import evaluate, training_steps
from clara.shell.memories import compress_all
from clara.shell.ranks import Ranks
from clara.shell.setup import Session

TEXTS = [f"Lamp {i} burns {'very ' * (i % 4)}red." for i in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny base."""
    return tiny_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    """Return a session of the tiny base."""
    return tiny_session(folder)


@pytest.fixture(scope="module")
def documents(session: Session) -> list[Tokens]:
    """Return nine documents of four lengths."""
    return [encode_document(session.encoder, text) for text in TEXTS]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Tokens]]:
    """Return a list that grows by every batch that is compressed; batches are of four here."""
    seen: list[list[Tokens]] = []
    real = module.compress_tokens

    def watched(session: Session, documents: list[Tokens]) -> mx.array:
        seen.append(documents)
        return real(session, documents)

    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "compress_tokens", watched)
    return seen


def quiet(_: str) -> None:
    """Print nothing."""


def all_of(memories: Memories, documents: list[Tokens]) -> list[Any]:
    """Return the memories of documents as plain values."""
    values: list[Any] = read_memories(memories, documents).tolist()
    return values


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_with_one_base_together_compute_all_and_one_of_them_writes(
    session: Session, documents: list[Tokens], batches: list[list[Tokens]], tmp_path: Path, rank: int
) -> None:
    found = compress_all(session, documents, tmp_path, quiet, ranks=Ranks(rank, 1, cut=True))
    assert sum(map(len, batches)) == len(documents)
    assert len(found.rows) == (0 if rank else len(documents))


def test_memories_are_those_of_compressing_each_text(
    session: Session, documents: list[Tokens], batches: list[list[Tokens]], tmp_path: Path
) -> None:
    found = read_memories(compress_all(session, documents, tmp_path, quiet), documents)
    assert len(batches) == 3
    np.testing.assert_allclose(np.array(found), np.array(compress_texts(session, TEXTS)), atol=1e-5)


def test_what_was_compressed_is_not_compressed_again(
    session: Session, documents: list[Tokens], batches: list[list[Tokens]], tmp_path: Path
) -> None:
    said: list[str] = []
    first = compress_all(session, documents, tmp_path, said.append)
    again = compress_all(session, documents[::-1], tmp_path, said.append)
    assert len(batches) == 3 and all_of(first, documents) == all_of(again, documents)
    assert said[0] == f"memories  0 of 9 documents are compressed, in {first.folder}"
    assert said[1].startswith("memories  9/9 compressed, ") and said[1].endswith(" documents/s, 0 s left")
    assert said[2:] == [f"memories  9 of 9 documents are compressed, in {first.folder}"]


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_interrupted_run_goes_on_where_it_was_and_ends_with_the_same_bits(
    written: int,
    session: Session,
    documents: list[Tokens],
    batches: list[list[Tokens]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = compress_all(session, documents, tmp_path / "whole", quiet)
    real, calls = module.write_memories, list[int]()

    def stop(*arguments: Any) -> None:
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(1)
        real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "write_memories", stop)
        compress_all(session, documents, tmp_path / "cut", quiet)
    batches.clear()
    rest = compress_all(session, documents[::-1], tmp_path / "cut", quiet)
    assert len(batches) == 3 - written
    assert all_of(rest, documents) == all_of(whole, documents)
    files = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    assert {path.name: path.read_bytes() for path in rest.folder.iterdir()} == files


def test_a_damaged_shard_is_computed_anew_and_said(
    session: Session, documents: list[Tokens], batches: list[list[Tokens]], tmp_path: Path
) -> None:
    whole = compress_all(session, documents, tmp_path, quiet)
    wanted = all_of(whole, documents)
    path = sorted(whole.folder.glob("*.npy"))[0]
    path.write_bytes(path.read_bytes()[:-3])
    said: list[str] = []
    batches.clear()
    assert all_of(compress_all(session, documents, tmp_path, said.append), documents) == wanted
    assert len(batches) == 1 and said[0].startswith(f"memories  computing anew: {path}: ")


def test_another_compressor_has_memories_of_its_own(
    session: Session, documents: list[Tokens], batches: list[list[Tokens]], tmp_path: Path
) -> None:
    moved = session._replace(params=tree_map(lambda leaf: leaf * 1.5, session.params))
    one, other = (compress_all(each, documents, tmp_path, quiet) for each in (session, moved))
    assert one.folder != other.folder and len(batches) == 6
    assert all_of(one, documents) != all_of(other, documents)


def test_progress_is_told_from_time_to_time(
    session: Session,
    documents: list[Tokens],
    batches: list[list[Tokens]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    said: list[str] = []
    compress_all(session, documents, tmp_path, said.append)
    assert [line.split()[1] for line in said] == ["0", "4/9", "8/9", "9/9"]


def choosing_job(folder: Path, data: Path, root: Path, stage: str) -> Job:
    """Return a run of a choosing stage, ready to go."""
    options = tiny_options(
        folder,
        stage=stage,
        steps=4,
        run=str(root),
        data={"data": str(data), "heldout": str(data), "batch_size": 3, "max_tokens": 512},
        retrieval={"top_k": 2, "temperature": 0.5},
        optimizer={"learning_rate": 0.01},
    )
    return prepare(options, None)


@pytest.mark.parametrize("stage", ["retrieval", "end_to_end"])
def test_training_from_memories_that_were_kept_is_training_that_compresses_anew(
    stage: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_choices(tmp_path / "data.jsonl", range(7))
    fresh = choosing_job(folder, data, tmp_path / "run", stage)
    kept = with_memories(fresh)
    assert fresh.feed.memory is None and kept.feed.memory is not None

    def train(job: Job) -> tuple[list[float], dict[str, mx.array], dict[str, float]]:
        steps = list(training_steps(job.update, job.state, training_batches(job.records, job.feed, job.options.steps)))
        state = steps[-1].state
        weights = job.session.config.loss.weights
        held = training_batches(job.heldout, job.feed, 1)
        means = evaluate(job.eval_step, state.params, next(held).batches, weights)
        return [step.metrics["loss"] for step in steps], dict(tree_flatten(state.params)), means

    (losses, params, means), (others, other_params, other_means) = train(fresh), train(kept)
    assert len(losses) == 4 and losses == pytest.approx(others, abs=1e-5)
    assert means == pytest.approx(other_means, abs=1e-5)
    assert params.keys() == other_params.keys()
    for name, leaf in params.items():
        np.testing.assert_allclose(np.array(leaf), np.array(other_params[name]), atol=1e-5, err_msg=name)
    assert isinstance(next(training_batches(kept.records, kept.feed, 1)).batches[0].documents, mx.array)


def test_every_document_of_training_and_evaluation_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_choices(tmp_path / "data.jsonl", range(5))
    job = with_memories(choosing_job(folder, data, tmp_path / "run", "retrieval"))
    wanted = distinct_documents([*job.records, *job.heldout], job.session.encoder)
    assert len(wanted) == 7
    memory: Callable[..., mx.array] | None = job.feed.memory
    assert memory is not None and memory(wanted).shape == (7, 4, 32)
    assert "0 of 7 documents are compressed" in capsys.readouterr().out
