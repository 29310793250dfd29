"""How everything that shows an evaluation writes systems, metrics and scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clara.io.evaluation.predictions import Interval
from clara.io.evaluation.systems import SYSTEMS
from clara.io.report.document import Cell

NONE = Cell("–")
SCORES = {"exact_match": "EM", "cover_exact_match": "cover-EM", "token_f1": "F1"}
"""How the scores of answers are called that a training run measures too."""
ANSWERS = {**SCORES, "keyword_match": "keywords", "rouge_l": "ROUGE-L", "entities": "numbers and names"}
"""How the scores of answers are called, in the order of tables."""
RANKS = ("recall_at_1", "mrr")
"""The ranking measures that the summary shows."""
PARTS = ("compress", "retrieve", "prefill", "decode")
"""Of the time that a question takes."""
RANKING = (
    "ranking of each question's own candidates, the same for every system; questions without a choice or without known "
    "positives do not count"
)
"""What recall, precision and MRR are measured on."""
MEANS = "means over the questions, with 95 % bootstrap intervals"
"""What stands in a table's cells of answers and ranking."""
PAIRED = "difference of the means with its 95 % interval; p of a two-sided sign-flip test"
"""What stands in a table's cells of paired tests."""
COUNTERFACTUAL = "counterfactual: in the documents another question's answer stands for the right one, and is wanted"
"""What is said where the documents of an evaluation were rewritten."""
STAND_IN = "no reasoner was trained; the compressor reads the question in its place"


def style(system: str) -> int:
    """Return the place of a system in the palette, the same in every figure."""
    return SYSTEMS[system].style if system in SYSTEMS else sum(system.encode())


def choosing(systems: Iterable[str]) -> list[str]:
    """Return those of some systems in which the reasoner chooses."""
    return [name for name in systems if name in SYSTEMS and SYSTEMS[name].reads == "candidates"]


def is_rank(name: str) -> bool:
    """Return whether a metric tells how candidates rank."""
    return name == "mrr" or name.startswith(("recall_at_", "precision_at_"))


def rank_labels(means: Iterable[str]) -> list[tuple[str, str]]:
    """Return (metric, how it is called) of every ranking metric among those named: recall_at_1 is recall@1."""
    names = [name for name in means if is_rank(name)]
    return [(name, "MRR" if name == "mrr" else name.replace("_at_", "@")) for name in names]


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


def mean_cell(means: Mapping[str, Interval], metric: str) -> Cell:
    """Return a system's mean in a metric with its interval beneath; a dash where it has none."""
    return interval(means[metric]) if metric in means else NONE


def p_text(value: float) -> str:
    """Return a p value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def counted(counts: Sequence[int], what: str = "questions") -> str:
    """Return how many there were: 300 questions, or 280 to 300 questions."""
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{high:,} {what}" if low == high else f"{low:,} to {high:,} {what}"


def cut_text(cut: int, documents: int, tokens: int) -> str:
    """Return how many documents a memory holds the beginning of only: 3 of 40 documents were cut to 256 tokens."""
    return f"{cut:,} of {documents:,} documents were cut to {tokens:,} tokens for memory, not for text"


def heading(config: Mapping[str, Any]) -> list[str]:
    """Return the lines that say what is measured, on what."""
    left_out = f"; {config['left_out']:,} without an answer left out" if config["left_out"] else ""
    lines = [
        f"checkpoint {config['checkpoint']}: stage {config['stage']}, step {config['step']:,}, on {config['model']}",
        f"memory {config['num_memory_tokens']} vectors for up to {config['doc_max_tokens']} tokens of a document, "
        f"{config['compression_rate']} to 1",
        f"data {config['data']}: {config['questions']:,} questions in format {config['format']}{left_out}",
        f"device {config['device']}, seed {config['seed']}, answers of up to {config['max_tokens']} tokens"
        + (f", {config['beams']} beams" if config.get("beams", 1) > 1 else ""),
    ]
    if config["counterfactual"]:
        lines.append(f"{COUNTERFACTUAL}; {config['not_rewritten']:,} questions where that is not possible left out")
    if "text_checkpoint" in config:
        lines.append(
            f"text checkpoint {config['text_checkpoint']}: step {config['text_step']:,}, reads up to "
            f"{config['text_doc_max_tokens']} tokens of a document (tuned_text)"
        )
    if config["passages"]:
        lines.append(
            f"corpus {config['corpus']}: {config['passages']:,} passages, of which {config['top_k']} are chosen"
        )
    if config["documents_cut"]:
        lines.append(cut_text(config["documents_cut"], config["documents"], config["doc_max_tokens"]))
    if (standing := choosing(config["systems"])) and not config["reasoner"]:
        lines.append(f"note: {STAND_IN} ({', '.join(standing)})")
    return lines
