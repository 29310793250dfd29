"""A report as data: sections of paragraphs, tables and figures, from which its page and its Markdown are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

from clara.core.figures import Figure


class Cell(NamedTuple):
    """A field of a table."""

    text: str
    note: str = ""
    """A second, smaller line."""
    tone: Literal["", "good", "bad"] = ""


class Table(NamedTuple):
    """Rows under named columns; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: bool = True
    """Whether the other cells are numbers, which stand at the right and are not broken into lines."""
    folded: bool = False
    """Whether a reader has to ask for it."""


class Picture(NamedTuple):
    """A figure and the name of its file, without ending."""

    name: str
    figure: Figure


class Section(NamedTuple):
    """A part of a report under its own heading."""

    title: str
    blocks: tuple[Block, ...]


Block: TypeAlias = str | Table | Picture | Section
"""A string is a paragraph."""


class Report(NamedTuple):
    """A whole report."""

    title: str
    lead: tuple[str, ...]
    """Paragraphs that say what came out."""
    sections: tuple[Section, ...]


def pictures(blocks: tuple[Block, ...]) -> Iterator[Picture]:
    """Yield the pictures of sections and of those within them, in order."""
    for block in blocks:
        if isinstance(block, Picture):
            yield block
        elif isinstance(block, Section):
            yield from pictures(block.blocks)
