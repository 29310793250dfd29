"""Beam search: of all replies to a prompt the likeliest, of which greedy decoding sees no more than the next token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import mlx.core as mx

LENGTH_POWER = 1.0
"""Of a reply's length, by which its score is divided: 0 prefers short replies, 1 long ones."""


class Beam(NamedTuple):
    """The beginning of a reply, or a whole one without its end token."""

    score: float
    """Sum of the log-probabilities of its tokens, the end token's included."""
    tokens: tuple[int, ...]


class Search(NamedTuple):
    """Where the search for the reply to one prompt stands."""

    live: tuple[Beam, ...] = (Beam(0.0, ()),)
    """The likeliest beginnings, all of one length, the likeliest first."""
    ended: tuple[Beam, ...] = ()
    """Whole replies, as they were found."""
    whole: bool = True
    """False where a search is over and its replies had no end."""


Continuation = tuple[int, int, float]
"""(place of a live beam, token, log-probability of the token after that beam)."""


def likeliest(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Return (float32[R, n], int32[R, n]): log-probabilities of the likeliest next tokens, and these; in any order.

    logits: float[R, V]; n: count, or V where that is less.
    """
    values = logits.astype(mx.float32)
    values = values - mx.logsumexp(values, axis=-1, keepdims=True)
    count = min(count, values.shape[-1])
    index = mx.argpartition(-values, count - 1, axis=-1)[:, :count]
    return mx.take_along_axis(values, index, axis=-1), index.astype(mx.int32)


def extended(
    search: Search, found: Sequence[Continuation], ends: Collection[int], width: int, most: int
) -> tuple[Search, list[int]]:
    """Return a search one token further, and which of its live beams each of the new ones continues.

    found: the 2 · width likeliest continuations of each live beam at least, so that enough go on where some end. A
    search is over, and has no live beam, once `width` replies have ended, or its beams have `most` tokens: these then
    are its replies where none has ended. A reply that several end tokens end has the score of the likeliest.
    """
    ranked = sorted(found, key=lambda each: (-search.live[each[0]].score - each[2], each))[: 2 * width]
    ended, live, parents = list(search.ended), list[Beam](), list[int]()
    for rank, (place, token, value) in enumerate(ranked):
        score, tokens = search.live[place]
        if token in ends and rank < width and tokens not in {beam.tokens for beam in ended}:
            ended.append(Beam(score + value, tokens))
        elif token not in ends and len(live) < width:
            live.append(Beam(score + value, (*tokens, token)))
            parents.append(place)
    if len(ended) >= width or len(live[0].tokens if live else ()) >= most:
        return Search((), tuple(ended or live), bool(ended)), []
    return Search(tuple(live), tuple(ended)), parents


def best(search: Search) -> Beam:
    """Return the reply of a search that is over, by score over (length + 1) ** LENGTH_POWER."""
    return max(search.ended, key=lambda beam: beam.score / (len(beam.tokens) + 1) ** LENGTH_POWER)
