"""Token lists to padded arrays: right padding, lengths in buckets, truncation on the input side only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from clara.core.config import Layout
from clara.core.types import Batch, Documents, InBatch, Retrieval, Teacher
from clara.core.widths import Widths, fit

Tokens = tuple[int, ...]

EVERY = Widths()

CANDIDATE_MULTIPLE = 5
"""Candidates are padded to a multiple of this, so that sets of 4 to 20 have few shapes."""

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
    question: tuple[int, ...] = ()
    """What the example chooses its documents by: the question's tokens, framed like a document."""
    positives: tuple[int, ...] = ()
    """Which of the documents hold the answer, counted from 0."""
    taught: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Tokens and roles of the row in which a teacher reads the documents as text; empty where it teaches nothing."""


class DocumentTable(NamedTuple):
    """The distinct documents of some examples."""

    documents: Documents | mx.array
    """Their tokens, or their memories: float[U, M, D]; after the last document come fillers."""
    height: int
    """U: how many rows that are, fillers included."""
    rows: dict[Tokens, int]
    """Document → its row."""
    examples: Sequence[Example]
    """Whose documents they are."""


def frame_document(ids: Sequence[int], layout: Layout, doc_max_tokens: int) -> tuple[int, ...]:
    """Return a document's tokens, cut to doc_max_tokens, between the layout's prefix and suffix."""
    if layout.cuts_suffix:
        whole = (*layout.prefix, *ids, *layout.suffix)
        return whole[: len(layout.prefix) + doc_max_tokens + len(layout.suffix)]
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


def document_table(
    examples: Sequence[Example],
    layout: Layout,
    multiple: int = 32,
    memory: Callable[[Sequence[Tokens]], mx.array] | None = None,
    widths: Widths = EVERY,
) -> DocumentTable:
    """Return the documents of examples, each once, in order of appearance; the rest is as in `collate`.

    Their number is padded to a multiple of the number of examples. Without any document there is no row.
    """
    distinct = list(dict.fromkeys(document for example in examples for document in example.documents))
    rows = {document: i for i, document in enumerate(distinct)}
    height = fit(len(distinct), len(examples)) if distinct else 0
    if memory is not None:
        return DocumentTable(pad_rows(memory(distinct), height), height, rows, examples)
    return DocumentTable(pad_documents(distinct, layout, height, multiple, widths), height, rows, examples)


def collate(
    examples: Sequence[Example],
    layout: Layout,
    key: mx.array,
    multiple: int = 32,
    top_k: int | None = None,
    memory: Callable[[Sequence[Tokens]], mx.array] | None = None,
    table: DocumentTable | None = None,
    widths: Widths = EVERY,
) -> Batch:
    """Return the examples as one batch, every length padded to one of widths, or to a multiple of `multiple`.

    key: uint32[2]. A document of several examples is in the batch once. top_k: how many documents each example will
    choose; its questions and positives then come along. memory: gives the memories of documents, float[n, M, D],
    which stand in the batch in place of their tokens. Without any document it has no rows of them. table: what the
    questions choose among with in-batch negatives: of these examples, or of all those of a batch that is cut into
    micro-batches; it stands in the place of the examples' own documents, and memory. Where an example has a teacher's
    row, empty or not, the batch has one of each. Raises ValueError, naming the example, where an answer begins a row:
    nothing could predict its first token.
    """
    for example in examples:
        if example.roles[:1] == (ANSWER,):
            raise ValueError(f"{example.name}: its first token belongs to the answer; wanted a prompt before it")
    known = table or document_table(examples, layout, multiple, memory, widths)
    most = max(len(example.documents) for example in examples)
    width = most if most <= 1 else fit(most, CANDIDATE_MULTIPLE)
    candidates = np.full((len(examples), max(width, 1)), -1, dtype=np.int32)
    for i, example in enumerate(examples):
        candidates[i, : len(example.documents)] = [known.rows[document] for document in example.documents]
    slots = (candidates.shape[1] if top_k is None else top_k) * layout.num_memory_tokens
    rows = decoder_rows(examples, layout, slots, multiple, widths)
    taught = any(example.taught is not None for example in examples)
    return Batch(
        known.documents,
        mx.array(candidates),
        *rows,
        key,
        None if top_k is None else questions_of(examples, layout, candidates.shape[1], multiple, table, widths),
        teacher_rows(examples, rows[-1].shape[1], multiple, widths) if taught else None,
    )


def decoder_rows(
    examples: Sequence[Example], layout: Layout, slots: int, multiple: int, widths: Widths
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Return (tokens, target_index, targets, target_mask) of a batch, with room for `slots` memory vectors a row."""
    tokens = [
        [t + i * slots if t >= layout.first_slot else t for t in example.tokens] for i, example in enumerate(examples)
    ]
    answers = [[i for i, role in enumerate(example.roles) if role == ANSWER] for example in examples]
    targets = [[example.tokens[i] for i in where] for example, where in zip(examples, answers, strict=True)]
    count = fit(max(len(where) for where in answers), multiple, widths.answers)
    return (
        pad(tokens, len(examples), fit(max(len(row) for row in tokens), multiple, widths.tokens)),
        pad([[i - 1 for i in where] for where in answers], len(examples), count),
        pad(targets, len(examples), count),
        mx.arange(count)[None] < mx.array([len(where) for where in answers])[:, None],
    )


