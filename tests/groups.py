"""A process among several that is not there: enough of one for what is cut by its place, and nothing is exchanged."""

from __future__ import annotations


class Member:
    """Stands for MLX's group as one of its processes sees it."""

    def __init__(self, rank: int, size: int) -> None:
        self.place = rank, size

    def rank(self) -> int:
        """Return which process this is."""
        return self.place[0]

    def size(self) -> int:
        """Return how many there are."""
        return self.place[1]
