"""The page of a report: whole and valid, nothing fetched, nothing run, every text escaped, tables that can be read."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from clara.core.figures import Figure, Series, points
from clara.io.report.document import Cell, Picture, Report, Section, Table
from clara.io.report.page import page

NASTY = "<script>alert('x')</script>\"&<img src=x onerror=alert(1)>\x00"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Gathers the elements of a page with their attributes, and checks that each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def figure(title: str = "Loss") -> Figure:
    """Return a figure of one line."""
    return Figure("lines", title, "step", "nats", (Series("training", points([(1, 2), (2, 1)])),), note="a note")


TABLE = Table(
    "Scores", ("system", "EM"), ((Cell("memory"), Cell("0.500", "0.400 to 0.600")), (Cell("text"), Cell("–")))
)


def report(*blocks: object) -> Report:
    """Return a report of one section."""
    return Report("Title", ("What came out.",), (Section("Part", blocks),))  # type: ignore[arg-type]


def test_a_page_is_whole_and_says_what_it_is() -> None:
    text = page(report("A paragraph.", TABLE, Picture("loss", figure())))
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>") and found.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in found.all("meta")
    assert any(each.get("name") == "viewport" for each in found.all("meta"))
    assert {"Title", "What came out.", "Part", "A paragraph.", "a note"} <= set(found.texts)
    assert [len(found.all(tag)) for tag in ("h1", "h2", "main", "nav", "svg", "figure")] == [1] * 6


def test_every_text_is_escaped() -> None:
    cells = ((Cell(NASTY, NASTY, "good"), Cell(NASTY)),)
    table = Table(NASTY, (NASTY, NASTY), cells, numbers=False)
    bars = Figure("bars", NASTY, NASTY, NASTY, (Series(NASTY, points([(0, 1)])),), NASTY, (NASTY,))
    blocks = (NASTY, table, table._replace(folded=True), Picture("p", bars), Section(NASTY, (NASTY,)))
    found = Page(page(Report(NASTY, (NASTY,), (Section(NASTY, blocks),))))
    assert found.all("script") == found.all("img") == []
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert NASTY.replace("\x00", "\ufffd") in found.texts


def test_a_page_needs_nothing_from_outside() -> None:
    text = page(report(TABLE, Picture("loss", figure()), "see https://example.org/"))
    found = Page(text)
    addresses = [a[name] for _, a in found.elements for name in ("src", "href", "xlink:href", "data") if name in a]
    assert addresses == ["#part-1"] and found.all("link") == found.all("script") == []
    assert not re.search(r"url\(|@import", text)
    assert [each for _, a in found.elements for each in a.values() if "http" in str(each)] == []


def test_links_lead_to_their_sections() -> None:
    text = page(Report("t", (), (Section("One", ("a",)), Section("Two", ("b",)))))
    found = Page(text)
    assert [each["href"] for each in found.all("a")] == [f"#{each['id']}" for each in found.all("section")]


def test_a_table_has_heads_with_a_scope_and_scrolls_in_its_own_box() -> None:
    found = Page(page(report(TABLE)))
    assert [each["scope"] for each in found.all("th")] == ["col", "col", "row", "row"]
    box = next(each for each in found.all("div") if each.get("class") == "scroll")
    assert box["tabindex"] == "0" and box["aria-label"] == "Scores" and box["role"] == "region"
    assert {"0.500", "0.400 to 0.600", "–", "memory"} <= {text.strip() for text in found.texts}


def test_a_folded_table_is_within_details() -> None:
    assert Page(page(report(TABLE))).all("details") == []
    found = Page(page(report(TABLE._replace(folded=True))))
    assert len(found.all("details")) == len(found.all("summary")) == len(found.all("table")) == 1


def test_a_figure_has_a_caption_and_says_what_it_shows() -> None:
    found = Page(page(report(Picture("loss", figure()))))
    (drawn,) = found.all("svg")
    assert drawn["role"] == "img" and "training: at 1 2, at 2 1" in str(drawn["aria-label"])
    assert len(found.all("figcaption")) == 1


def test_pictures_that_follow_one_another_share_a_row() -> None:
    first, second, third = (Picture(name, figure(name)) for name in "abc")
    found = Page(page(report(first, second, "between", third)))
    assert [each.get("class") for each in found.all("div")] == ["figures", "figures"]


def test_headings_go_down_one_level_at_a_time() -> None:
    found = Page(page(report(Section("deeper", (Section("deepest", ()),)))))
    assert [tag for tag, _ in found.elements if re.fullmatch(r"h\d", tag)] == ["h1", "h2", "h3", "h4"]


def test_only_long_cells_take_room() -> None:
    rows = ((Cell("memory"), Cell("x" * 100)),)
    found = Page(page(report(Table("t", ("system", "answer"), rows, numbers=False))))
    assert [each.get("class") for each in (*found.all("th"), *found.all("td"))] == [None, None, None, "long"]
