"""The colours of reports: enough contrast on both grounds, and told apart with any kind of colour vision."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from clara.io.report.style import DARK, FIGURE_RULES, LIGHT, PAGE_RULES, Theme, themed

# Machado, Oliveira & Fernandes 2009, severity 1: how linear RGB looks without one kind of cone.
VISION = {
    "full": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.793617785, -0.0040720468],
        [1.9779984951, -2.428592205, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.808675766],
    ]
)
themes = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def linear(colour: str) -> np.ndarray:
    """Return float64[3]: linear RGB of #rrggbb."""
    share = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2)."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Return float64[3]: linear RGB in Oklab, where distances are as the eye sees them."""
    return TO_LAB @ np.cbrt(TO_CONES @ np.clip(rgb, 0, None))


@themes
def test_texts_have_a_contrast_of_four_and_a_half_and_series_of_three(theme: Theme) -> None:
    for ground in (theme.ground, theme.raised):
        assert min(contrast(colour, ground) for colour in (theme.ink, theme.faint)) >= 4.5
    assert min(contrast(colour, theme.ground) for colour in (theme.good, theme.bad, theme.series[0])) >= 4.5
    assert min(contrast(colour, theme.ground) for colour in theme.series) >= 3


@themes
@pytest.mark.parametrize("vision", VISION)
def test_series_are_told_apart(theme: Theme, vision: str) -> None:
    seen = [oklab(VISION[vision] @ linear(colour)) for colour in theme.series]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 0.09


def test_both_themes_have_the_same_colours_and_the_rules_use_no_other() -> None:
    named = [set(re.findall(r"--(\w+):#[0-9a-f]{6};", part)) for part in themed(":root").split("@media")]
    assert named[0] == named[1] and len(LIGHT.series) == len(DARK.series)
    used = set(re.findall(r"var\(--(\w+)\)", FIGURE_RULES + PAGE_RULES))
    assert used == named[0]


def test_the_rules_fetch_nothing() -> None:
    assert not re.search(r"url\(|@import|https?:", themed(":root") + FIGURE_RULES + PAGE_RULES)
