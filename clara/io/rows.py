"""A conversation's texts to one row of tokens, each with its role."""

from __future__ import annotations

from collections.abc import Sequence

from clara.core.collate import ANSWER, FIXED
from clara.io.tokens import Piece, Tokenizer, decode, encode, encode_parts

Row = tuple[list[int], list[int]]
"""Tokens and their roles."""

Inserts = dict[str, tuple[str, int, int | None]]
"""What stands in for a slot: text, role, and the number of tokens that it is cut to."""


def plain_row(
    tokenizer: Tokenizer, slots: Sequence[str], fixed: Sequence[Piece], inserts: Inserts, memory: list[int]
) -> Row:
    """Return the tokens of a conversation, what is inserted being encoded by itself, without special tokens.

    fixed: what stands before, between and after the slots, encoded. A slot without an insert holds memory.
    """
    segments = [(ids, FIXED) for ids, _ in fixed[:1]]
    for name, (ids, _) in zip(slots, fixed[1:], strict=True):
        if name in inserts:
            text, role, limit = inserts[name]
            segments.append((encode(tokenizer, text)[:limit], role))
        else:
            segments.append((memory, FIXED))
        segments.append((ids, FIXED))
    return [t for ids, _ in segments for t in ids], [role for ids, role in segments for _ in ids]


def joined_row(tokenizer: Tokenizer, parts: list[str], inserts: Inserts, memory: list[int], at: str) -> Row:
    """Return the tokens of a conversation, encoded as one text around the memory; roles follow the characters.

    parts: text, slot, text, …; at: the slot that memory takes.
    """
    texts, spans = [""], list[list[tuple[int, int, int]]]([[]])
    for part in parts:
        if part in inserts:
            text, role, limit = inserts[part]
            text = text if limit is None else decode(tokenizer, encode(tokenizer, text)[:limit])
            spans[-1].append((len(texts[-1]), len(texts[-1]) + len(text), role))
            texts[-1] += text
        elif part == at:
            texts, spans = [*texts, ""], [*spans, []]
        else:
            texts[-1] += part
    tokens, roles = list[int](), list[int]()
    for i, (ids, starts) in enumerate(encode_parts(tokenizer, texts)):
        tokens += ids if i == 0 else [*memory, *ids]
        roles += [FIXED] * (0 if i == 0 else len(memory))
        roles += [next((role for first, last, role in spans[i] if first <= s < last), FIXED) for s in starts]
    return tokens, roles


def ended(tokenizer: Tokenizer, row: Row, whole: bool) -> Row:
    """Return a row in which each answer owns its end token and, where the last turn is answered, nothing follows.

    whole: what the chat template writes after the last answer is learnt with it, as in the original.
    """
    tokens, roles = row
    roles = [
        ANSWER if i and roles[i - 1] == ANSWER and role == FIXED and tokens[i] in tokenizer.eos_ids else role
        for i, role in enumerate(roles)
    ]
    last = max((i for i, role in enumerate(roles) if role != FIXED), default=-1)
    if last < 0 or roles[last] != ANSWER:
        return tokens, roles
    if whole and last + 1 < len(tokens):
        return tokens, [*roles[: last + 1], *[ANSWER] * (len(tokens) - last - 1)]
    tokens, roles = tokens[: last + 1], roles[: last + 1]
    return (tokens, roles) if tokens[-1] in tokenizer.eos_ids else ([*tokens, tokenizer.eos_id], [*roles, ANSWER])
