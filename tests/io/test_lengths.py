"""Widths from a run's first batches: few shapes, little padding, and every row fits."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from folders import write_choices, write_records

from clara.core.types import Batch, Documents
from clara.io.data_config import DataConfig
from clara.io.dataset import training_batches
from clara.io.examples import Encoder
from clara.io.feed import Feed, encode_example
from clara.io.lengths import measured_widths
from clara.io.records import Record, read_records

CONFIG = DataConfig(
    batch_size=4, accumulate=2, length_multiple=4, length_buckets=2, autoencode_share=0.5, qa_form="turns"
)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Return records of many lengths."""
    return read_records(str(write_records(tmp_path_factory.mktemp("data") / "data.jsonl", range(30))))


def shape(batch: Batch) -> tuple[int, ...]:
    """Return the widths of a batch: of documents, decoder rows, answers, and a teacher's rows where it has some."""
    assert isinstance(batch.documents, Documents)
    taught = [batch.teacher.tokens.shape[1]] if batch.teacher else []
    return batch.documents.tokens.shape[1], batch.tokens.shape[1], batch.targets.shape[1], *taught


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("cloze_share", [0.0, 1.0])
def test_all_batches_of_a_run_have_the_widths_that_were_measured(
    encoder: Encoder, records: list[Record], cloze_share: float, teacher: bool
) -> None:
    feed = Feed(encoder, msgspec.structs.replace(CONFIG, cloze_share=cloze_share), teacher=teacher)
    measured = measured_widths(records, feed, 20, compresses=True)
    widths = measured if teacher else measured[:3]
    assert bool(measured.taught) == teacher
    assert all(1 <= len(each) <= 2 for each in widths)
    shapes = {shape(b) for step in training_batches(records, feed._replace(widths=measured), 20) for b in step.batches}
    for found, allowed in zip(zip(*shapes, strict=True), widths, strict=True):
        assert set(found) <= set(allowed) and max(found) == allowed[-1]
    every = {shape(b) for step in training_batches(records, feed, 20) for b in step.batches}
    assert len(shapes) < len(every)


def test_where_memories_are_kept_questions_alone_are_framed_like_documents(encoder: Encoder, tmp_path: Path) -> None:
    records = read_records(str(write_choices(tmp_path / "data.jsonl", range(8))))
    feed = Feed(encoder, CONFIG, "end_to_end", 2)
    kept, anew = (measured_widths(records, feed, 4, compresses) for compresses in (False, True))
    assert kept.documents[-1] <= anew.documents[-1] and kept[1:] == anew[1:]
    asked = max(len(encode_example(feed, record, record.data_type).question) for record in records)
    assert kept.documents[-1] >= asked + encoder.layout.num_memory_tokens
