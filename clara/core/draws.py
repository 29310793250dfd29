"""What a seed draws."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count


def numbers(seed: int) -> Iterator[int]:
    """Yield a sequence of numbers in [0, 2^64) that seed draws: SplitMix64 (Steele, Lea and Flood, 2014)."""
    mask = 2**64 - 1
    for i in count(1):
        z = (seed + i * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)
