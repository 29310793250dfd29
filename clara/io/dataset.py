"""Shuffled, length-bucketed batches, each a function of (seed, step): a resumed run draws what it would have drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import mlx.core as mx
import numpy as np
from msgspec import Meta, Struct

from clara.core.collate import Example, Tokens, collate
from clara.core.config import CHOOSING, Stage
from clara.core.types import Batch
from clara.io.examples import Encoder, encode_choice, encode_document, encode_record, turns
from clara.io.records import Record


class DataConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is learnt from, in which order and in which portions."""

    data: Annotated[str, Meta(description="Training data: a JSON Lines file, or the built-in `sample`.")] = "sample"
    heldout: Annotated[
        str,
        Meta(description="Held-out data, likewise; auto: `sample-heldout` for the sample, none for other data."),
    ] = "auto"
    candidates: Annotated[
        int,
        Meta(
            ge=0,
            description="Documents that each record has at least, filled up from other records; 0 = its own alone.",
        ),
    ] = 0
    batch_size: Annotated[int, Meta(ge=1, description="Examples of one optimizer step.")] = 128
    accumulate: Annotated[
        int,
        Meta(ge=1, description="Micro-batches that a batch is cut into; saves memory, changes no result."),
    ] = 1
    max_tokens: Annotated[int, Meta(ge=8, description="Longest decoder row; questions are cut, never answers.")] = 1024
    length_multiple: Annotated[int, Meta(ge=1, description="Lengths are padded to a multiple of this.")] = 32
    qa_form: Annotated[
        Literal["pairs", "turns"],
        Meta(
            description="How `pretrain` learns: pairs: one reply with all questions and answers; turns: each question "
            "asked, answers learnt."
        ),
    ] = "pairs"
    autoencode_share: Annotated[
        float, Meta(ge=0, le=1, description="Share of `pretrain` examples that repeat their document, at first.")
    ] = 0.0
    autoencode_until: Annotated[
        float, Meta(gt=0, le=1, description="Part of the run in which that share fades to zero.")
    ] = 1.0
    paraphrase_share: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of `pretrain` examples that learn the paraphrase, of records with one."),
    ] = 0.0
    seed: Annotated[
        int, Meta(ge=0, lt=2**32, description="Seed of shuffling, task mixing, dropout and start values.")
    ] = 0


class Feed(NamedTuple):
    """How records become batches."""

    encoder: Encoder
    config: DataConfig
    stage: Stage = "pretrain"
    top_k: int = 5
    """Documents that an example of a choosing stage chooses."""
    memory: Callable[[Sequence[Tokens]], mx.array] | None = None
    """The memories of documents, float[n, M, D], where batches carry them in place of tokens."""


class StepBatch(NamedTuple):
    """The data of one optimizer step."""

    names: list[str]
    """The records it was made of, for messages."""
    batches: list[Batch]
    """Its micro-batches."""
    tokens: int
    """Real tokens in it, documents and decoder rows together, padding not counted."""


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


def choose_task(record: Record, config: DataConfig, draw: float, progress: float) -> str:
    """Return the task of an example: draw and progress (part of the run that is done) lie in [0, 1)."""
    autoencode = config.autoencode_share * max(0.0, 1 - progress / config.autoencode_until)
    if draw < autoencode:
        return "autoencode"
    if record.paraphrase is not None and draw < autoencode + config.paraphrase_share * (1 - autoencode):
        return "paraphrase"
    return record.data_type


def encode_example(
    feed: Feed, record: Record, task: str, turn: int = 0, form: str = "turns", most: int | None = None
) -> Example:
    """Return the example of a record in the feed's stage; form and most: of `pretrain`, as `encode_record` has them."""
    if feed.stage in CHOOSING:
        return encode_choice(feed.encoder, record, feed.top_k, turn, answered=feed.stage == "end_to_end")
    return encode_record(feed.encoder, record, task, turn, "one" if feed.stage == "instruct" else form, most)


def to_batch(feed: Feed, examples: Sequence[Example], key: mx.array) -> Batch:
    """Return examples as one batch of the feed's stage; key: uint32[2]."""
    top_k = feed.top_k if feed.stage in CHOOSING else None
    return collate(examples, feed.encoder.layout, key, feed.config.length_multiple, top_k, feed.memory)


def training_batches(records: Sequence[Record], feed: Feed, total_steps: int, start: int = 0) -> Iterator[StepBatch]:
    """Yield the batches of steps start ≤ step < total_steps."""
    config = feed.config
    size = min(config.batch_size, len(records))
    lengths = [sum(map(len, record.docs)) for record in records]
    per_epoch = len(epoch_plan(lengths, size, config.seed, 0))
    plan: list[list[int]] = []
    for step in range(start, total_steps):
        epoch, place = divmod(step, per_epoch)
        if not plan or place == 0:
            plan = epoch_plan(lengths, size, config.seed, epoch)
        yield step_batch([records[i] for i in plan[place]], feed, step, total_steps, epoch)


def step_batch(records: Sequence[Record], feed: Feed, step: int, total_steps: int, turn: int) -> StepBatch:
    """Return the records of one step as micro-batches; tasks and dropout keys come from (seed, step)."""
    config = feed.config
    draws = np.random.default_rng([config.seed, 1, step]).random(len(records))
    examples = []
    for record, draw in zip(records, draws, strict=True):
        mixed = feed.stage == "pretrain"
        task = choose_task(record, config, draw, step / total_steps) if mixed else record.data_type
        examples.append(encode_example(feed, record, task, turn, config.qa_form))
    parts = np.array_split(np.arange(len(examples)), min(config.accumulate, len(examples)))
    keys = mx.random.split(mx.random.key(config.seed * 2**32 + step), len(parts))
    batches = [to_batch(feed, [examples[i] for i in part], keys[j]) for j, part in enumerate(parts)]
    return StepBatch([example.name for example in examples], batches, sum(map(real_tokens, examples)))


def real_tokens(example: Example) -> int:
    """Return the tokens of an example: of its documents, question and decoder row."""
    return len(example.tokens) + len(example.question) + sum(map(len, example.documents))


def check_records(records: Sequence[Record], feed: Feed) -> None:
    """Encode every record in each of its forms. Raises ClaraError, naming the record, for one that does not fit.

    Of several questions in one row each is tried alone: where all do not fit, fewer are taken.
    """
    config = feed.config
    for record in records:
        tasks = {record.data_type}
        if feed.stage == "pretrain":
            tasks |= {"paraphrase"} if config.paraphrase_share and record.paraphrase else set()
            tasks |= {"autoencode"} if config.autoencode_share else set()
        for task in sorted(tasks):
            for turn in range(turns(feed.encoder, record, task)):
                encode_example(feed, record, task, turn, config.qa_form, most=1)


def distinct_documents(records: Sequence[Record], encoder: Encoder) -> list[Tokens]:
    """Return the framed tokens of every document of the records, each once, in order of appearance."""
    texts = dict.fromkeys(text for record in records for text in record.docs)
    return list(dict.fromkeys(encode_document(encoder, text) for text in texts))


def evaluation_batches(records: Sequence[Record], feed: Feed, batch_size: int) -> Iterator[Batch]:
    """Yield all records once under their own task, shortest first, in batches of at least two where there are two."""
    order = sorted(range(len(records)), key=lambda i: sum(map(len, records[i].docs)))
    count = max(len(order) // max(batch_size, 2), 1)
    for part in np.array_split(np.array(order), count):
        examples = [encode_example(feed, records[i], records[i].data_type) for i in part]
        yield to_batch(feed, examples, mx.random.key(0))
