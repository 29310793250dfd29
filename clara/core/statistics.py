"""How sure a mean and a difference of two systems are: bootstrap intervals and a paired sign-flip test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import fsum

import numpy as np
from numpy.random import Generator

LEVEL = 0.95
"""Share of the bootstrap means that an interval holds."""

DRAWS = 10_000
"""Samples that are drawn for an interval or a test."""

BLOCK = 1_000_000
"""Numbers that are drawn at a time, which bounds the memory."""

ROUNDING = 1e-12
"""By how much two sums of the same numbers may differ, as a share of the sum of their sizes."""


def bootstrap_interval(values: Sequence[float], rng: Generator, draws: int = DRAWS) -> tuple[float, float, float]:
    """Return (mean, low, high): the mean of values and its 95 % bootstrap percentile interval.

    values: n finite numbers; their order does not count. rng: of equal state it gives equal intervals. draws: samples
    of n values with repetition. Raises ValueError without values.
    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    if len(values) == 0:
        raise ValueError("values: found none, wanted at least one")
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    parts = [ordered[rng.integers(0, count, (rows, count))].mean(axis=1) for rows in _blocks(draws, count)]
    low, high = np.quantile(np.concatenate(parts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    # Means of equal values differ from them by rounding.
    mean = fsum(ordered) / count
    return mean, min(low, mean), max(high, mean)


def sign_flip_test(differences: Sequence[float], rng: Generator, draws: int = DRAWS) -> float:
    """Return the two-sided p-value of the hypothesis that two systems are alike, by their differences per question.

    differences: n finite numbers, first minus second system. The p-value is the share of sign patterns whose mean is
    as far from 0 as the one found: of all 2^n where these are no more than draws, else of so many random ones, the
    one found counted among them. Raises ValueError without differences.
    Source: Fisher's randomisation test; Smucker et al. 2007, "A Comparison of Statistical Significance Tests for
    Information Retrieval Evaluation", section 3.1.
    """
    if len(differences) == 0:
        raise ValueError("differences: found none, wanted at least one")
    sizes = np.sort(np.abs(np.asarray(differences, np.float64)))
    found = abs(fsum(differences)) - ROUNDING * sizes.sum()
    sizes = sizes[sizes > 0]
    count = len(sizes)
    if count < 63 and 2**count <= draws:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((1 - 2 * patterns) @ sizes) >= found).mean())
    extreme = sum(
        int((np.abs((1 - 2 * rng.integers(0, 2, (rows, count), np.int8)) @ sizes) >= found).sum())
        for rows in _blocks(draws, count)
    )
    return (extreme + 1) / (draws + 1)


def _blocks(draws: int, count: int) -> Iterator[int]:
    """Yield how many samples of `count` numbers are drawn at a time, `draws` in all."""
    rows = max(BLOCK // count, 1)
    yield from [rows] * (draws // rows)
    if rest := draws % rows:
        yield rest
