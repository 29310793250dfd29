"""Figures as PNG: matplotlib is given all of the data and nothing else, and the file is a picture."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest

from clara.core.figures import Figure, Point, Series, points
from clara.io.report.png import can_draw, spread, write_png

pytest.importorskip("matplotlib")

RANGED = Series("memory", (Point(4, 0.6, 0.5, 0.7), Point(16, 0.4, 0.3, 0.5)))
BARE = Series("text", points([(4, 0.7), (16, math.nan)]), 1)


def size(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG, in pixels."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize(
    "figure",
    [
        Figure("lines", "Rates", "rate", "EM", (RANGED, BARE), "a note", top=1.0, powers=True),
        Figure("lines", "Loss $x$", "step", "nats", (Series("a", points((i, i) for i in range(200))),)),
        Figure("dots", "Map", "one", "two", (RANGED, BARE)),
        Figure("bars", "EM", "system", "mean", (Series("EM", points([(0, 1), (1, 2)])),), categories=("$\\no$", "字")),
        Figure("lines", "Nothing", "x", "y", ()),
    ],
    ids=["rates", "long", "dots", "bars", "empty"],
)
def test_every_kind_of_figure_becomes_a_picture(figure: Figure, tmp_path: Path) -> None:
    assert can_draw()
    write_png(tmp_path / "f.png", figure)
    width, height = size(tmp_path / "f.png")
    assert width == 1024 and height >= 250
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.png"]


def test_equal_figures_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_png(tmp_path / name, Figure("lines", "t", "x", "y", (RANGED,)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_colour_that_comes_again_has_dashes(tmp_path: Path) -> None:
    for style in (0, 40):  # of one colour and one mark
        write_png(tmp_path / f"{style}", Figure("lines", "t", "x", "y", (RANGED._replace(style=style),)))
    assert (tmp_path / "0").read_bytes() != (tmp_path / "40").read_bytes()


def test_more_bars_make_a_higher_picture(tmp_path: Path) -> None:
    for count in (2, 9):
        series = Series("EM", points((i, 1) for i in range(count)))
        figure = Figure("bars", "t", "x", "y", (series,), categories=tuple(map(str, range(count))))
        write_png(tmp_path / f"{count}", figure)
    assert size(tmp_path / "2")[1] < size(tmp_path / "9")[1]


def test_intervals_are_given_as_lengths() -> None:
    below, above = spread(RANGED) or []
    assert below == pytest.approx([0.1, 0.1]) and above == pytest.approx([0.1, 0.1])
    assert spread(BARE._replace(points=BARE.points[:1])) is None
