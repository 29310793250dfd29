"""Shuffled, length-bucketed batches, each a function of (seed, step): a resumed run draws what it would have drawn."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from clara.core.collate import EVERY, DocumentTable, Example, Tokens, collate, document_table
from clara.core.config import CHOOSING, Stage
from clara.core.counterfactual import Answers
from clara.core.types import Batch
from clara.core.widths import Widths
from clara.io.altered import cloze_record, counterfactual_record
from clara.io.data_config import DataConfig
from clara.io.examples import Encoder, acquainted_encoder, encode_choice, encode_document, encode_record
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


class StepBatch(NamedTuple):
    """The data of one optimizer step."""

    names: list[str]
    """The records it was made of, for messages."""
    batches: list[Batch]
    """Its micro-batches."""
    tokens: int
    """Real tokens in it, documents and decoder rows together, padding not counted."""


TURN = 40
"""Characters that a turn of a conversation has besides question and answer, about."""

NEAR = 256
"""Documents of a pool, of nearly one length, that one of them is drawn from."""

WINDOW = 16
"""Batches whose records are sorted by length together: padding shrinks, order stays nearly random."""


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


def autoencode_share(config: DataConfig, progress: float) -> float:
    """Return the share of examples that repeat a document, where progress in [0, 1) is the part of the run done."""
    floor = config.autoencode_floor
    return floor + (config.autoencode_share - floor) * max(0.0, 1 - progress / config.autoencode_until)


def choose_task(record: Record, config: DataConfig, draw: float, progress: float) -> str:
    """Return the task of an example: draw and progress (part of the run that is done) lie in [0, 1)."""
    autoencode = autoencode_share(config, progress)
    cloze = autoencode + config.cloze_share * (1 - autoencode)
    if draw < cloze:
        return "autoencode" if draw < autoencode else "cloze"
    if record.paraphrase is not None and draw < cloze + config.paraphrase_share * (1 - autoencode):
        return "paraphrase"
    return record.data_type


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


def step_tasks(records: Sequence[Record], feed: Feed, step: int, progress: float) -> list[tuple[Record, str]]:
    """Return the record and the task of each example of a step, by (seed, step, place); records: of its whole batch.

    Where the feed has a pool, an example that is to repeat a document, or to fill in its sentences, has one of the pool
    in its record's place, drawn from those that are about as long as the longer of the record's rows, so that batches
    of one length stay so. A document without a sentence to fill in leaves the step its own record. progress: the part
    of the run done.
    """
    config, pool = feed.config, feed.pool
    if feed.stage != "pretrain":
        return said_otherwise([(record, record.data_type) for record in records], feed, step)
    draws = np.random.default_rng([config.seed, 1, step]).random(len(records))
    places = np.random.default_rng([config.seed, 4, step]).random(len(records))
    seeds = np.random.default_rng([config.seed, 5, step]).integers(2**63, size=len(records)).tolist()
    share = autoencode_share(config, progress)
    share = share + config.cloze_share * (1 - share) if pool else 0.0
    taken = [
        nearest(pool, longest_row(record, feed), place) if draw < share else record
        for record, draw, place in zip(records, draws, places, strict=True)
    ]
    found = list[tuple[Record, str]]()
    for own, record, draw, seed in zip(records, taken, draws, seeds, strict=True):
        task = choose_task(record, config, draw, progress)
        asked = cloze_record(feed.encoder, record, seed) if task == "cloze" else None
        found.append((own, own.data_type) if task == "cloze" and asked is None else (asked or record, task))
    return said_otherwise(found, feed, step)


def said_otherwise(chosen: list[tuple[Record, str]], feed: Feed, step: int) -> list[tuple[Record, str]]:
    """Return the examples of a step, the documents of some that answer questions made to say otherwise.

    They are `counterfactual_share` of them, drawn by (seed, step, place); what cannot be made to stays as it is.
    """
    config = feed.config
    if not config.counterfactual_share or feed.stage in CHOOSING:
        return chosen
    rng = np.random.default_rng([config.seed, 6, step])
    draws, seeds = rng.random(len(chosen)), rng.integers(2**63, size=len(chosen)).tolist()
    form = "one" if feed.stage == "instruct" else config.qa_form
    found = list[tuple[Record, str]]()
    for (record, task), draw, seed in zip(chosen, draws, seeds, strict=True):
        taken = task == "qa" and draw < config.counterfactual_share
        changed = counterfactual_record(feed.encoder, record, feed.answers, seed, form) if taken else None
        found.append((changed or record, task))
    return found


def longest_row(record: Record, feed: Feed) -> int:
    """Return about how long the longer of a record's rows is, in characters: its documents or its decoder row."""
    documents = sum(map(len, record.docs))
    asked = sum(map(len, [*record.questions, *record.replies])) + TURN * len(record.questions)
    if feed.stage != "pretrain":
        return documents
    return documents + asked if feed.encoder.reads == "text" else max(documents, asked)


def nearest(pool: Sequence[Record], size: int, place: float) -> Record:
    """Return one of the documents of a pool, shortest first, whose length comes nearest to `size` characters.

    place in [0, 1) draws among `NEAR` of them; fewer where the pool has fewer.
    """
    count = min(NEAR, len(pool))
    middle = bisect.bisect_left(pool, size, key=lambda each: len(each.docs[0]))
    first = min(max(middle - count // 2, 0), len(pool) - count)
    return pool[first + int(place * count)]


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
