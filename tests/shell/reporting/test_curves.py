"""The curves of a run: each value of its log once, long ones as means, what was not logged left out."""

from __future__ import annotations

from typing import Any

from clara.shell.reporting.curves import MOST, loss_figure, rank_figure


def step(number: int, **values: Any) -> dict[str, Any]:
    """Return the event of a training step."""
    return {"event": "step", "step": number, **values}


def heldout(number: int, **values: Any) -> dict[str, Any]:
    """Return the event of an evaluation on held-out records."""
    return {"event": "heldout", "step": number, **values}


def places(figure: Any) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each series."""
    return {series.name: [point[:2] for point in series.points] for series in figure.series}


def test_losses_of_training_and_held_out_records() -> None:
    events = [heldout(0, loss=9.0, next_token=5.0, other_memory=6.0), step(1, loss=4.0), step(2, loss=3.0)]
    assert places(loss_figure(events)) == {
        "training": [(1, 4.0), (2, 3.0)],
        "held-out": [(0, 5.0)],
        "held-out, other memory": [(0, 6.0)],
    }
    assert places(loss_figure([heldout(2, loss=1.5, contrastive=1.5)])) == {"held-out": [(2, 1.5)]}
    both = [step(1, loss=4.0, next_token=2.5, distillation=1.5), heldout(1, loss=4.0, next_token=2.0)]
    assert places(loss_figure(both)) == {"training": [(1, 2.5)], "held-out": [(1, 2.0)]}, "nats of answers alone"


def test_a_curve_has_its_colour_also_where_others_are_missing() -> None:
    (series,) = loss_figure([heldout(0, loss=1.0)]).series
    assert series.style == 1


def test_ranking_over_the_steps() -> None:
    events = [heldout(0, loss=1.0, recall_at_1=0.2, mrr=0.4), heldout(5, recall_at_1=0.6, mrr=0.7, token_f1=0.1)]
    figure = rank_figure(events)
    assert places(figure) == {"recall@1": [(0, 0.2), (5, 0.6)], "MRR": [(0, 0.4), (5, 0.7)]} and figure.top == 1.0


def test_without_events_there_is_no_series() -> None:
    assert loss_figure([]).series == rank_figure([{"event": "finished", "step": 3}]).series == ()


def test_values_that_are_no_numbers_are_left_out() -> None:
    events = [step(1, loss=None), step(2, loss=float("nan")), step(3, loss=1.0), step(4)]
    assert places(loss_figure(events)) == {"training": [(3, 1.0)]}


def test_a_long_curve_is_of_means_and_says_so() -> None:
    figure = loss_figure([step(i, loss=float(i)) for i in range(1, 2 * MOST + 1)])
    (found,) = places(figure).values()
    assert len(found) == MOST and found[0] == (1.5, 1.5) and found[-1] == (2 * MOST - 0.5, 2 * MOST - 0.5)
    assert figure.note == "Each point of training is the mean of 2 steps."
