"""How everything that shows an evaluation writes systems, metrics and scores."""

from __future__ import annotations

import pytest

from clara.io.evaluation.labels import counted, cut_text, decimals, interval, label, mean_cell, p_text, style
from clara.io.evaluation.predictions import Interval
from clara.io.evaluation.systems import SYSTEMS
from clara.io.report.document import Cell


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("exact_match", "EM"),
        ("cover_exact_match", "cover-EM"),
        ("token_f1_first", "F1, first gold"),
        ("recall_at_5", "recall@5"),
        ("mrr", "MRR"),
        ("rouge_l", "ROUGE-L"),
        ("something_new", "something new"),
    ],
)
def test_metrics_have_names(metric: str, name: str) -> None:
    assert label(metric) == name


def test_every_system_keeps_its_place_in_the_palette() -> None:
    assert sorted(style(system) for system in SYSTEMS) == list(range(len(SYSTEMS))) and style("memory") == 0
    assert style("mine") == style("mine") != style("other")


def test_scores_have_three_decimals() -> None:
    assert [decimals(value) for value in (0, 0.12349, 1, -0.5)] == ["0.000", "0.123", "1.000", "−0.500"]
    assert interval(Interval(0.5, -0.25, 0.75)) == Cell("0.500", "−0.250 to 0.750")
    means = {"mrr": Interval(0.0, 0.0, 0.0)}
    assert [mean_cell(means, name) for name in ("mrr", "token_f1")] == [Cell("0.000", "0.000 to 0.000"), Cell("–")]
    assert [p_text(value) for value in (0.0009, 0.001, 0.5)] == ["< 0.001", "0.001", "0.500"]


def test_counts_are_one_number_or_two() -> None:
    assert counted([1200, 1200]) == "1,200 questions" and counted([3, 12]) == "3 to 12 questions"
    assert counted([]) == "0 questions"


def test_cut_documents_are_counted_in_words() -> None:
    assert cut_text(3, 4000, 256) == "3 of 4,000 documents were cut to 256 tokens for memory, not for text"
