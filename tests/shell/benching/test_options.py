"""Flags of the benchmarks: one for each option, checked by its bounds."""

from __future__ import annotations

from typing import Any

import pytest

from clara.io.errors import ClaraError
from clara.shell.benching.options import (
    SHOWN,
    BenchOptions,
    add_flags,
    destinations,
    read_options,
    store_sizes,
    to_bench_options,
)


def test_without_flags_the_defaults_hold() -> None:
    assert read_options("bench", "", []) == BenchOptions()


def test_flags_reach_the_options_also_those_of_sections() -> None:
    options = read_options("bench", "", ["--size", "tiny", "--rows", "3", "--rank", "8", "--only", "step"])
    assert (options.size, options.rows, options.lora.rank, options.only) == ("tiny", 3, 8, "step")
    assert options.lora.dropout == 0.0


def test_a_value_out_of_bounds_is_named() -> None:
    with pytest.raises(ClaraError, match=r"rounds"):
        read_options("bench", "", ["--rounds", "0"])


def test_every_option_has_a_flag_and_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options("bench", "about", ["--help"])
    text = capsys.readouterr().out
    assert [
        name
        for name in BenchOptions.__struct_fields__
        if name not in ("lora", "compute") and f"--{name.replace('_', '-')}" not in text
    ] == []
    assert "[smollm2]" in text and "--grad-checkpoint" in text
    assert "--shard" not in text, "no case cuts the base"


def test_options_can_be_left_to_pytest() -> None:
    added: list[Any] = []
    add_flags(lambda flag, **how: added.append(how["dest"]), without=SHOWN)
    assert added == destinations(SHOWN) and "only" not in added and "lora/rank" in added
    assert to_bench_options(dict.fromkeys(added)) == BenchOptions()


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (BenchOptions(size="tiny"), [1000]),
        (BenchOptions(), [1000, 10_000, 100_000]),
        (BenchOptions(memories="5, 7"), [5, 7]),
    ],
)
def test_store_sizes_are_numbers_with_commas(options: BenchOptions, sizes: list[int]) -> None:
    assert store_sizes(options) == sizes


@pytest.mark.parametrize("text", ["0", "many", "5,,7", "-1"])
def test_other_store_sizes_are_refused(text: str) -> None:
    with pytest.raises(ClaraError, match=r"--memories .*wanted whole numbers"):
        store_sizes(BenchOptions(memories=text))
