"""Shuffled, length-bucketed batches, each a function of (seed, step): a resumed run draws what it would have drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from clara.core.collate import Example, Tokens
from clara.core.config import CHOOSING
from clara.core.types import Batch
from clara.io.examples import Encoder, acquainted_encoder, encode_document
from clara.io.feed import Feed, encode_example, table_of, to_batch
from clara.io.records import Record
from clara.io.tasks import longest_row, step_tasks

WINDOW = 16
"""Batches whose records are sorted by length together: padding shrinks, order stays nearly random."""


class StepBatch(NamedTuple):
    """The data of one optimizer step."""

    names: list[str]
    """The records it was made of, for messages."""
    batches: list[Batch]
    """Its micro-batches."""
    tokens: int
    """Real tokens in it, documents and decoder rows together, padding not counted."""


def epoch_plan(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch as indices: shuffled, records of similar length together, in shuffled order.

    Every batch is full; records left over wait for another epoch's shuffle.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = sorted(order[start : start + WINDOW * batch_size].tolist(), key=lambda i: lengths[i])
        full = [window[i : i + batch_size] for i in range(0, len(window) - batch_size + 1, batch_size)]
        batches += full
    return [batches[i] for i in rng.permutation(len(batches))]


def training_batches(
    records: Sequence[Record], feed: Feed, total_steps: int, start: int = 0, part: tuple[int, int] = (0, 1)
) -> Iterator[StepBatch]:
    """Yield the batches of steps start ≤ step < total_steps; part: as in `step_batch`."""
    for step, epoch, chosen in planned(records, feed, total_steps, start):
        yield step_batch(chosen, feed, step, total_steps, epoch, part)


def planned(
    records: Sequence[Record], feed: Feed, total_steps: int, start: int = 0
) -> Iterator[tuple[int, int, list[Record]]]:
    """Yield (step, epoch, its records) of steps start ≤ step < total_steps."""
    config = feed.config
    size = min(config.batch_size, len(records))
    lengths = [longest_row(record, feed) for record in records]
    per_epoch = len(epoch_plan(lengths, size, config.seed, 0))
    plan: list[list[int]] = []
    for step in range(start, total_steps):
        epoch, place = divmod(step, per_epoch)
        if not plan or place == 0:
            plan = epoch_plan(lengths, size, config.seed, epoch)
        yield step, epoch, [records[i] for i in plan[place]]


def extent(record: Record, task: str) -> int:
    """Return about how long an example is, in characters: documents, and what is asked and answered."""
    texts = record.docs if task == "autoencode" else [*record.questions, *record.replies]
    return sum(map(len, record.docs)) + sum(map(len, texts))


def step_batch(
    records: Sequence[Record], feed: Feed, step: int, total_steps: int, turn: int, part: tuple[int, int] = (0, 1)
) -> StepBatch:
    """Return the records of one step as micro-batches; tasks and dropout keys come from (seed, step).

    Micro-batches hold examples of similar length. part: (number, count) of the processes that share a step. Each takes
    every count-th micro-batch, of which there are then as many as divide by the count, and names all records. With
    in-batch negatives and memories given, each micro-batch has the documents of the whole step, all parts included.
    """
    config, (rank, ranks) = feed.config, part
    cuts = step_cuts(records, feed, step, total_steps, ranks)
    keys = mx.random.split(mx.random.key(config.seed * 2**32 + step), len(cuts))
    mine = range(rank, len(cuts), ranks)
    whole = feed.in_batch_negatives and feed.stage in CHOOSING and feed.memory is not None
    read = range(len(cuts)) if whole else mine
    texts = (text for i in read for record, task in cuts[i] for text in texts_of(record, task, config.qa_form))
    near = feed._replace(encoder=acquainted_encoder(feed.encoder, texts))
    parts = {i: [encode_example(near, record, task, turn, config.qa_form) for record, task in cuts[i]] for i in read}
    table = table_of(feed, [example for part in parts.values() for example in part]) if whole else None
    batches = [to_batch(feed, parts[i], keys[i], table) for i in mine]
    tokens = sum(real_tokens(example) for i in mine for example in parts[i])
    return StepBatch([record.id or "record" for cut in cuts for record, _ in cut], batches, tokens)


def step_cuts(
    records: Sequence[Record], feed: Feed, step: int, total_steps: int, ranks: int = 1
) -> list[list[tuple[Record, str]]]:
    """Return the micro-batches of a step as (record, task), examples of similar length together."""
    chosen = sorted(step_tasks(records, feed, step, step / total_steps), key=lambda one: extent(*one))
    count = min(-(-feed.config.accumulate // ranks) * ranks, len(chosen))
    return [[chosen[place] for place in cut] for cut in np.array_split(np.arange(len(chosen)), count)]


def texts_of(record: Record, task: str, form: str) -> list[str]:
    """Return the texts of a record that an example of a task holds as they are; form: of questions, "pairs" as one."""
    if task == "paraphrase":
        return [*record.docs, *([record.paraphrase] if record.paraphrase else record.replies[:1])]
    asked = [] if task == "autoencode" or (form == "pairs" and task == "qa") else [*record.questions, *record.replies]
    return [*record.docs, *asked]


def real_tokens(example: Example) -> int:
    """Return the tokens of an example: of its documents, question and decoder row."""
    return len(example.tokens) + len(example.question) + sum(map(len, example.documents))


def distinct_documents(records: Sequence[Record], encoder: Encoder) -> list[Tokens]:
    """Return the framed tokens of every document of the records, each once, in order of appearance."""
    texts = dict.fromkeys(text for record in records for text in record.docs)
    return list(dict.fromkeys(encode_document(encoder, text) for text in texts))


def evaluation_batches(
    records: Sequence[Record], feed: Feed, batch_size: int, part: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Yield all records once under their own task, shortest first, in batches of at least two where there are two.

    part: (number, count) of the processes that share the batches; each takes every count-th.
    """
    order = sorted(range(len(records)), key=lambda i: sum(map(len, records[i].docs)))
    count = max(len(order) // max(batch_size, 2), 1)
    rank, ranks = part
    for places in np.array_split(np.array(order), count)[rank::ranks]:
        examples = [encode_example(feed, records[i], records[i].data_type) for i in places]
        yield to_batch(feed, examples, mx.random.key(0))
