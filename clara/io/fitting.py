"""Whether every record of a run fits into its rows: seen before the first step, encoding only what is in doubt."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence

from clara.core.collate import Example
from clara.io.examples import SPARE, blank_record, most_text, turns
from clara.io.feed import Feed, encode_example
from clara.io.records import Record


def check_records(records: Sequence[Record], feed: Feed) -> None:
    """See that every record fits in each of its forms, and those of the feed's pool.

    Raises ClaraError, naming the record, for one that does not. Of several questions in one row each is tried alone:
    where all do not fit, fewer are taken. A text has no more tokens than bytes, so that most records need not be
    encoded; with a teacher, whose answers have to have the same tokens, all are.
    """
    whole = feed._replace(encoder=feed.encoder._replace(max_tokens=sys.maxsize), teacher=False)

    @functools.cache
    def frame(documents: int, task: str) -> int:
        """Return the most tokens that a row has beside its texts, about."""
        return max(len(example.tokens) for example in forms(blank_record(documents), whole, task))

    for record in (*records, *feed.pool):
        for task in sorted(tasks_of(record, feed)):
            most = frame(len(record.docs), task) + most_text(feed.encoder, record, task) + SPARE
            if feed.teacher or most > feed.encoder.max_tokens:
                for _ in forms(record, feed, task):
                    pass


def tasks_of(record: Record, feed: Feed) -> set[str]:
    """Return the tasks that a record may have in the feed's stage."""
    config, tasks = feed.config, {record.data_type}
    if feed.stage == "pretrain":
        tasks |= {"paraphrase"} if config.paraphrase_share and record.paraphrase else set()
        tasks |= {"autoencode"} if config.autoencode_share and not feed.pool else set()
    return tasks


def forms(record: Record, feed: Feed, task: str) -> Iterator[Example]:
    """Yield every example of a record under a task, each with one of its questions."""
    for turn in range(turns(feed.encoder, record, task)):
        yield encode_example(feed, record, task, turn, feed.config.qa_form, most=1)
