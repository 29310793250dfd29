"""The largest step that a stage can have, and how many layers are recomputed so that it fits the device."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from mlx.utils import tree_flatten

from clara.core.collate import CANDIDATE_MULTIPLE
from clara.core.config import CHOOSING
from clara.core.footprint import Load, recomputed_layers, shapes_of, step_bytes
from clara.core.types import Params
from clara.core.widths import fit
from clara.io.examples import encode_question
from clara.io.feed import Feed
from clara.io.records import Record
from clara.shell.options import Options, step_config
from clara.shell.progress import compute_line
from clara.shell.ranks import ALONE, Ranks
from clara.shell.setup import Session, device_memory

MEMORY_SHARE = 0.85
"""Of the device's memory, what a step may take by estimate; the rest is for kernels, data, and other programs."""


def largest_load(
    options: Options, feed: Feed, records: Sequence[Record], params: tuple[Params, Params], ranks: Ranks = ALONE
) -> Load:
    """Return the largest micro-batch that a stage can have: every row as long as it may be.

    params: trained and frozen ones.
    """
    data, encoder, widths = options.data, feed.encoder, feed.widths
    batch = min(data.batch_size, len(records))
    parts = ranks.part[1]
    count = min(-(-data.accumulate // parts) * parts, batch)
    rows, most = -(-batch // count), max(len(record.docs) for record in records)
    layout, multiple = encoder.layout, data.length_multiple
    memories, passes, answers = layout.num_memory_tokens, list[tuple[int, int]](), 0
    if data.reads == "memory" and step_config(options).trains_compressor:
        longest = len(layout.prefix) + options.memory.doc_max_tokens + len(layout.suffix) + memories
        passes.append((rows * most, fit(longest, multiple, widths.documents)))
    if options.stage in CHOOSING:
        asked = max(len(encode_question(encoder, text)) for record in records for text in record.questions)
        passes.append((rows, fit(asked + memories, multiple, widths.documents)))
    if options.loss.next_token_weight or options.loss.distillation_weight:
        passes.append((rows, fit(data.max_tokens, multiple, widths.tokens)))
        answers = rows * passes[-1][1]
    text = fit(data.max_tokens + most * options.memory.doc_max_tokens, multiple, widths.taught)
    taught = (rows, text) if options.loss.distillation_weight else None
    trained, frozen = (sum(leaf.size for _, leaf in tree_flatten(each)) for each in params)
    vectors = rows * (fit(most, CANDIDATE_MULTIPLE) if most > 1 else 1) * memories
    return Load(tuple(passes), answers, vectors, trained, frozen, count > parts, taught)


def fitted(session: Session, load: Load) -> tuple[Session, str]:
    """Return the session with the recomputation that is asked for, or else that fits, and the line that tells of it."""
    config, there = session.config, device_memory()
    shapes, every = shapes_of(session.base.module), config.compute.grad_checkpoint
    if every == "auto":
        every = recomputed_layers(shapes, config, load, MEMORY_SHARE * there)
    compute = msgspec.structs.replace(config.compute, grad_checkpoint=every)
    needed = step_bytes(shapes, config, load, every)
    line = compute_line(every, needed, there, needed <= MEMORY_SHARE * there)
    return session._replace(config=msgspec.structs.replace(config, compute=compute)), line
