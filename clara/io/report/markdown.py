"""Writes a report as Markdown; its figures are files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from clara.core.figures import spoken
from clara.io.report.document import Block, Cell, Picture, Report, Section, Table
from clara.io.report.svg import UNFIT

ACTIVE = re.compile(r"[\\`*>|\[\]&~$#]|<(?! )|(?<!\w)_|_(?!\w)")
"""What could mean something else than itself: an underscore within a word cannot, nor can "<" before a space."""


def markdown(report: Report, images: Mapping[str, str]) -> str:
    """Return a report as Markdown, every text of it escaped. images: address of each picture's file, by its name."""
    lines = [f"# {plain(report.title)}", *(plain(text) for text in report.lead)]
    for part in report.sections:
        lines += section(part, 2, images)
    return "\n\n".join(lines) + "\n"


def section(part: Section, level: int, images: Mapping[str, str]) -> Iterator[str]:
    """Yield the blocks of a section under its heading."""
    yield f"{'#' * level} {plain(part.title)}"
    for block in part.blocks:
        yield from written(block, level, images)


def written(block: Block, level: int, images: Mapping[str, str]) -> Iterator[str]:
    """Yield the paragraphs of a block in a section of a heading level."""
    if isinstance(block, str):
        yield plain(block)
    elif isinstance(block, Section):
        yield from section(block, level + 1, images)
    elif isinstance(block, Picture):
        yield f"![{plain(spoken(block.figure))}]({images[block.name]})"
        yield f"**{plain(block.figure.title)}** {plain(block.figure.note)}".rstrip()
    else:
        yield f"**{plain(block.caption)}**"
        yield table(block)


def table(block: Table) -> str:
    """Return a table, each row on one line; numbers stand under one another, so that it can be read as it is."""
    side = "---:" if block.numbers else "---"
    rows = [[plain(name) for name in block.columns], ["---", *[side] * (len(block.columns) - 1)]]
    rows += [[cell(value) for value in row] for row in block.rows]
    if block.numbers:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
        rows[1] = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def cell(value: Cell) -> str:
    """Return a cell, its second line in brackets."""
    return plain(value.text) + (f" ({plain(value.note)})" if value.note else "")


def plain(text: str) -> str:
    """Return a text on one line that Markdown shows as it is."""
    return ACTIVE.sub(r"\\\g<0>", " ".join(UNFIT.sub("\ufffd", text).split()))
