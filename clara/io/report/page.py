"""Writes a report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from clara.io.report.document import Block, Cell, Picture, Report, Section, Table
from clara.io.report.style import FIGURE_RULES, PAGE_RULES, themed
from clara.io.report.svg import draw, escape

LONG = 40
"""Characters from which on a cell is a text and no name."""


def page(report: Report) -> str:
    """Return the page of a report. Every text of it is escaped; light or dark is what the reader's system prefers."""
    links = (f'<li><a href="#part-{i}">{escape(s.title)}</a></li>' for i, s in enumerate(report.sections, 1))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(report.title)}</title>",
        f"<style>\n{themed(':root')}{PAGE_RULES}{FIGURE_RULES}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{escape(report.title)}</h1>",
        *(f'<p class="lead">{escape(text)}</p>' for text in report.lead),
        "</header>",
        f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>',
        "<main>",
        *(line for i, part in enumerate(report.sections, 1) for line in section(part, 2, f' id="part-{i}"')),
        "</main>",
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(parts)


def section(part: Section, level: int, anchor: str = "") -> Iterator[str]:
    """Yield the lines of a section; pictures that follow one another stand side by side where there is room."""
    yield f"<section{anchor}>"
    yield f"<h{level}>{escape(part.title)}</h{level}>"
    for drawn, blocks in groupby(part.blocks, lambda block: isinstance(block, Picture)):
        if drawn:
            yield '<div class="figures">'
        for block in blocks:
            yield from written(block, level)
        if drawn:
            yield "</div>"
    yield "</section>"


def written(block: Block, level: int) -> Iterator[str]:
    """Yield the lines of a block in a section of a heading level."""
    if isinstance(block, str):
        yield f"<p>{escape(block)}</p>"
    elif isinstance(block, Section):
        yield from section(block, level + 1)
    elif isinstance(block, Picture):
        yield from picture(block)
    elif block.folded:
        yield f"<details><summary>{escape(block.caption)}</summary>"
        yield from table(block)
        yield "</details>"
    else:
        yield from table(block)


def picture(block: Picture) -> Iterator[str]:
    """Yield the lines of a figure, drawn in the page itself."""
    note = f"<small>{escape(block.figure.note)}</small>" if block.figure.note else ""
    yield f"<figure><figcaption>{escape(block.figure.title)}{note}</figcaption>"
    yield draw(block.figure).rstrip()
    yield "</figure>"


def table(block: Table) -> Iterator[str]:
    """Yield the lines of a table, in a box that scrolls by itself where it is too wide."""
    kind = "numbers" if block.numbers else "prose"
    yield f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(block.caption)}">'
    yield f'<table class="{kind}"><caption><span>{escape(block.caption)}</span></caption>'
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in block.columns)
    yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for name, *cells in block.rows:
        rest = "".join(f"<td{extent(each)}>{inside(each)}</td>" for each in cells)
        yield f'<tr><th scope="row"{extent(name)}>{inside(name)}</th>{rest}</tr>'
    yield "</tbody></table></div>"


def extent(cell: Cell) -> str:
    """Return the attribute of a cell whose text needs room to be read."""
    return ' class="long"' if len(cell.text) + len(cell.note) > LONG else ""


def inside(cell: Cell) -> str:
    """Return the content of a cell."""
    text = f'<span class="{cell.tone}">{escape(cell.text)}</span>' if cell.tone else escape(cell.text)
    return text + (f" <small>{escape(cell.note)}</small>" if cell.note else "")
