"""What tests of records and batches share."""

from __future__ import annotations

import pytest
from folders import tiny_encoder, tiny_tokenizer

from clara.io.examples import Encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Return an encoder of the tiny base with room for everything."""
    return tiny_encoder(tiny_tokenizer(tmp_path_factory.mktemp("base")))
