"""Text of PDF files, page by page, by pypdf: within limits of time and size, with one kind of error."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pypdf
from pypdf.errors import DependencyError

from clara.io.corpus.deadline import OutOfTime, within
from clara.io.corpus.passages import Document
from clara.io.corpus.pdf_text import Line, page_text, repaired
from clara.io.corpus.rawtext import Limits, clean, read_bytes
from clara.io.errors import ClaraError

SLOW_PAGES = 3
"""Pages that may run out of time before the rest of the file is given up."""

UNREADABLE = 0.3
"""Share of characters without a meaning from which a text counts as not decoded."""

EM, WORD_GAP = 1000.0, 150.0
"""The width that a font's letters are measured in, and the narrowest gap between words in it."""

TITLE_CHARACTERS = 200
NO_TITLE = re.compile(r"untitled.*|.*\.(?:dvi|tex|docx?|indd|qxd|rtf|odt|fm|pdf|html?|pptx?)|(?:slide|page) \d+", re.I)


def read_pdf(path: Path, limits: Limits | None = None) -> tuple[Document, list[str]]:
    """Return the text of a PDF, with its title and pages, and notes on pages that were left out.

    Raises ClaraError, naming the file, where it cannot be read, is too large, encrypted with a password, damaged, or
    has no text, as a scan has none. No page takes longer than `page_seconds`, as `within` holds it.
    """
    limits = limits or Limits()
    raw = read_bytes(path, limits)
    with _quiet():
        reader, count = _open(path, raw, limits)
        pages, notes = _pages(path, reader, count, limits)
        title = _title(reader, pages, limits.page_seconds)
    text, starts = page_text(pages)
    if not text.strip():
        said = f" ({notes[0]})" if notes else ""
        raise ClaraError(f"{path}: no text in its {count} pages{said}; a scan needs OCR first, as ocrmypdf does it")
    if _unreadable(text) > UNREADABLE:
        raise ClaraError(f"{path}: its fonts do not say what their letters are; OCR it, as ocrmypdf --force-ocr does")
    return Document(text, title, clean(str(path)), starts), notes


def _open(path: Path, raw: bytes, limits: Limits) -> tuple[pypdf.PdfReader, int]:
    """Return the reader of a file and its number of pages."""
    try:
        with within(limits.page_seconds):
            reader = pypdf.PdfReader(io.BytesIO(raw))
            if reader.is_encrypted and not reader.decrypt(""):
                raise ClaraError(f"{path}: encrypted with a password; remove that first, as qpdf --decrypt does")
            count = len(reader.pages)
    except ClaraError:
        raise
    except DependencyError as error:
        raise ClaraError(f"{path}: encrypted with AES; `pip install pypdf[crypto]` lets it be read") from error
    except OutOfTime:
        raise ClaraError(f"{path}: damaged: opening it takes more than {limits.page_seconds:g} s") from None
    except Exception as error:  # a damaged file ends pypdf in any way, RecursionError and MemoryError among them
        raise ClaraError(f"{path}: not a PDF or damaged ({_said(error)})") from error
    if count > limits.max_pages:
        raise ClaraError(f"{path}: {count:,} pages, more than {limits.max_pages:,}; raise --max-pages or split it")
    return reader, count


def _pages(path: Path, reader: pypdf.PdfReader, count: int, limits: Limits) -> tuple[list[list[Line]], list[str]]:
    """Return the lines of each page, and what was wrong with pages that have none for that."""
    pages: list[list[Line]] = []
    notes: list[str] = []
    slow = characters = 0
    for number in range(1, count + 1):
        lines: list[Line] = []
        try:
            with within(limits.page_seconds):
                lines = page_lines(reader.pages[number - 1])
        except OutOfTime:
            slow += 1
            notes.append(f"page {number} left out: it takes more than {limits.page_seconds:g} s")
        except Exception as error:  # as above
            notes.append(f"page {number} left out: damaged ({_said(error)})")
        if slow == SLOW_PAGES:
            raise ClaraError(
                f"{path}: {slow} pages take more than {limits.page_seconds:g} s each; raise --page-seconds"
            )
        characters += sum(len(line.text) for line in lines)
        if characters > limits.max_characters:
            raise ClaraError(
                f"{path}: more than {limits.max_characters:,} characters; raise --max-characters or split it"
            )
        pages.append(lines)
    return pages, notes


def page_lines(page: pypdf.PageObject) -> list[Line]:
    """Return the lines of a page in the order of its content. Raises what pypdf raises."""
    pieces: list[tuple[str, float, float, float]] = []

    def visit(text: str, cm: Sequence[float], tm: Sequence[float], _: Any, size: float) -> None:
        x, y = tm[4] * cm[0] + tm[5] * cm[2] + cm[4], tm[4] * cm[1] + tm[5] * cm[3] + cm[5]
        scale = math.hypot(tm[2] * cm[0] + tm[3] * cm[2], tm[2] * cm[1] + tm[3] * cm[3])
        x, y, size = (value if math.isfinite(value) else 0.0 for value in (x, y, abs(size * scale)))
        pieces.append((text, x, y, size))

    page.extract_text(visitor_text=visit, visitor_operand_before=_widen_gaps)
    lines: list[Line] = []
    line = None
    for text, x, y, size in pieces:
        for i, part in enumerate(text.split("\n")):
            if i and line:
                lines.append(line)
                line = None
            if line:
                line = line._replace(text=line.text + part)
            elif part.strip():
                line = Line(part, x, y, size)
    return [*lines, line] if line else lines


def _widen_gaps(operator: bytes, operands: list[Any], *_: Any) -> None:
    """Make the gap between two words so wide that pypdf sees it, and take the same back after it.

    pypdf takes half a space for a gap, but for a font without a space it may take another letter's width for that.
    """
    if operator == b"TJ" and operands and isinstance(operands[0], list):
        operands[0][:] = [
            part
            for operand in operands[0]
            for part in (
                (operand - EM, EM) if isinstance(operand, int | float) and -EM < operand <= -WORD_GAP else (operand,)
            )
        ]


def _title(reader: pypdf.PdfReader, pages: Sequence[Sequence[Line]], seconds: float) -> str:
    """Return the title that the file says it has, or else the largest letters on its first page of text."""
    try:
        with within(seconds):
            title = " ".join(str(reader.metadata.title or "").split()) if reader.metadata else ""
    except (OutOfTime, Exception):  # as above
        title = ""
    title = repaired(title.removeprefix("Microsoft Word - ").removeprefix("Microsoft PowerPoint - "))
    if title and any(map(str.isalpha, title)) and not NO_TITLE.fullmatch(title):
        return title[:TITLE_CHARACTERS]
    first = next((page for page in pages if page), [])
    named = [line for line in first[:20] if any(map(str.isalpha, line.text))]
    largest = max((line.size for line in named), default=0.0)
    begun = next((i for i, line in enumerate(named) if line.size == largest), 0)
    words: list[str] = []
    for line in named[begun:]:
        if line.size != largest or (words and all(other.size == largest for other in named)):
            break
        words.append(line.text)
    return repaired(" ".join(words))[:TITLE_CHARACTERS]


def _unreadable(text: str) -> float:
    """Return the share of characters that are replacements, for private use, or (cid:12)."""
    solid = sum(map(len, text.split()))
    return (5 * text.count("(cid:") + len(re.findall("[\ufffd\ue000-\uf8ff\x00-\x08]", text))) / max(solid, 1)


def _said(error: Exception) -> str:
    """Return what an exception says in one short line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": ")[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pypdf's messages about damage, logged or warned, to itself."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
