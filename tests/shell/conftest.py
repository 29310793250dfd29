"""What tests of commands share: the tiny base, and compilation, which a run on a CPU switches off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from folders import tiny_folder


@pytest.fixture(scope="module", autouse=True)
def compilation() -> Iterator[None]:
    """Switch compilation on again after a module."""
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny base."""
    return tiny_folder(tmp_path_factory.mktemp("base") / "tiny")
