"""Token lists to padded arrays: right padding, lengths in buckets, truncation on the input side only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from clara.core.config import Layout
from clara.core.types import Batch, Documents

FIXED, INPUT, ANSWER = 0, 1, 2
"""Roles of decoder tokens: template and slots; input that may be cut; answer, which is learnt and never cut."""


class Example(NamedTuple):
    """One tokenised training example."""

    name: str
    """How errors and logs call the record it came from."""
    documents: tuple[tuple[int, ...], ...]
    """Each document's tokens, frame included, at most doc_max_tokens plus the frame."""
    tokens: tuple[int, ...]
    """Decoder tokens; slot i of this example's own memories is `layout.first_slot + i`."""
    roles: tuple[int, ...]
    """FIXED, INPUT or ANSWER for each token."""


def frame_document(ids: Sequence[int], layout: Layout, doc_max_tokens: int) -> tuple[int, ...]:
    """Return a document's tokens, cut to doc_max_tokens, between the layout's prefix and suffix."""
    return (*layout.prefix, *ids[:doc_max_tokens], *layout.suffix)


def document_slot_ids(index: int, layout: Layout) -> tuple[int, ...]:
    """Return the ids that stand for an example's document number `index`: its M memory slots and one `<SEP>`."""
    first = layout.first_slot + index * layout.num_memory_tokens
    return (*range(first, first + layout.num_memory_tokens), layout.sep_id)


def truncate(example: Example, max_tokens: int) -> Example:
    """Return the example with at most max_tokens decoder tokens: INPUT tokens are dropped, the earliest first.

    Raises ValueError, naming the example, where dropping all of them is not enough.
    """
    excess = len(example.tokens) - max_tokens
    if excess <= 0:
        return example
    inputs = [i for i, role in enumerate(example.roles) if role == INPUT]
    if excess > len(inputs):
        raise ValueError(
            f"{example.name}: template, memory and answer take {len(example.tokens) - len(inputs)} tokens, "
            f"more than max_tokens {max_tokens}; raise max_tokens or shorten the answer"
        )
    dropped = set(inputs[:excess])
    keep = [i for i in range(len(example.tokens)) if i not in dropped]
    return example._replace(tokens=tuple(example.tokens[i] for i in keep), roles=tuple(example.roles[i] for i in keep))


def bucket(length: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `length`, and at least one multiple."""
    return max(-(-length // multiple), 1) * multiple


def collate(examples: Sequence[Example], layout: Layout, key: mx.array, multiple: int = 32) -> Batch:
    """Return the examples as one batch, every length padded to a multiple of `multiple`.

    key: uint32[2]. Documents of all examples stand in one axis N; where their number differs from example to example,
    N is filled up with empty documents so that it depends on the largest number alone; it is at least one. Raises
    ValueError, naming the example, where an answer begins a row: nothing could predict its first token.
    """
    for example in examples:
        if example.roles[:1] == (ANSWER,):
            raise ValueError(f"{example.name}: its first token belongs to the answer; wanted a prompt before it")
    documents = [document for example in examples for document in example.documents]
    rows = max(len(examples) * max(len(example.documents) for example in examples), 1)
    width = bucket(max((len(d) for d in documents), default=0) + layout.num_memory_tokens, multiple)
    first = np.cumsum([0] + [len(example.documents) for example in examples]) * layout.num_memory_tokens
    tokens = [
        [t + int(shift) if t >= layout.first_slot else t for t in example.tokens]
        for example, shift in zip(examples, first, strict=False)
    ]
    answers = [[i for i, role in enumerate(example.roles) if role == ANSWER] for example in examples]
    targets = [[example.tokens[i] for i in where] for example, where in zip(examples, answers, strict=True)]
    count = bucket(max(len(where) for where in answers), multiple)
    return Batch(
        Documents(pad(documents, rows, width), mx.array([len(d) for d in documents] + [0] * (rows - len(documents)))),
        pad(tokens, len(examples), bucket(max(len(row) for row in tokens), multiple)),
        pad([[i - 1 for i in where] for where in answers], len(examples), count),
        pad(targets, len(examples), count),
        mx.arange(count)[None] < mx.array([len(where) for where in answers])[:, None],
        key,
    )


def pad(rows: Sequence[Sequence[int]], height: int, width: int) -> mx.array:
    """Return int32[height, width]: the rows from the top left, zero elsewhere."""
    out = np.zeros((height, width), dtype=np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return mx.array(out)
