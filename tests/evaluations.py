"""Plans of evaluations, and folders of some and of runs with made-up content, as evaluate and train leave them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clara.io.errors import ClaraError
from clara.io.evaluation.predictions import Prediction, predictions_path, write_predictions, write_scores
from clara.shell.evaluation.plan import EvaluateOptions, Plan, plan_of
from clara.shell.evaluation.summary import scores_of

NASTY = '<script>alert("x")</script> & <b>bold</b> | *stars* _under_ `code` [link](https://example.org/a?b=1&c=2) \x00'
"""An answer that would do harm where it is not escaped."""
SYSTEMS = ("memory", "memory_retrieved", "text", "text_bm25", "closed_book")
CHOOSING = ("memory_retrieved", "text_bm25")


def plan(run: Path, file: Path, **options: Any) -> Plan:
    """Return the plan of options."""
    return plan_of(EvaluateOptions(**{"checkpoint": str(run), "data": str(file), **options}))


def refusal(run: Path, file: Path, **options: Any) -> str:
    """Return the message with which options are refused."""
    with pytest.raises(ClaraError) as caught:
        plan(run, file, **options)
    return str(caught.value)


def made_up(system: str, i: int) -> Prediction:
    """Return a system's prediction for question i: right or wrong, and its cost, as the two numbers have it."""
    place = SYSTEMS.index(system)
    right = (i * (place + 2)) % 5 < 3
    count = 0 if system == "closed_book" else 1 + i % 3
    return Prediction(
        id=f"q{i}",
        system=system,
        question=f"Which <lamp> is number {i} & burns?",
        golds=[f"lamp {i}", f"no. {i} | <i>"],
        prediction=f"lamp {i}" if right else NASTY,
        documents=[f"Title <{i + j}>" for j in range(count)],
        texts=[f"Lamp {i + j} burns & <glows>." for j in range(count)],
        scores=[0.9 - 0.1 * j for j in range(count)] if system in CHOOSING else [],
        positives=[j == 0 for j in range(count)],
        candidates=20 if system in CHOOSING else 0,
        ranking={"recall_at_1": float(right), "mrr": 0.5 + 0.5 * right} if system in CHOOSING else {},
        metrics={
            "exact_match": float(right),
            "cover_exact_match": float(right),
            "token_f1": 1.0 if right else 0.125 * (i % 4),
            "exact_match_first": float(right and i % 2 == 0),
        },
        seconds={"compress": 0.01 * count, "retrieve": 0.0, "prefill": 0.02 + 0.03 * count, "decode": 0.2 + 0.01 * i},
        prompt_tokens=40 + 100 * count,
        tokens=5,
        finished=i % 7 > 0,
    )


def write_evaluation(
    path: Path, rate: int = 4, count: int = 12, systems: Sequence[str] = SYSTEMS, **config: Any
) -> Path:
    """Return the folder of a finished evaluation of some questions; config: fields of its configuration."""
    predictions = {system: [made_up(system, i) for i in range(count)] for system in systems}
    (path / "predictions").mkdir(parents=True)
    for system, found in predictions.items():
        write_predictions(predictions_path(path, system), found)
    write_scores(path, scores_of(predictions, dict.fromkeys(systems, 1_500_000_000), seed=0))
    facts = {"compression_rate": rate, "num_memory_tokens": 256 // rate, "data": "dev.jsonl", "questions": count}
    (path / "config.json").write_text(json.dumps({**facts, "systems": list(systems), "device": "cpu", **config}))
    return path


def write_run(path: Path, steps: int = 6, **config: Any) -> Path:
    """Return the folder of a run of one stage with its log: every step, and held-out numbers of every third."""
    path.mkdir(parents=True)
    events: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step:
            events.append({"event": "step", "step": step, "loss": 4.0 / step})
        if step % 3 == 0:
            held = {"loss": 3.0, "next_token": 3.0 - 0.1 * step, "other_memory": 4.0, "mrr": 0.1 * step}
            events.append({"event": "heldout", "step": step, **held})
    (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (path / "config.json").write_text(json.dumps(config))
    return path
