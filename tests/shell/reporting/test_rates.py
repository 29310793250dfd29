"""How answers depend on the compression rate: the points are the means of the evaluations."""

from __future__ import annotations

from pathlib import Path

import msgspec
from evaluations import SYSTEMS, write_evaluation

from clara.io.evaluation.evaluations import read_evaluation
from clara.shell.reporting.rates import rate_figures


def test_a_point_for_each_rate_and_system_in_order_of_the_rates(tmp_path: Path) -> None:
    counts = {16: 9, 4: 12, 64: 7}
    found = {
        rate: read_evaluation(write_evaluation(tmp_path / str(rate), rate, count)) for rate, count in counts.items()
    }
    figures = rate_figures(list(found.values()), ["token_f1", "mrr", "rouge_l"], "rates")
    assert [picture.name for picture in figures] == ["rates-token_f1", "rates-mrr"]
    figure = figures[0].figure
    assert figure.powers and figure.top == 1.0 and "7 to 12 questions" in figure.note
    assert [series.name for series in figure.series] == list(SYSTEMS)
    for i, series in enumerate(figure.series):
        assert [point.x for point in series.points] == [4, 16, 64]
        means = [found[rate].scores.systems[i].means["token_f1"] for rate in (4, 16, 64)]
        assert [tuple(point[1:]) for point in series.points] == [msgspec.structs.astuple(mean) for mean in means]


def test_of_one_rate_the_last_evaluation_counts(tmp_path: Path) -> None:
    names = (("a", 4, 5), ("b", 16, 5), ("c", 4, 11))
    first, second, last = (read_evaluation(write_evaluation(tmp_path / name, *how)) for name, *how in names)
    assert rate_figures([first, second, last], ["token_f1"], "r") == rate_figures([second, last], ["token_f1"], "r")


def test_one_rate_and_an_unknown_one_make_no_figure(tmp_path: Path) -> None:
    known = read_evaluation(write_evaluation(tmp_path / "known", 4, 3))
    unknown = read_evaluation(write_evaluation(tmp_path / "unknown", 4, 3, compression_rate=0))
    assert rate_figures([known, unknown], ["token_f1"], "r") == rate_figures([], ["token_f1"], "r") == []
