"""Few widths: which are chosen, and which one a length is padded to."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.widths import choose_widths, fit

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("length", "widths", "expected"),
    [(5, (), 8), (8, (), 8), (9, (), 16), (0, (), 8), (5, (8, 24), 8), (9, (8, 24), 24), (25, (8, 24), 32)],
)
def test_a_length_takes_the_first_width_that_holds_it_or_else_a_multiple(
    length: int, widths: tuple[int, ...], expected: int
) -> None:
    assert fit(length, 8, widths) == expected


@given(st.integers(0, 500), st.integers(1, 64))
def test_without_widths_it_is_the_smallest_multiple(length: int, multiple: int) -> None:
    size = fit(length, multiple)
    assert size % multiple == 0 and size >= max(length, 1) and size - multiple < max(length, 1)


def padded(rows: list[int], widths: tuple[int, ...]) -> int:
    return sum(fit(length, 8, widths) for length in rows)


@given(lengths, st.integers(1, 5))
def test_no_other_widths_pad_less(rows: list[int], count: int) -> None:
    widths = choose_widths(rows, count, 8)
    every = sorted({fit(length, 8) for length in rows})
    assert list(widths) == sorted(set(widths)) and set(widths) <= set(every)
    assert len(widths) <= count and widths[-1] == every[-1]
    others = combinations(every[:-1], min(count, len(every)) - 1)
    assert padded(rows, widths) == min(padded(rows, (*other, every[-1])) for other in others)


def test_as_many_widths_as_there_are_multiples_pad_nothing_more() -> None:
    rows = [3, 9, 17, 40, 40, 41]
    assert choose_widths(rows, 9, 8) == (8, 16, 24, 40, 48)


def test_widths_are_where_most_rows_are() -> None:
    assert choose_widths([10] * 50 + [30, 31, 200], 3, 8) == (16, 32, 200)
