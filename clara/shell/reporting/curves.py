"""The curves of a training run, from the events of its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clara.core.figures import Figure, Series, points, thinned
from clara.io.evaluation.labels import is_rank, rank_labels

MOST = 400
"""Points of a curve; of a longer one, each is the mean of several steps."""

Events = Sequence[Mapping[str, Any]]


def loss_figure(events: Events) -> Figure:
    """Return the losses of a run over its steps; without series where none was logged."""
    steps, heldout = kind_of(events, "step"), kind_of(events, "heldout")
    main = "next_token" if any("next_token" in event for event in heldout) else "loss"
    curves = {
        "training": curve(steps, main if any(main in event for event in steps) else "loss"),
        "held-out": curve(heldout, main),
        "held-out, other memory": curve(heldout, "other_memory"),
    }
    return figure("Loss", "nats per answer token", curves)


def rank_figure(events: Events) -> Figure:
    """Return how a run ranks held-out candidates over its steps; without series where that was not logged."""
    heldout = kind_of(events, "heldout")
    names = dict.fromkeys(name for event in heldout for name in event if is_rank(name))
    curves = {label: curve(heldout, name) for name, label in rank_labels(names)}
    return figure("Ranking of held-out candidates", "mean over questions", curves, top=1.0)


def kind_of(events: Events, kind: str) -> Events:
    """Return the events of a kind."""
    return [event for event in events if event.get("event") == kind]


def curve(events: Events, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of every event that has a number of that name."""
    return [(event["step"], event[name]) for event in events if isinstance(event.get(name), int | float)]


def figure(title: str, unit: str, curves: Mapping[str, Sequence[tuple[float, float]]], top: float = 0.0) -> Figure:
    """Return curves as a figure, those without a point left out; its note says where points are means."""
    series, notes = [], []
    for style, (name, values) in enumerate(curves.items()):
        kept, size = thinned(values, MOST)
        if kept:
            series.append(Series(name, points(kept), style))
        if size > 1:
            notes.append(f"Each point of {name} is the mean of {size} steps.")
    return Figure("lines", title, "step", unit, tuple(series), " ".join(notes), top=top)
