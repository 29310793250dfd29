"""The lengths of a run's first batches, and the few widths that fit them."""

from __future__ import annotations

from collections.abc import Sequence

from clara.core.collate import ANSWER
from clara.core.config import CHOOSING
from clara.core.widths import Widths, choose_widths
from clara.io.dataset import planned, step_cuts
from clara.io.feed import Feed, encode_example
from clara.io.records import Record

SAMPLED_STEPS = 64
"""Steps whose micro-batches are looked at."""


def measured_widths(records: Sequence[Record], feed: Feed, total_steps: int, compresses: bool) -> Widths:
    """Return `length_buckets` widths for each kind of row, which pad the longest rows of the first batches least.

    compresses: whether documents are compressed in each step; where they are not, the rows that are framed like
    documents are the questions that choose them.
    """
    config, layout = feed.config, feed.encoder.layout
    framed, tokens, answers, taught = list[int](), list[int](), list[int](), list[int]()
    for step, epoch, chosen in planned(records, feed, min(total_steps, SAMPLED_STEPS)):
        for cut in step_cuts(chosen, feed, step, total_steps):
            examples = [encode_example(feed, record, task, epoch, config.qa_form) for record, task in cut]
            documents = [len(each) for example in examples for each in example.documents] if compresses else []
            asked = [len(example.question) for example in examples] if feed.stage in CHOOSING else []
            framed += [max(rows) + layout.num_memory_tokens for rows in (documents, asked) if rows]
            tokens.append(max(len(example.tokens) for example in examples))
            answers.append(max(example.roles.count(ANSWER) for example in examples))
            taught += [max(len(example.taught[0]) for example in examples if example.taught)] if feed.teacher else []
    count, multiple = config.length_buckets, config.length_multiple
    return Widths(*(choose_widths(rows, count, multiple) if rows else () for rows in (framed, tokens, answers, taught)))
