"""PDFs for tests: pages of lines where they are wanted, written by reportlab."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

Row = tuple[float, float, str]
"""Points from the left, points from the bottom, and what stands there."""


def write_pdf(
    path: Path,
    pages: Sequence[Sequence[Row]],
    title: str = "",
    password: str | None = None,
    font: str = "Helvetica",
) -> Path:
    """Return a PDF with rows of text on its pages, A4; a row that begins with "!" has large letters."""
    canvas_of: Any = pytest.importorskip("reportlab.pdfgen.canvas")
    encrypt: Any = pytest.importorskip("reportlab.lib.pdfencrypt")
    lock = None if password is None else encrypt.StandardEncryption(password, ownerPassword="owner", strength=128)
    canvas = canvas_of.Canvas(str(path), pagesize=(595, 842), encrypt=lock, invariant=1)
    if title:
        canvas.setTitle(title)
    for rows in pages:
        for x, y, text in rows:
            canvas.setFont(font, 22 if text.startswith("!") else 11)
            canvas.drawString(x, y, text.removeprefix("!"))
        canvas.showPage()
    canvas.save()
    return path


def column(lines: Sequence[str], x: float = 72, top: float = 760, leading: float = 14) -> list[Row]:
    """Return rows one under another; an empty line is a gap."""
    return [(x, top - leading * i, line) for i, line in enumerate(lines) if line]
