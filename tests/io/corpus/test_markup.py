"""HTML, Markdown and plain text: what is text, what is a paragraph, and what the title is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.io.corpus.deadline import OutOfTime, within
from clara.io.corpus.markup import html_charset, html_text, markdown_title, plain_title

PAGE = """<!DOCTYPE html><html><head><title> Lamps &amp;
 Doors </title><style>p { color: red }</style></head>
<body><h1>On lamps</h1><p>One
 lamp <b>burns</b>&nbsp;&lt;red&gt;.<br/>Two do.</p> <p> <i>Three</i> too.</p>
<ul>
 <li>oil</li>
 <li>wick
</ul><script>alert('<p>no</p>')</script><template><p>no</p></template>
<table><tr><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td></tr></table><pre>x
  y</pre><!-- no --></body></html>"""


def test_blocks_are_paragraphs_and_scripts_are_not_text() -> None:
    text, title = html_text(PAGE)
    assert text.split("\n\n") == [
        "On lamps",
        "One lamp burns <red>.\nTwo do.",
        "Three too.",
        "oil\nwick",
        "1\t2\n3\t4",
        "x\n  y",
    ]
    assert title == "Lamps & Doors"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<p>a</p><h1>A <i>lamp</i></h1>", "A lamp"),
        ("<title></title><h1>A lamp</h1>", "A lamp"),
        ("<p>a</p>", ""),
        (f"<title>{'lamp ' * 99}</title>", ("lamp " * 99)[:200]),
    ],
)
def test_a_page_without_a_title_has_that_of_its_heading(page: str, expected: str) -> None:
    assert html_text(page)[1] == expected


@pytest.mark.parametrize("page", ["plain", "a < b and c > d", "<p>open <b>tags", "&#0;&#xD800;&bad;&amp", "<a href='"])
def test_bad_html_is_text_as_far_as_it_goes(page: str) -> None:
    text, title = html_text(page)
    assert title == "" and "<p>" not in text


@given(
    st.lists(
        st.sampled_from(["<p>", "</p>", "<pre>", "<", ">", "<!--", "&#", "lamp", "\n\t ", "<td>"]) | st.text(max_size=4)
    )
)
def test_any_page_gives_text_without_gaps_of_more_than_a_line(parts: list[str]) -> None:
    text, _ = html_text("".join(parts))
    assert text == text.strip() and "\n\n\n" not in text


def test_a_hostile_page_ends_by_the_clock_at_the_latest() -> None:
    begun = time.perf_counter()
    try:
        with within(0.5):
            html_text("<!--" * 500_000)
    except OutOfTime:
        pass
    assert time.perf_counter() - begun < 3
    assert html_text("<p>lamp " * 100_000)[0].count("lamp") == 100_000


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'<meta charset="iso-8859-2">', "iso-8859-2"),
        (b'<META http-equiv="Content-Type" content="text/html; charset=koi8-r">', "koi8-r"),
        (b"<p>charset=utf-8</p>", ""),
        (b"\xff\xfe", ""),
    ],
)
def test_the_encoding_that_a_page_says_is_found(raw: bytes, expected: str) -> None:
    assert html_charset(raw) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Lamps #\n\ntext", "Lamps"),
        ("text\n\n## On *lamps*\n", "On *lamps*"),
        ("Lamps\n=====\ntext", "Lamps"),
        ('---\ntitle: "On lamps"\nauthor: x\n---\n# Other', "On lamps"),
        ("---\nauthor: x\n---\n# Lamps", "Lamps"),
        ("#tag\n### small", ""),
        ("", ""),
    ],
)
def test_the_title_of_markdown(text: str, expected: str) -> None:
    assert markdown_title(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nOn Lamps\n\nThey burn.", "On Lamps"),
        ("On lamps\nand doors", ""),
        ("They burn.\n\nSo they do.", ""),
        ("word " * 40 + "\n\ntext", ""),
        ("On Lamps", ""),
        ("", ""),
    ],
)
def test_the_title_of_plain_text_is_a_short_line_that_stands_alone(text: str, expected: str) -> None:
    assert plain_title(text) == expected


@pytest.mark.parametrize(
    "text", ["# " * 500_000, "=\n" * 500_000, "---\n" * 300_000, "#" * 1_000_000, "a" * 10_000_000]
)
def test_titles_of_megabytes_are_found_at_once(text: str) -> None:
    begun = time.perf_counter()
    assert len(markdown_title(text)) + len(plain_title(text)) <= 400
    assert time.perf_counter() - begun < 2
