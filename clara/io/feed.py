"""How records become batches: what of an example depends on the stage and the options of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from clara.core.collate import EVERY, DocumentTable, Example, Tokens, collate, document_table
from clara.core.config import CHOOSING, Stage
from clara.core.counterfactual import Answers
from clara.core.types import Batch
from clara.core.widths import Widths
from clara.io.data_config import DataConfig
from clara.io.examples import Encoder, encode_choice, encode_record
from clara.io.records import Record
from clara.io.taught import with_teacher


class Feed(NamedTuple):
    """How records become batches."""

    encoder: Encoder
    config: DataConfig
    stage: Stage = "pretrain"
    top_k: int = 5
    """Documents that an example of a choosing stage chooses."""
    memory: Callable[[Sequence[Tokens]], mx.array] | None = None
    """The memories of documents, float[n, M, D], where batches carry them in place of tokens."""
    pool: Sequence[Record] = ()
    """Documents that examples of `pretrain` repeat or fill in, a record each; none: those of their own records."""
    answers: Answers = Answers({}, {})
    """What documents are made to say in the place of their answers, where `counterfactual_share` has them do so."""
    widths: Widths = EVERY
    """What lengths are padded to, where not to every multiple."""
    in_batch_negatives: bool = False
    """Whether questions of a choosing stage also choose among one another's documents: with `memory` those of a whole
    step, else of their micro-batch."""
    teacher: bool = False
    """Whether examples of `pretrain` and `instruct` have a row for a teacher that reads their documents as text."""


def encode_example(
    feed: Feed, record: Record, task: str, turn: int = 0, form: str = "turns", most: int | None = None
) -> Example:
    """Return the example of a record in the feed's stage; form and most: of `pretrain`, as `encode_record` has them."""
    if feed.stage in CHOOSING:
        return encode_choice(feed.encoder, record, feed.top_k, turn, answered=feed.stage == "end_to_end")
    form = "one" if feed.stage == "instruct" else form
    example = encode_record(feed.encoder, record, task, turn, form, most)
    return with_teacher(feed.encoder, example, record, task, turn, form, most) if feed.teacher else example


def to_batch(feed: Feed, examples: Sequence[Example], key: mx.array, table: DocumentTable | None = None) -> Batch:
    """Return examples as one batch of the feed's stage; key: uint32[2].

    table: what they choose among where the feed has in-batch negatives; None: one another's documents.
    """
    top_k = feed.top_k if feed.stage in CHOOSING else None
    table = table or (table_of(feed, examples) if top_k and feed.in_batch_negatives else None)
    config, layout = feed.config, feed.encoder.layout
    return collate(examples, layout, key, config.length_multiple, top_k, feed.memory, table, feed.widths)


def table_of(feed: Feed, examples: Sequence[Example]) -> DocumentTable:
    """Return the documents of examples, with their memories where the feed gives these."""
    return document_table(examples, feed.encoder.layout, feed.config.length_multiple, feed.memory, feed.widths)
