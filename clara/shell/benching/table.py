"""Results as lines of a table, as one JSON document, and beside those of another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from clara.io.errors import ClaraError
from clara.shell.benching.options import BenchOptions
from clara.shell.benching.timing import Result

NONE = "–"


class Document(Struct, frozen=True, kw_only=True):
    """All that a run of the benchmarks has to say; the last line that it prints."""

    about: dict[str, str]
    """Device, versions, base and shapes, as the heading has them."""
    options: BenchOptions
    matrix_flops_per_second: float
    results: list[Result]
    ratios: dict[str, float] = {}


class Old(Struct, frozen=True, kw_only=True):
    """What a comparison needs of an earlier document, whatever options its version had."""

    about: dict[str, str]
    results: list[Result]


def read_document(source: str) -> Old:
    """Return the document in a file: its only line, or the last one of a saved output. Raises ClaraError if none is."""
    try:
        lines = Path(source).expanduser().read_text("utf-8", errors="replace").strip().splitlines()
    except OSError as error:
        raise ClaraError(f"--compare {source}: cannot be read ({error.strerror})") from error
    for line in reversed(lines):
        if line.lstrip().startswith("{"):
            try:
                return msgspec.json.decode(line, type=Old)
            except msgspec.DecodeError as error:
                raise ClaraError(
                    f"--compare {source}: its last JSON line is not what bench prints ({error})"
                ) from error
    raise ClaraError(f"--compare {source}: no JSON line in it; wanted the saved output of clara.shell.bench")


def table(results: Sequence[Result], old: Old | None = None) -> list[str]:
    """Return the lines of a table with a row for each result; of an old document also its numbers and the ratios."""
    before = {(each.group, each.case): each for each in old.results if not each.error} if old else {}
    names = ["group", "case", "seconds", "spread", "first", "rate", "peak GB", "TFLOP/s", "of matrix"]
    names += ["seconds before", "times faster", "peak before"] if old else []
    rows = [names]
    for each in results:
        row = [each.group, each.case, *numbers(each)]
        if old and not each.error:
            row += compared(each, before.get((each.group, each.case)))
        rows.append(row)
    whole = [row for row in rows if len(row) > 3]
    widths = [max(len(row[i]) for row in whole) for i in range(len(names))]
    widths[:2] = [max(len(row[i]) for row in rows) for i in range(2)]
    return [
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def numbers(result: Result) -> list[str]:
    """Return the cells of a row; of a case that failed, one that says why."""
    if result.error:
        return [result.error]
    unit, rate = next(reversed(result.rates.items()), ("", 0.0))
    return [
        seconds(result.seconds),
        f"{result.spread:.0%}" if result.rounds > 1 else NONE,
        seconds(result.first_seconds) if result.first_seconds else NONE,
        f"{digits(rate)} {unit}/s" if unit else NONE,
        digits(result.peak_bytes / 1e9) if result.peak_bytes else NONE,
        digits(result.flops_per_second / 1e12) if result.flops_per_second else NONE,
        f"{result.matrix_share:.0%}" if result.matrix_share else NONE,
    ]


def compared(new: Result, old: Result | None) -> list[str]:
    """Return the cells that compare a result with an earlier one of the same case."""
    if old is None:
        return [NONE] * 3
    return [
        seconds(old.seconds),
        f"{old.seconds / new.seconds:.2f}" if new.seconds else NONE,
        digits(old.peak_bytes / 1e9),
    ]


def seconds(value: float) -> str:
    """Return a time in seconds or, of less than one, in milliseconds."""
    return f"{digits(value)} s" if value >= 1 else f"{digits(value * 1e3)} ms"


def digits(value: float) -> str:
    """Return a number with three digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def progress_line(result: Result) -> str:
    """Return what is said of a case when it is done."""
    facts = "  ".join(f"{name} {digits(value)}" for name, value in result.facts.items())
    return "  ".join([f"{result.group}/{result.case}", *numbers(result), *([facts] if facts else [])])


def fact_lines(results: Sequence[Result]) -> list[str]:
    """Return a line for each result that has more to tell than its row."""
    return [
        f"{each.group}/{each.case}: " + ", ".join(f"{name} {digits(value)}" for name, value in each.facts.items())
        for each in results
        if each.facts
    ]


def ratio_lines(ratios: Mapping[str, float]) -> list[str]:
    """Return a line for each ratio."""
    width = max(map(len, ratios), default=0)
    return [f"{what.ljust(width)}  {value:.2f} times" for what, value in ratios.items()]


def differing(about: Mapping[str, str], old: Old) -> list[str]:
    """Return notes on what else differs between a run and the one that it is compared with."""
    return [
        f"note      {name} is {value!r} here and was {old.about.get(name, 'unknown')!r} there"
        for name, value in about.items()
        if name not in ("versions", "code") and old.about.get(name) != value
    ]
