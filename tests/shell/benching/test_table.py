"""The table, the document, and what a comparison with an earlier one shows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clara.io.errors import ClaraError
from clara.shell.benching.options import BenchOptions
from clara.shell.benching.table import (
    Document,
    Old,
    differing,
    fact_lines,
    progress_line,
    ratio_lines,
    read_document,
    table,
)
from clara.shell.benching.timing import Result

FULL = Result(
    group="step",
    case="pretrain",
    seconds=0.25,
    spread=0.1,
    rounds=3,
    first_seconds=12.5,
    rates={"examples": 8.0, "tokens": 12345.0},
    peak_bytes=2_500_000_000,
    flops_per_second=4.5e12,
    matrix_share=0.45,
    facts={"padding": 0.125},
)
SHORT = Result(group="step", case="naive", error="out of memory: no more")


def test_a_row_has_time_spread_first_call_rate_memory_operations_and_share() -> None:
    head, row = table([FULL])
    assert head.split() == [
        "group",
        "case",
        "seconds",
        "spread",
        "first",
        "rate",
        "peak",
        "GB",
        "TFLOP/s",
        "of",
        "matrix",
    ]
    assert row.split() == [
        "step",
        "pretrain",
        "250",
        "ms",
        "10%",
        "12.5",
        "s",
        "12,345",
        "tokens/s",
        "2.5",
        "4.5",
        "45%",
    ]


def test_a_case_that_failed_is_a_row_that_says_so() -> None:
    *_, row = table([FULL, SHORT])
    assert row == "step   naive     out of memory: no more"


def test_columns_stand_under_one_another() -> None:
    head, first, second = table([FULL, msgspec.structs.replace(FULL, case="a longer name", seconds=100.0)])
    assert len(head) == len(first) == len(second)


def test_a_comparison_adds_the_old_time_how_many_times_faster_and_the_old_peak() -> None:
    old = Old(about={}, results=[msgspec.structs.replace(FULL, seconds=0.5), SHORT])
    fresh = msgspec.structs.replace(FULL, case="new")
    head, row, other = table([FULL, fresh], old)
    assert head.endswith("seconds before  times faster  peak before")
    assert row.split()[-4:] == ["500", "ms", "2.00", "2.5"] and other.split()[-3:] == ["–", "–", "–"]


def test_a_document_is_read_from_its_line_or_from_a_saved_output(tmp_path: Path) -> None:
    document = Document(
        about={"device": "cpu"}, options=BenchOptions(), matrix_flops_per_second=1.0, results=[FULL, SHORT]
    )
    line = msgspec.json.encode(document).decode()
    for name, text in (("line.json", line), ("output.txt", f"device    cpu\n\ngroup\n{line}\n")):
        (tmp_path / name).write_text(text)
        assert read_document(str(tmp_path / name)) == Old(about={"device": "cpu"}, results=[FULL, SHORT])


@pytest.mark.parametrize(
    ("text", "said"),
    [("nothing\n", "no JSON line"), ('{"results": 3}', "is not what bench prints"), (None, "cannot be read")],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "old.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ClaraError, match=rf"--compare .*old\.txt: .*{said}"):
        read_document(str(path))


def test_progress_tells_the_facts_too() -> None:
    assert progress_line(FULL).endswith("45%  padding 0.125") and progress_line(FULL).startswith(
        "step/pretrain  250 ms"
    )


def test_facts_are_lines_of_the_results_that_have_some() -> None:
    assert fact_lines([FULL, SHORT]) == ["step/pretrain: padding 0.125"]


def test_ratios_are_lines() -> None:
    assert ratio_lines({"a over b": 1.5, "long a over b": 20.0}) == [
        "a over b       1.50 times",
        "long a over b  20.00 times",
    ]


def test_what_differs_from_the_old_run_is_noted_but_not_the_code() -> None:
    old = Old(about={"device": "gpu", "code": "1", "versions": "mlx 1", "shapes": "2 rows"}, results=[])
    notes = differing({"device": "cpu", "code": "2", "versions": "mlx 2", "shapes": "2 rows"}, old)
    assert notes == ["note      device is 'cpu' here and was 'gpu' there"]
