"""What a seed draws is the same everywhere: the published values of SplitMix64."""

from __future__ import annotations

from itertools import islice

import pytest

from clara.core.draws import numbers


@pytest.mark.parametrize(
    ("seed", "wanted"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]),
    ],
)
def test_numbers_are_those_of_splitmix64(seed: int, wanted: list[int]) -> None:
    assert list(islice(numbers(seed), 3)) == wanted
