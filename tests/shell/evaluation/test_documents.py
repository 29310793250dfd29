"""Documents of an evaluation: the memories that they have anywhere, and seconds for every one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folders import tiny_folder, tiny_session

from clara.io.examples import encode_document
from clara.io.memories import document_key, read_rows
from clara.io.runlog import read_events
from clara.shell.answer import compress_texts
from clara.shell.evaluation.documents import compress_documents, cut_documents, seconds_of
from clara.shell.setup import Session

TEXTS = ["A lamp.", "x" * 80, "The lamp is red and old.", "A lamp.", "b"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session of the tiny base."""
    return tiny_session(tiny_folder(tmp_path_factory.mktemp("base")))


def quiet(line: str) -> None:
    """Take a progress line."""


def test_each_text_gets_its_memory_and_its_seconds(session: Session, tmp_path: Path) -> None:
    found = compress_documents(session, TEXTS, tmp_path / "memories", tmp_path / "times", quiet)
    memory = read_rows(found.memories, [found.keys[text] for text in TEXTS])
    np.testing.assert_allclose(np.array(memory), np.array(compress_texts(session, TEXTS)), atol=1e-5)
    assert set(found.seconds) == set(TEXTS) and min(found.seconds.values()) > 0
    (event,) = read_events(tmp_path / "times")
    assert sum(found.seconds.values()) == pytest.approx(event["seconds"])


def test_what_was_computed_before_keeps_its_seconds(session: Session, tmp_path: Path) -> None:
    first, again = (
        compress_documents(session, TEXTS, tmp_path / "memories", tmp_path / "times", quiet) for _ in range(2)
    )
    assert again.seconds == first.seconds and len(read_events(tmp_path / "times")) == 1


def test_memories_of_another_run_are_timed_by_a_batch(session: Session, tmp_path: Path) -> None:
    compress_documents(session, TEXTS, tmp_path / "memories", tmp_path / "times", quiet)
    found = compress_documents(session, TEXTS, tmp_path / "memories", tmp_path / "other", quiet)
    assert min(found.seconds.values()) > 0 and len(read_events(tmp_path / "other")) == 1


def test_of_no_texts_nothing_is_timed(session: Session, tmp_path: Path) -> None:
    found = compress_documents(session, [], tmp_path / "memories", tmp_path / "times", quiet)
    assert found.seconds == {} and not (tmp_path / "times").exists()


def test_seconds_are_a_share_of_the_batch_or_reckoned_from_the_length(session: Session) -> None:
    short, long, unknown = (encode_document(session.encoder, text) for text in ("a" * 7, "b" * 17, "c" * 27))
    events = [
        {"keys": [document_key(short), "of another set"], "seconds": 9.0},
        {"keys": [document_key(short), document_key(long)], "seconds": 4.0},
    ]
    # Frames add three tokens: 10 and 20 took 2 s each, so 30 take 4 s.
    assert [len(each) for each in (short, long, unknown)] == [10, 20, 30]
    keys = {each: document_key(each) for each in (short, long, unknown)}
    assert seconds_of(events, keys) == {short: 2.0, long: 2.0, unknown: pytest.approx(4.0)}


def test_the_first_batch_of_a_length_is_not_timed(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara.shell.memories.BATCH", 2)
    short, long = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"], ["x" * 31, "y" * 31, "z" * 32, "w" * 32]
    found = compress_documents(session, [*short, *long], tmp_path / "memories", tmp_path / "times", quiet)
    timed = [key for event in read_events(tmp_path / "times") for key in event["keys"]]
    assert set(timed) == {found.keys[text] for text in [*short[2:], *long[2:]]}
    assert min(found.seconds.values()) > 0


def test_texts_beyond_the_tokens_of_a_memory_are_counted(session: Session) -> None:
    assert session.encoder.doc_max_tokens == 32
    assert cut_documents(session.encoder, ["x" * 32, "x" * 33, "é" * 17, ""]) == 2
