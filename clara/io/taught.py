"""The rows that a teacher reads: the same questions, asked of the same documents as text, with the same answers."""

from __future__ import annotations

import sys

from clara.core.collate import ANSWER, Example, Tokens
from clara.io.errors import ClaraError
from clara.io.examples import Encoder, encode_record
from clara.io.records import Record


def with_teacher(
    encoder: Encoder,
    example: Example,
    record: Record,
    task: str,
    turn: int = 0,
    form: str = "turns",
    most: int | None = None,
) -> Example:
    """Return the example of a record with the row in which a teacher reads its documents as text.

    task, turn, form and most: what the example was encoded with. The row asks what the example does, so that of pairs
    which were left out for want of room none is in it; it is as long as the text is. Of a document that is repeated
    there is nothing to teach: its row is empty. Raises ClaraError, naming the record, where the answers' tokens differ.
    """
    if task == "autoencode":
        return example._replace(taught=((), ()))
    reader, wanted = encoder._replace(reads="text", max_tokens=sys.maxsize), learnt(example)
    for count in range(min(most or sys.maxsize, len(record.questions)) or 1, 0, -1):
        row = encode_record(reader, record, task, turn, form, most=count)
        if learnt(row) == wanted:
            return example._replace(taught=(row.tokens, row.roles))
    raise ClaraError(
        f"{example.name}: its answers have other tokens after the document's text than after its memory, so that no "
        "teacher can say what follows each; leave the record out, or distillation_weight 0"
    )


def learnt(example: Example) -> Tokens:
    """Return the answer tokens of an example, in order."""
    return tuple(token for token, role in zip(example.tokens, example.roles, strict=True) if role == ANSWER)
