"""A report as data: its pictures are found wherever they stand."""

from __future__ import annotations

from clara.core.figures import Figure
from clara.io.report.document import Cell, Picture, Section, Table, pictures


def test_pictures_are_found_in_order_at_any_depth() -> None:
    drawn = [Picture(name, Figure("lines", name, "x", "y", ())) for name in "abc"]
    table = Table("t", ("x",), ((Cell("1"),),))
    blocks = ("text", drawn[0], Section("s", (table, drawn[1], Section("u", (drawn[2],)))), Section("v", ()))
    assert list(pictures(blocks)) == drawn
