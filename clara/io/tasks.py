"""Which record and which task each example of a step has: a function of (seed, step, place)."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from clara.core.config import CHOOSING
from clara.io.altered import cloze_record, counterfactual_record
from clara.io.data_config import DataConfig
from clara.io.feed import Feed
from clara.io.records import Record

TURN = 40
"""Characters that a turn of a conversation has besides question and answer, about."""

NEAR = 256
"""Documents of a pool, of nearly one length, that one of them is drawn from."""


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
