"""Scores out of hand-made predictions, and the tables that show them."""

from __future__ import annotations

from clara.io.evaluation.predictions import Interval, Prediction, Scores
from clara.io.report.markdown import table
from clara.shell.evaluation.summary import comparison, scores_of, system_scores, tables


def predictions(system: str, scores: dict[str, float], **fields: float) -> list[Prediction]:
    """Return a prediction for each id with this exact match."""
    seconds = {"compress": 0.0, "retrieve": 0.0, "prefill": 0.2, "decode": fields.get("decode", 0.5)}
    return [
        Prediction(
            id=id_,
            system=system,
            question="q",
            golds=["g"],
            prediction="p",
            metrics={"exact_match": score},
            ranking={"mrr": 0.5} if id_ == "a" else {},
            seconds=seconds | {"decode": seconds["decode"] * (i + 1)},
            prompt_tokens=10 * (i + 1),
        )
        for i, (id_, score) in enumerate(scores.items())
    ]


ONE = predictions("memory", {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0})
TWO = predictions("text", {"b": 0.0, "a": 0.0, "c": 0.0, "x": 1.0})


def test_a_system_is_scored_over_the_questions_that_have_a_metric() -> None:
    found = system_scores("memory", ONE, 7, seed=0)
    assert (found.system, found.questions, found.peak_bytes, found.prompt_tokens) == ("memory", 4, 7, 25.0)
    assert found.seconds == {"compress": 0.0, "retrieve": 0.0, "prefill": 0.2, "decode": 1.25}
    assert found.means["mrr"] == Interval(0.5, 0.5, 0.5)
    assert found.means["exact_match"].mean == 0.75
    assert 0.0 <= found.means["exact_match"].low < 0.75 < found.means["exact_match"].high <= 1.0


def test_two_systems_are_compared_on_the_questions_that_both_have() -> None:
    found = comparison(ONE, TWO, "exact_match", seed=0)
    assert found is not None
    # a: 1 − 0, b: 0 − 0, c: 1 − 0; of the four patterns of signs two are as far from 0.
    assert (found.first, found.second, found.difference.mean, found.p_value) == ("memory", "text", 2 / 3, 0.5)
    assert comparison(ONE, TWO, "rouge_l", seed=0) is None
    assert comparison(ONE, predictions("text", {"z": 1.0}), "exact_match", seed=0) is None


def test_memory_is_compared_with_each_other_system_or_else_the_first_is() -> None:
    found = scores_of({"text": TWO, "memory": ONE, "closed_book": TWO}, {"text": 5}, seed=0)
    assert [(each.first, each.second) for each in found.comparisons] == [("memory", "text"), ("memory", "text")]
    assert [(each.system, each.peak_bytes) for each in found.systems] == [
        ("text", 5),
        ("memory", 0),
        ("closed_book", 0),
    ]
    found = scores_of({"text": TWO, "memory_tfidf": ONE}, {}, seed=0)
    assert [each.first for each in found.comparisons] == ["text"]
    assert scores_of({"memory": ONE}, {}, seed=0).comparisons == []


def test_scores_are_a_function_of_predictions_and_seed() -> None:
    one, same, other = (scores_of({"memory": ONE, "text": TWO}, {}, seed) for seed in (0, 0, 1))
    assert one == same
    assert [each.means["exact_match"].mean for each in one.systems] == [
        each.means["exact_match"].mean for each in other.systems
    ]


def test_the_tables_hold_every_system_and_what_it_lacks() -> None:
    found = tables(scores_of({"memory": ONE, "text": TWO}, {"text": 2 * 10**9}, seed=0))
    answers, costs, tests = map(table, found)
    assert "EM" in answers and "MRR" in answers and "F1" not in answers and "0.750 (" in answers
    assert "ranking of each question's own candidates, the same for every system" in found[0].caption
    assert "1,250" in costs and "2.00" in costs and "–" in costs
    assert "memory − text" in tests and "0.667 (" in tests and "p 0.500)" in tests
    for part in (answers, costs, tests):
        assert len({len(line) for line in part.splitlines()}) == 1, "columns stand under one another"
    assert len(tables(Scores(systems=scores_of({"memory": ONE}, {}, 0).systems))) == 2
