"""A tiny base, a run that chooses documents, and questions to ask it: what several tests of evaluations begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import write_choices
from runs import tiny_run


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    """Return a run that chooses three documents."""
    return tiny_run(base, base.parent / "run", stage="end_to_end", retrieval={"top_k": 3})


@pytest.fixture(scope="module")
def data(base: Path) -> Path:
    """Return five questions with three candidates each."""
    return write_choices(base.parent / "choices.jsonl", range(5))
