"""What the batches of a stage hold of their records."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from clara.core.config import Stage
from clara.core.types import Documents
from clara.io.data_config import DataConfig
from clara.io.dataset import distinct_documents, evaluation_batches, training_batches
from clara.io.examples import Encoder, encode_document
from clara.io.feed import Feed
from clara.io.records import Record


@pytest.mark.parametrize("stage", ["retrieval", "end_to_end"])
def test_a_choosing_stage_gets_questions_positives_and_each_document_once(
    stage: Stage, encoder: Encoder, choices: list[Record]
) -> None:
    feed = Feed(encoder, DataConfig(batch_size=5, length_multiple=16), stage, top_k=2)
    (step,) = training_batches(choices, feed, 1)
    (batch,) = step.batches
    assert batch.retrieval is not None and isinstance(batch.documents, Documents)
    by_name = {record.id: record for record in choices}
    named = [by_name[name] for name in step.names]
    assert np.argwhere(np.array(batch.retrieval.positives)).tolist() == [
        [i, r.positives[0]] for i, r in enumerate(named)
    ]
    rows, sizes, places = (np.array(leaf) for leaf in (*batch.documents, batch.candidates))
    for i, record in enumerate(named):
        found = [tuple(rows[j][: sizes[j]].tolist()) for j in places[i] if j >= 0]
        assert found == [encode_document(encoder, text) for text in record.docs]
    assert int((batch.documents.lengths > 0).sum()) == 7 == len(distinct_documents(choices, encoder))
    assert bool(batch.target_mask.any()) is (stage == "end_to_end"), "retrieval asks no generator"


def test_batches_carry_memories_where_they_are_given(encoder: Encoder, choices: list[Record]) -> None:
    asked: list[tuple[int, ...]] = []

    def memory(documents: Sequence[tuple[int, ...]]) -> mx.array:
        asked.extend(documents)
        return mx.array([len(document) for document in documents])[:, None, None] * mx.ones((1, 4, 2))

    feed = Feed(encoder, DataConfig(batch_size=5), "end_to_end", 2, memory)
    trained = (batch for step in training_batches(choices, feed, 1) for batch in step.batches)
    for batch in itertools.chain(trained, evaluation_batches(choices, feed, 8)):
        assert isinstance(batch.documents, mx.array) and batch.documents.shape[1:] == (4, 2)
        wanted = [len(document) for document in asked]
        assert batch.documents[: len(asked), 0, 0].tolist() == wanted and len(set(asked)) == 7
        asked.clear()


def zeros(documents: Sequence[tuple[int, ...]]) -> mx.array:
    """Return a memory of zeros for each document."""
    return mx.zeros((len(documents), 4, 2))


@pytest.mark.parametrize(("stage", "negatives"), [("retrieval", False), ("instruct", True)])
def test_a_feed_that_wants_no_in_batch_negatives_gets_none(
    stage: Stage, negatives: bool, encoder: Encoder, choices: list[Record]
) -> None:
    feed = Feed(encoder, DataConfig(batch_size=5), stage, 2, zeros, in_batch_negatives=negatives)
    (batch,) = next(training_batches(choices, feed, 1)).batches
    assert (batch.retrieval is None or batch.retrieval.in_batch is None) and batch.document_rows == 10
