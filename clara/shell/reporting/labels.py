"""How a report writes what its tables and figures share: systems, metrics, scores."""

from __future__ import annotations

from collections.abc import Sequence

from clara.io.evaluation.predictions import Interval
from clara.io.report.document import Cell
from clara.shell.progress import SCORES, rank_labels

NONE = Cell("–")
ANSWERS = {**SCORES, "keyword_match": "keywords", "rouge_l": "ROUGE-L", "entities": "numbers and names"}
"""How the scores of answers are called."""

SYSTEMS = (
    *("memory", "text", "memory_retrieved", "closed_book", "text_bm25", "tuned_closed_book", "memory_shuffled"),
    *("text_tfidf", "memory_tfidf"),
)
"""The systems in the order of the palette."""


def style(system: str) -> int:
    """Return the place of a system in the palette, the same in every figure."""
    return SYSTEMS.index(system) if system in SYSTEMS else sum(system.encode())


def label(metric: str) -> str:
    """Return how a metric is called."""
    base = metric.removesuffix("_first")
    name = dict(rank_labels([base])).get(base) or ANSWERS.get(base, base.replace("_", " "))
    return name if base == metric else f"{name}, first gold"


def decimals(value: float) -> str:
    """Return a score to three decimals, as every table and log of the project has it."""
    return f"{value:.3f}".replace("-", "−")


def interval(value: Interval) -> Cell:
    """Return a mean with its interval beneath."""
    return Cell(decimals(value.mean), f"{decimals(value.low)} to {decimals(value.high)}")


def p_text(value: float) -> str:
    """Return a p value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def counted(counts: Sequence[int], what: str = "questions") -> str:
    """Return how many there were: 300 questions, or 280 to 300 questions."""
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{high:,} {what}" if low == high else f"{low:,} to {high:,} {what}"
