"""Text and titles of HTML, Markdown and plain text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

DROPPED = ("script", "style", "template", "noscript", "svg")
PARAGRAPH = re.compile(
    "address|article|aside|blockquote|body|details|dialog|div|dl|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr|"
    "html|main|nav|ol|p|pre|section|table|ul"
)
LINE = re.compile("br|caption|dd|dt|legend|li|option|summary|tr")
CELL = re.compile("td|th")
TITLE_CHARACTERS = 200

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.{0,10000}?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*[\"']?(.{1,300}?)[\"']?[ \t]*$", re.MULTILINE)
_HEADING = re.compile(r"^#{1,2}[ \t]+(\S.{0,300})$|^(\S.{0,300})\n=+[ \t]*$", re.MULTILINE)
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w-]{1,40})", re.IGNORECASE)


class _Reader(HTMLParser):
    """Gathers the text of a page: pieces in order, with what separates them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.title: list[str] = []
        self.heading: list[str] = []
        self.open: dict[str, int] = {}

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self._paragraph(tag)
        for kind, separator in ((LINE, "\n"), (CELL, "\t")):
            if kind.fullmatch(tag):
                self.pieces.append(separator)
        if tag in DROPPED or tag in ("title", "h1", "pre"):
            self.open[tag] = self.open.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        self._paragraph(tag)
        if self.open.get(tag):
            self.open[tag] -= 1

    def handle_data(self, data: str) -> None:
        if any(self.open.get(tag) for tag in DROPPED):
            return
        if self.open.get("title"):
            self.title.append(data)
            return
        if self.open.get("h1"):
            self.heading.append(data)
        self.pieces.append(data if self.open.get("pre") else re.sub(r"\s+", " ", data))

    def _paragraph(self, tag: str) -> None:
        if PARAGRAPH.fullmatch(tag):
            self.pieces.append("\n\n")


def html_text(page: str) -> tuple[str, str]:
    """Return the text and the title of an HTML page: block elements are paragraphs, scripts and styles are left out."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    # A single space before a line is what is left of the white space between two elements, not an indent.
    lines = [line.removeprefix(" ") if line[1:2].strip() else line for line in "".join(reader.pieces).split("\n")]
    lines = [line.rstrip().lstrip("\t") for line in lines]
    body = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    return "\n".join(body).strip(), short("".join(reader.title)) or short("".join(reader.heading))


def html_charset(raw: bytes) -> str:
    """Return the encoding that an HTML page says it is in; empty where it says none."""
    found = _CHARSET.search(raw[:4096])
    return found[1].decode("ascii") if found else ""


def markdown_title(text: str) -> str:
    """Return the title in a Markdown document's front matter, or else its first large heading."""
    if (front := _FRONT_MATTER.match(text)) and (found := _FRONT_TITLE.search(front[1])):
        return short(found[1])
    heading = _HEADING.search(text, front.end() if front else 0)
    return short((heading[1] or heading[2]).rstrip("# ")) if heading else ""


def plain_title(text: str) -> str:
    """Return the first line of a text where it stands alone and is short; else nothing."""
    first, _, rest = text.lstrip().partition("\n")
    alone = rest.startswith("\n") and len(first) <= TITLE_CHARACTERS // 2
    return short(first) if alone and not first.rstrip().endswith((".", ",", ";")) else ""


def short(text: str) -> str:
    """Return a title in one line, cut where it is very long."""
    return " ".join(text.split())[:TITLE_CHARACTERS]
