"""Reads what a report is made of: folders of evaluations that are finished, and of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from clara.core.config import STAGES
from clara.io.errors import ClaraError
from clara.io.evaluation.predictions import (
    CONFIG,
    PREDICTIONS,
    SCORES,
    Prediction,
    Scores,
    predictions_path,
    read_predictions,
    read_scores,
)
from clara.io.files import reason
from clara.io.runlog import METRICS, read_events

EVALUATIONS = "evaluations"
"""The folder of a run that its evaluations are in, where nothing else was said."""


class Facts(Struct, frozen=True, kw_only=True):
    """What a report tells of an evaluation's configuration; empty or 0 where it is not known."""

    compression_rate: int = 0
    """Document tokens that become one memory token."""
    num_memory_tokens: int = 0
    doc_max_tokens: int = 0
    documents: int = 0
    documents_cut: int = 0
    """Of these documents, those that are longer than doc_max_tokens."""
    reasoner: bool = True
    data: str = ""
    data_fingerprint: str = ""
    questions: int = 0
    limit: int = 0
    """Questions that were drawn, by the seed; 0 for all."""
    seed: int = 0
    corpus: str = ""
    corpus_fingerprint: str = ""
    top_k: int = 0
    max_tokens: int = 0
    beams: int = 1
    """Of the search for an answer; 1 for none."""
    paraphrases: bool = False
    counterfactual: bool = False
    """Whether the documents were made to say otherwise, by the seed."""
    not_rewritten: int = 0
    """Questions that were left out since that was not possible."""
    checkpoint: str = ""
    model: str = ""
    """The base."""
    device: str = ""
    systems: list[str] = []


class Evaluation(NamedTuple):
    """A finished evaluation."""

    path: Path
    facts: Facts
    scores: Scores
    predictions: dict[str, list[Prediction]]
    """Of each system, in the order of the scores."""


class Run(NamedTuple):
    """A training run of one stage."""

    path: Path
    config: dict[str, Any]
    events: list[dict[str, Any]]


def read_folder(path: Path) -> list[Evaluation | Run]:
    """Return the evaluation in a folder, or the run with its finished evaluations; of a curriculum those of each stage.

    Raises ClaraError, naming the file, where there is neither, where the evaluation has not finished, and where
    something of it is missing or damaged.
    """
    if (path / SCORES).exists() or (path / PREDICTIONS).exists():
        return [read_evaluation(path)]
    logs = [path / METRICS] if (path / METRICS).exists() else sorted(path.glob(f"*/{METRICS}"), key=stage_order)
    if not logs:
        found = f"holds neither {SCORES} nor {METRICS}" if path.is_dir() else "no such folder"
        raise ClaraError(f"{path}: {found}; wanted what evaluate or train has written")
    inside = [sorted(log.parent.glob(f"{EVALUATIONS}/*/{SCORES}")) for log in logs]
    return [
        *(read_run(log.parent) for log in logs),
        *(read_evaluation(scores.parent) for found in inside for scores in found),
    ]


def stage_order(log: Path) -> tuple[int, str]:
    """Return what the logs of a curriculum are sorted by: the place of the stage, then the folder's name."""
    name = log.parent.name
    return (STAGES.index(name) if name in STAGES else len(STAGES), name)


def read_evaluation(path: Path) -> Evaluation:
    """Return a finished evaluation. Raises ClaraError as `read_folder` does."""
    if not (path / SCORES).exists():
        raise ClaraError(f"{path}: the evaluation has not finished: {progress(path)}; run evaluate on it again")
    scores = read_scores(path)
    predictions = {}
    for each in scores.systems:
        file = predictions_path(path, each.system)
        predictions[each.system] = found = read_predictions(file)
        if len(found) != each.questions:
            raise ClaraError(
                f"{file}: {len(found):,} predictions, but {SCORES} counts {each.questions:,} questions; "
                "run evaluate on the folder again"
            )
    return Evaluation(path, read_facts(path), scores, predictions)


def progress(path: Path) -> str:
    """Return how far each system of an unfinished evaluation has come."""
    facts = read_facts(path)
    names = facts.systems or [file.stem for file in sorted((path / PREDICTIONS).glob("*.jsonl"))]
    counts = {name: len(read_predictions(predictions_path(path, name))) for name in names}
    return ", ".join(f"{name} {count:,} of {facts.questions:,}" for name, count in counts.items()) + " questions"


def read_run(path: Path) -> Run:
    """Return a run of one stage. Raises ClaraError where its log holds no event."""
    events = read_events(path / METRICS)
    if not events:
        raise ClaraError(f"{path / METRICS}: no event; the run has not begun, or the file is damaged")
    return Run(path, read_config(path), events)


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration in a folder; empty where there is none. Raises ClaraError where it is damaged."""
    file = path / CONFIG
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ClaraError(f"{file}: cannot be read ({reason(error)})") from error
    except msgspec.DecodeError as error:
        raise ClaraError(f"{file}: damaged ({error})") from error


def read_facts(path: Path) -> Facts:
    """Return what an evaluation's folder says of it. Raises ClaraError where its configuration is damaged."""
    try:
        return msgspec.convert(read_config(path), Facts)
    except msgspec.ValidationError as error:
        raise ClaraError(f"{path / CONFIG}: damaged ({error})") from error


def asked(evaluation: Evaluation) -> tuple[str | int, ...]:
    """Return what has to be equal in evaluations for their numbers to be of one kind: questions, sources, base."""
    facts = evaluation.facts
    seed = facts.seed if facts.limit or facts.counterfactual else 0
    questions = facts.data_fingerprint or facts.data, facts.limit, seed, facts.paraphrases, facts.counterfactual
    decoded = facts.max_tokens, facts.beams, facts.model
    return *questions, facts.corpus_fingerprint or facts.corpus, facts.top_k, *decoded
