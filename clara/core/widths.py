"""Few lengths that rows are padded to, so that a step has few shapes: each new one is traced and compiled again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Widths(NamedTuple):
    """The lengths that rows of each kind are padded to, ascending; none: every multiple of one number."""

    documents: tuple[int, ...] = ()
    """Of documents with room for their memory tokens, and of questions that documents are chosen by."""
    tokens: tuple[int, ...] = ()
    """Of decoder rows."""
    answers: tuple[int, ...] = ()
    """Of answer positions."""
    taught: tuple[int, ...] = ()
    """Of a teacher's rows, which hold documents as text."""


def fit(length: int, multiple: int, widths: Sequence[int] = ()) -> int:
    """Return the first of widths that is at least `length`, or else its smallest multiple that is, at least one."""
    return next((width for width in widths if width >= length), max(-(-length // multiple), 1) * multiple)


def choose_widths(lengths: Sequence[int], count: int, multiple: int) -> tuple[int, ...]:
    """Return at most `count` multiples of `multiple` to which lengths are padded with the least padding in all.

    The largest is the largest length's own. Exact, by dynamic programming over the distinct multiples.
    """
    sizes = Counter(fit(length, multiple) for length in lengths)
    steps = sorted(sizes)
    below = [0]
    for step in steps:
        below.append(below[-1] + sizes[step])
    # best[j]: the least padded total of the lengths up to steps[j - 1], with its widths, of which that is the last.
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for _ in range(min(count, len(steps))):
        following = dict(best)
        for j in range(1, len(steps) + 1):
            ways = [
                (total + (below[j] - below[i]) * steps[j - 1], (*widths, steps[j - 1]))
                for i, (total, widths) in best.items()
                if i < j
            ]
            following[j] = min([*ways, *([best[j]] if j in best else [])])
        best = following
    return best[len(steps)][1]
