"""A report as Markdown: the same content, every text as it is, one line a row."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.figures import Figure, Series, points
from clara.io.report.document import Cell, Picture, Report, Section, Table
from clara.io.report.markdown import markdown, plain

FIGURE = Figure("lines", "Loss", "step", "nats", (Series("training", points([(1, 2)])),), note="a note")
TABLE = Table("Scores", ("system", "EM"), ((Cell("memory_retrieved"), Cell("0.500", "0.400 to 0.600")),))


def test_a_report_has_its_headings_paragraphs_tables_and_figures() -> None:
    inner = Section("Inner", ("text", TABLE._replace(numbers=False)))
    text = markdown(
        Report("Title", ("Lead.",), (Section("Part", (TABLE, Picture("loss", FIGURE), inner)),)), {"loss": "f/loss.png"}
    )
    assert text.split("\n\n") == [
        "# Title",
        "Lead.",
        "## Part",
        "**Scores**",
        f"| system           | {'EM':>22} |\n| {'-' * 16} | {'-' * 21}: |\n"
        "| memory_retrieved | 0.500 (0.400 to 0.600) |",
        "![Loss. nats over step. training: at 1 2.](f/loss.png)",
        "**Loss** a note",
        "### Inner",
        "text",
        "**Scores**",
        "| system | EM |\n| --- | --- |\n| memory_retrieved | 0.500 (0.400 to 0.600) |\n",
    ]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("memory_retrieved", "memory_retrieved"),
        ("<script>", r"\<script\>"),
        ("p < 0.001", "p < 0.001"),
        ("a|b", r"a\|b"),
        ("*x* _y_ `z` [a](b)", r"\*x\* \_y\_ \`z\` \[a\](b)"),
        ("two\nlines\t here ", "two lines here"),
        ("&amp; \\", r"\&amp; \\"),
        ("\x00", "\ufffd"),
    ],
)
def test_texts_are_shown_as_they_are(text: str, written: str) -> None:
    assert plain(text) == written


@given(text=st.text())
def test_no_text_breaks_a_table(text: str) -> None:
    written = plain(text)
    assert "\n" not in written and not re.search(r"(?<!\\)(?:\\\\)*(?:[|`]|<(?! ))", written)
    assert (
        re.sub(r"\\([\\`*<>|\[\]&~$#_])", r"\1", written).split()
        == "".join(
            c if c in "\t\n\r" or " " <= c < "\ud800" or "\ue000" <= c < "\ufffe" or c > "\uffff" else "\ufffd"
            for c in text
        ).split()
    )
