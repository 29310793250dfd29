"""A context that does not hold what a system reads is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import plan, refusal
from folders import write_records
from runs import text_run

from clara.shell.evaluation.room import most_read


def test_as_many_documents_are_read_as_there_are_or_are_chosen(run: Path, data: Path) -> None:
    found = plan(run, data, top_k=2)
    (question, *_) = found.questions
    counts = {name: most_read(found.bench, name, question) for name in found.systems}
    fixed = {"memory": 1, "text": 1, "memory_shuffled": 1, "closed_book": 0, "tuned_closed_book": 0}
    assert counts == dict.fromkeys(found.systems, 2) | fixed


def test_a_generator_tuned_on_text_needs_room_too(
    run: Path, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = str(text_run(base, tmp_path / "text"))
    monkeypatch.setattr("clara.shell.setup.context_of", lambda loaded: 40)
    message = refusal(run, data, systems="tuned_text", max_tokens=39, text_checkpoint=text)
    assert message.startswith("system tuned_text reads 1 documents: ")


def test_more_memories_than_the_context_holds_are_refused(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara.shell.setup.context_of", lambda loaded: 80)
    assert "system memory_retrieved reads 3 documents: " in refusal(run, data, systems="memory_retrieved,text")


@pytest.mark.parametrize("name", ["memory", "text", "closed_book", "tuned_closed_book"])
def test_a_context_that_does_not_even_hold_the_prompt_is_refused(
    name: str, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara.shell.setup.context_of", lambda loaded: 40)
    assert f"system {name} reads " in refusal(run, data, systems=name, max_tokens=39)


def test_the_room_of_a_paraphrase_is_that_of_a_document(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_records(tmp_path / "records.jsonl", range(2))
    # With a memory the prompts take 83 tokens at least and 78: room for an answer of 1, not for one of 32.
    monkeypatch.setattr("clara.shell.setup.context_of", lambda loaded: 100)
    assert plan(run, data, systems="memory", max_tokens=1).systems == ["memory"]
    assert "system memory reads 1 documents: " in refusal(run, data, systems="memory", max_tokens=1, paraphrases=True)
