"""What tests of records and batches share."""

from __future__ import annotations

import pytest
from folders import tiny_encoder, tiny_tokenizer, write_choices, write_records

from clara.io.examples import Encoder
from clara.io.records import Record, document_records, read_records


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Return an encoder of the tiny base with room for everything."""
    return tiny_encoder(tiny_tokenizer(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Return eleven records: two batches of four, and three left over."""
    return read_records(str(write_records(tmp_path_factory.mktemp("data") / "data.jsonl", range(11))))


@pytest.fixture(scope="module")
def pool() -> list[Record]:
    """Return fifty documents to repeat that no record has."""
    return document_records([Record(id=f"p{i}", docs=[f"Wick {i} {j}." for j in range(5)]) for i in range(10)])


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Return five records with three documents each, neighbours sharing two of them."""
    return read_records(str(write_choices(tmp_path_factory.mktemp("choices") / "data.jsonl", range(5))))
