"""What answers cost: the table is that of the scores, the figures are medians of the predictions."""

from __future__ import annotations

from statistics import median

import msgspec
import pytest
from evaluations import SYSTEMS, write_evaluation

from clara.core.figures import number
from clara.io.evaluation.evaluations import Evaluation, read_evaluation
from clara.shell.reporting.costs import by_documents, cost_figures, cost_table, peaks


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Return an evaluation of five systems."""
    return read_evaluation(write_evaluation(tmp_path_factory.mktemp("evaluation") / "dev"))


def test_the_table_has_the_numbers_of_the_scores(evaluation: Evaluation) -> None:
    table = cost_table(evaluation)
    assert [row[0].text for row in table.rows] == list(SYSTEMS)
    for each, row in zip(evaluation.scores.systems, table.rows, strict=True):
        found = dict(zip(table.columns, (cell.text for cell in row), strict=True))
        assert found["prompt tokens"] == number(each.prompt_tokens) and found["peak (GB)"] == "1.5"
        assert all(found[f"{part} (ms)"] == number(1000 * seconds) for part, seconds in each.seconds.items())
        assert found["documents"] == ("0" if each.system == "closed_book" else "2")
        assert found["cut off"] == "2"


def test_an_unknown_peak_is_not_zero(evaluation: Evaluation) -> None:
    systems = [msgspec.structs.replace(each, peak_bytes=0) for each in evaluation.scores.systems]
    unknown = evaluation._replace(scores=msgspec.structs.replace(evaluation.scores, systems=systems))
    assert {row[7].text for row in cost_table(unknown).rows} == {"–"}
    assert [picture.name for picture in cost_figures([unknown], "c")] == ["c-time", "c-prompt"]


def test_time_is_the_median_of_the_questions_with_so_many_documents(evaluation: Evaluation) -> None:
    time = cost_figures([evaluation], "costs-4")[0]
    assert time.name == "costs-4-time" and time.figure.y_label == "seconds"
    series = {each.name: each.points for each in time.figure.series}
    assert set(series) == set(SYSTEMS) and [point.x for point in series["text"]] == [1, 2, 3]
    assert [point.x for point in series["closed_book"]] == [0]
    for system, found in series.items():
        for point in found:
            answers = [each for each in evaluation.predictions[system] if len(each.documents) == point.x]
            assert point.y == pytest.approx(median(sum(each.seconds.values()) for each in answers))
            assert point.low <= point.y <= point.high
    assert "4 to 12 questions" in time.figure.note


def test_evaluations_are_pooled(evaluation: Evaluation) -> None:
    one, two = cost_figures([evaluation], "c"), cost_figures([evaluation, evaluation], "c")
    assert one[0].figure.series == two[0].figure.series
    assert sum(len(series.points) for series in peaks([evaluation, evaluation]).series) == 2 * len(SYSTEMS)


def test_values_are_grouped_by_system_and_documents(evaluation: Evaluation) -> None:
    found = by_documents(evaluation.predictions["memory"], lambda answer: answer.prompt_tokens)
    assert {count: set(values) for count, values in found["memory"].items()} == {1: {140}, 2: {240}, 3: {340}}


def test_nothing_measured_is_nothing_drawn() -> None:
    assert cost_figures([], "c") == []
