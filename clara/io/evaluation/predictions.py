"""What an evaluation leaves in its folder: predictions, one a line, and the scores of each system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from clara.io.errors import ClaraError
from clara.io.files import reason, write_atomic
from clara.io.jsonlog import append_lines, encode_lines, read_lines

PREDICTIONS, SCORES, SUMMARY, CONFIG = "predictions", "scores.json", "summary.md", "config.json"
"""Names in an evaluation's folder; the first is a folder with a file for each system."""


class Prediction(Struct, frozen=True, kw_only=True):
    """What a system answered to a question, from what, and what that is worth."""

    id: str
    """Of the question: the record's id, with "#n" behind it where a record has several questions."""
    system: str
    question: str
    golds: list[str]
    prediction: str
    documents: list[str] = []
    """Titles of the documents that it was answered from, best first; first words where there is no title."""
    texts: list[str] = []
    """The beginning of each of them."""
    scores: list[float] = []
    """Relevance score of each: the reasoner's, BM25 or TF-IDF; empty where they were not chosen by score."""
    positives: list[bool] = []
    """Whether each holds the answer; empty where that is not known."""
    candidates: int = 0
    """Documents that they were chosen among."""
    ranking: dict[str, float] = {}
    """How the system ranks the question's own candidates: recall_at_1, recall_at_3, recall_at_5, precision_at_k, mrr.
    Empty where it has no choice of its own, or none of them or all are known to hold the answer."""
    metrics: dict[str, float] = {}
    """Scores of the answer, best over the golds; with `_first` behind the name, against the first gold alone."""
    seconds: dict[str, float] = {}
    """compress, retrieve, prefill, decode, all of them warm; a batch's time is shared evenly. compress is what the
    question's own documents took, all candidates where there was a choice; passages of a corpus are compressed
    beforehand and charge nothing. retrieve is scoring and choosing the best."""
    prompt_tokens: int = 0
    tokens: int = 0
    """Tokens generated."""
    finished: bool = True
    """Whether it ended by itself; otherwise it was cut at the most tokens allowed."""


class Interval(Struct, frozen=True):
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class SystemScores(Struct, frozen=True, kw_only=True):
    """What a system is worth over all of its questions."""

    system: str
    questions: int
    means: dict[str, Interval]
    """Of every metric and ranking measure, over the questions that have it."""
    seconds: dict[str, float]
    """Median seconds of a question: compress, retrieve, prefill, decode."""
    prompt_tokens: float
    """Mean of a question."""
    peak_bytes: int
    """Most memory that the device held while the system ran; 0 where nothing of it was computed in this run."""


class Comparison(Struct, frozen=True, kw_only=True):
    """Two systems on the questions that both answered."""

    first: str
    second: str
    metric: str
    difference: Interval
    """Of first minus second."""
    p_value: float
    """Two-sided, of a sign-flip test."""


class Scores(Struct, frozen=True, kw_only=True):
    """The outcome of an evaluation."""

    systems: list[SystemScores]
    comparisons: list[Comparison] = []


def predictions_path(folder: Path, system: str) -> Path:
    """Return the file of a system's predictions."""
    return folder / PREDICTIONS / f"{system}.jsonl"


def append_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Add predictions to a file, which `write_predictions` made; they are on the disk when this returns.

    Raises ClaraError where that cannot be.
    """
    append_lines(path, predictions)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a file of predictions anew, whole or not at all. Raises ClaraError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClaraError(f"{path}: cannot be written ({reason(error)})") from error
    write_atomic(path, encode_lines(predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """Return the predictions of a file, without a last line that a crash cut off; of a missing file none.

    Raises ClaraError, naming file and line, for a line that is no prediction.
    """
    decoder = msgspec.json.Decoder(Prediction)
    found = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            found.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise ClaraError(f"{path}:{number}: not a prediction ({error}); remove the file to begin anew") from error
    return found


def write_scores(folder: Path, scores: Scores) -> None:
    """Write the scores of an evaluation into its folder. Raises ClaraError where that cannot be."""
    write_atomic(folder / SCORES, msgspec.json.format(msgspec.json.encode(scores)) + b"\n")


def read_scores(folder: Path) -> Scores:
    """Return the scores of an evaluation. Raises ClaraError, naming the file, where there are none or it is damaged."""
    path = folder / SCORES
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scores)
    except OSError as error:
        raise ClaraError(
            f"{path}: cannot be read ({reason(error)}); wanted a folder that evaluate has written"
        ) from error
    except msgspec.DecodeError as error:
        raise ClaraError(f"{path}: damaged, or of another version of clara ({error})") from error
