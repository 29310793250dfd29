"""The generator that was tuned on text: whose it may be, and that it is asked as it was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import text_run, tiny_run
from tiny import assert_same

from clara.io.checkpoint import newest_checkpoint
from clara.io.errors import ClaraError
from clara.shell.evaluation.reader import open_reader, require_memory, text_checkpoint, text_facts
from clara.shell.stores import session_of


def test_the_newest_checkpoint_of_a_run_on_text_is_taken(base: Path, tmp_path: Path) -> None:
    run = text_run(base, tmp_path / "text")
    fingerprint = newest_checkpoint(run)[0].manifest.base
    found = text_checkpoint(str(run), fingerprint)
    assert text_facts(found)["text_step"] == 3 and text_facts(found)["text_checkpoint"] == str(found.path)
    assert text_facts(None) == {}


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    run = text_run(base, tmp_path / "text")
    with pytest.raises(ClaraError, match=r"was trained on another base \(fingerprint \w+\) than --checkpoint"):
        text_checkpoint(str(run), "0123")


def test_memory_and_text_are_not_taken_for_one_another(base: Path, tmp_path: Path) -> None:
    memory, text = tiny_run(base, tmp_path / "memory"), text_run(base, tmp_path / "text")
    with pytest.raises(ClaraError, match=r"was trained on memory; wanted a run with data\.reads text"):
        text_checkpoint(str(memory), newest_checkpoint(memory)[0].manifest.base)
    require_memory(newest_checkpoint(memory)[0])
    with pytest.raises(ClaraError, match="was trained on text and has no memory"):
        require_memory(newest_checkpoint(text)[0])


def test_the_base_is_shared_and_the_parameters_are_its_own(base: Path, tmp_path: Path) -> None:
    memory, text = (newest_checkpoint(each)[0] for each in (tiny_run(base, tmp_path / "m"), text_run(base, tmp_path)))
    session = session_of(memory)
    reader = open_reader(text, session, "")
    assert reader.base.module is session.base.module and reader.encoder.reads == "text"
    assert_same(reader.params, text.params)