def teacher_rows(examples: Sequence[Example], count: int, multiple: int, widths: Widths) -> Teacher:
    """Return the rows that a teacher of the examples reads, with room for `count` answer positions."""
    rows = [example.taught or ((), ()) for example in examples]
    places = [[i - 1 for i, role in enumerate(roles) if role == ANSWER] for _, roles in rows]
    return Teacher(
        pad([tokens for tokens, _ in rows], len(rows), fit(max(len(row) for row, _ in rows), multiple, widths.taught)),
        pad(places, len(rows), count),
        mx.arange(count)[None] < mx.array([len(where) for where in places])[:, None],
    )


def questions_of(
    examples: Sequence[Example],
    layout: Layout,
    width: int,
    multiple: int,
    table: DocumentTable | None,
    widths: Widths,
) -> Retrieval:
    """Return the questions of the examples, in rows of their own length, and which of `width` candidates are right.

    With a table, also the choice among all of its documents.
    """
    positives = np.zeros((len(examples), width), dtype=bool)
    for i, example in enumerate(examples):
        positives[i, list(example.positives)] = True
    questions = pad_documents([example.question for example in examples], layout, len(examples), multiple, widths)
    return Retrieval(questions, mx.array(positives), None if table is None else in_batch_choice(examples, table))


def in_batch_choice(examples: Sequence[Example], table: DocumentTable) -> InBatch:
    """Return each question's choice among all documents of a table, which is of these examples and maybe of others.

    What holds the answer to the same question by another example is left out, unless it does by this one too.
    """

    def right(example: Example) -> list[int]:
        return [table.rows[example.documents[place]] for place in example.positives]

    answers: dict[Tokens, list[int]] = {}
    for example in table.examples:
        answers.setdefault(example.question, []).extend(right(example))
    there = np.arange(table.height) < len(table.rows)
    positives = np.zeros((len(examples), table.height), dtype=bool)
    known = np.zeros_like(positives)
    for i, example in enumerate(examples):
        positives[i, right(example)] = True
        known[i, answers[example.question]] = True
    return InBatch(mx.array(positives), mx.array(positives | (there & ~known)))


def pad_documents(
    documents: Sequence[Tokens], layout: Layout, rows: int, multiple: int, widths: Widths = EVERY
) -> Documents:
    """Return the documents padded to `rows` rows, each with room for its memory tokens."""
    longest = max((len(document) for document in documents), default=0)
    width = fit(longest + layout.num_memory_tokens, multiple, widths.documents)
    lengths = [len(document) for document in documents] + [0] * (rows - len(documents))
    return Documents(pad(documents, rows, width), mx.array(lengths, dtype=mx.int32))


def pad_rows(memory: mx.array, rows: int) -> mx.array:
    """Return memory: float[n, M, D] with zero rows after it, `rows` in all."""
    return mx.pad(memory, [(0, rows - memory.shape[0]), (0, 0), (0, 0)])


def pad(rows: Sequence[Sequence[int]], height: int, width: int) -> mx.array:
    """Return int32[height, width]: the rows from the top left, zero elsewhere."""
    out = np.zeros((height, width), dtype=np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return mx.array(out)
