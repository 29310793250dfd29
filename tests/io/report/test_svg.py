"""Figures as SVG: valid, everything within the picture, a mark for each value, and readable without its page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.core.figures import Figure, Point, Series, points
from clara.io.report.style import FIGURE_RULES, LIGHT
from clara.io.report.svg import HEIGHT, WIDTH, draw, escape, write_svg

SVG = "{http://www.w3.org/2000/svg}"
anything = st.floats(width=64) | st.integers(0, 1000).map(float)
names = st.text(max_size=30)
drawn_points = st.lists(st.builds(Point, anything, anything, anything, anything), max_size=6).map(tuple)


def lines(*series: Series, **changes: object) -> Figure:
    """Return a figure of lines."""
    return Figure("lines", "Loss", "step", "nats", series)._replace(**changes)


def curve(name: str, *values: tuple[float, float], style: int = 0) -> Series:
    """Return a series without intervals."""
    return Series(name, points(values), style)


def parsed(figure: Figure, **how: int) -> ElementTree.Element:
    """Return the picture of a figure as it stands alone."""
    return ElementTree.fromstring(draw(figure, alone=True, **how))


def polylines(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """Return the points of each line in a picture."""
    found = (line.attrib["points"].split() for line in root.iter(f"{SVG}polyline"))
    return [[tuple(map(float, point.split(","))) for point in line] for line in found]  # type: ignore[misc]


def marks(root: ElementTree.Element, tag: str = "path") -> list[ElementTree.Element]:
    """Return the marks of values in a picture."""
    return [each for each in root.iter(f"{SVG}{tag}") if "mark" in each.attrib.get("class", "").split()]


def texts(root: ElementTree.Element) -> list[str]:
    """Return the texts of a picture."""
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_a_figure_has_a_line_for_each_series_and_a_mark_for_each_value() -> None:
    root = parsed(lines(curve("training", (1, 4), (2, 2), (3, 1)), curve("held-out", (0, 5), (3, 2), style=1)))
    assert [len(line) for line in polylines(root)] == [3, 2] and len(marks(root)) == 5
    assert {"Loss", "training", "held-out", "step", "nats"} <= set(texts(root))
    assert marks(root)[0][0].text == "training, at 1 4"


def test_a_colour_that_comes_again_has_dashes() -> None:
    root = parsed(lines(curve("first", (1, 4), (2, 2)), curve("ninth", (1, 3), (2, 1), style=len(LIGHT.series))))
    looks = [line.attrib["class"] for line in root.iter(f"{SVG}polyline")]
    assert looks == ["s0 line", "s0 line dashed"] and ".dashed{stroke-dasharray" in FIGURE_RULES


def test_smaller_is_lower_and_later_is_further_right() -> None:
    ((first, second, third),) = polylines(parsed(lines(curve("a", (0, 4), (5, 2), (10, 1)))))
    assert first[0] < second[0] < third[0] and second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[1] < second[1] < third[1], "y grows downwards"
    assert second[1] - first[1] == pytest.approx(2 * (third[1] - second[1]), abs=0.3)


@settings(max_examples=120)
@given(
    series=st.lists(st.builds(Series, names, drawn_points, st.integers(0, 20)), max_size=4).map(tuple),
    kind=st.sampled_from(["lines", "bars", "dots"]),
    powers=st.booleans(),
    title=names,
)
def test_every_picture_is_valid_and_holds_all_of_its_marks(
    series: tuple[Series, ...], kind: str, powers: bool, title: str
) -> None:
    if kind == "bars":
        series = tuple(s._replace(points=tuple(p._replace(x=i) for i, p in enumerate(s.points))) for s in series)
    figure = Figure("lines", title, title, title, series, categories=("a",) * 6 if kind == "bars" else ())
    text = draw(figure._replace(kind=kind, powers=powers and kind == "lines"), alone=True)
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert not re.search(r"\b(?:nan|inf)\b", "".join(re.findall(r'(?:d|points|transform|x|y|width)="[^"]*"', text)))
    for line in polylines(root):
        assert all(0 <= x <= width and 0 <= y <= height for x, y in line)
    for mark in marks(root):
        x, y = map(float, re.findall(r"-?[\d.]+", mark.attrib["transform"]))
        assert 0 <= x <= width and 0 <= y <= height
    for bar in marks(root, "rect"):
        x, y, wide = (float(bar.attrib[name]) for name in ("x", "y", "width"))
        assert 0 <= x <= x + wide <= width and 0 <= y <= height


def test_bars_are_as_long_as_their_values_and_begin_at_zero() -> None:
    values = points([(0, 0.5), (1, 0.25), (2, 1.0)])
    root = parsed(Figure("bars", "EM", "system", "mean", (Series("EM", values),), categories=("a", "b", "c"), top=1))
    bars = marks(root, "rect")
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len({bar.attrib["x"] for bar in bars}) == 1
    assert [width / widths[2] for width in widths] == pytest.approx([0.5, 0.25, 1.0], abs=0.01)
    assert {"a", "b", "c", "0.500", "0.250", "1.000", "0", "1"} <= set(texts(root))


def test_a_bar_below_zero_ends_there() -> None:
    root = parsed(Figure("bars", "t", "x", "y", (curve("s", (0, -1), (1, 1)),), categories=("a", "b")))
    below, above = ((float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in marks(root, "rect"))
    assert sum(below) == pytest.approx(above[0], abs=0.11)


@pytest.mark.parametrize("kind", ["lines", "bars"])
def test_intervals_are_drawn_where_there_are_some(kind: str) -> None:
    series = Series("s", (Point(0, 0.5, 0.25, 0.75), Point(1, 0.5, 0.5, 0.5)))
    root = parsed(Figure("lines", "t", "x", "y", (series,), categories=("a", "b"))._replace(kind=kind))
    ranges = [each for each in root.iter(f"{SVG}path") if {"range", "spread"} & set(each.attrib["class"].split())]
    assert len(ranges) == 1


def test_series_with_intervals_stand_beside_one_another() -> None:
    same = tuple(Series(f"s{i}", (Point(1, 0.5, 0.4, 0.6), Point(2, 0.5, 0.4, 0.6)), i) for i in range(3))
    (first, *_), (second, *_), (third, *_) = polylines(parsed(lines(*same)))
    assert first[0] < second[0] < third[0] and first[1] == second[1] == third[1]


def test_dots_have_one_mark_each_and_no_line() -> None:
    figure = lines(curve("memory", (1, 2), (3, 4)), curve("document", (5, 6), style=1), kind="dots")
    assert len(marks(parsed(figure))) == 3 and polylines(parsed(figure)) == []
    assert len({mark.attrib["d"] for mark in marks(parsed(figure))}) == 2, "told apart without colour"


def test_a_long_line_has_no_marks() -> None:
    assert marks(parsed(lines(curve("a", *((i, 1.0) for i in range(500)))))) == []


def test_a_single_series_needs_no_legend_and_more_of_them_get_more_height() -> None:
    one, many = lines(curve("alone", (1, 1))), lines(*(curve("a name as long as this", (1, 1)) for _ in range(8)))
    assert "alone" not in texts(parsed(one)) and texts(parsed(many)).count("a name as long as this") == 8
    heights = [float(parsed(figure).attrib["viewBox"].split()[3]) for figure in (one, many)]
    assert heights[0] == HEIGHT < heights[1]
    assert parsed(one).attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT}"


def test_texts_are_escaped_and_characters_that_xml_forbids_replaced() -> None:
    assert escape("<b>\"&'\x00\ud800") == "&lt;b&gt;&quot;&amp;&#x27;\ufffd\ufffd"
    root = parsed(lines(curve("</svg><script>", (1, 1)), curve("b", (1, 2)), title='"><script>'))
    assert "</svg><script>" in texts(root) and not list(root.iter(f"{SVG}script"))


def test_within_a_page_a_figure_has_no_style_and_no_address() -> None:
    text = draw(lines(curve("a", (1, 1))))
    assert "<style" not in text and "http" not in text and 'role="img"' in text
    assert re.search(r'aria-label="Loss. nats over step. a: at 1 1."', text)


def test_a_file_holds_the_picture(tmp_path: Path) -> None:
    write_svg(tmp_path / "loss.svg", lines(curve("a", (1, 1), (2, 3))), 720, 360)
    root = ElementTree.parse(tmp_path / "loss.svg").getroot()
    assert root.attrib["viewBox"] == "0 0 720 360" and len(polylines(root)[0]) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["loss.svg"]
