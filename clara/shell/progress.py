"""The lines that a training run prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_reduce

from clara.core.config import CHOOSING
from clara.core.counterfactual import Answers
from clara.core.types import Params
from clara.io.cuda import keep_kernels
from clara.io.evaluation.labels import SCORES, rank_labels
from clara.io.records import Record
from clara.shell.options import Options
from clara.shell.setup import Session

TERMS = ("next_token", "alignment", "contrastive", "distillation")
"""Terms of the loss, in the order of progress lines."""

RECENT = 20
"""Steps that the time left is reckoned from."""


class Done(NamedTuple):
    """What progress lines need of a finished step."""

    metrics: Mapping[str, float]
    tokens: int
    seconds: float


def heading(options: Options, session: Session, trained: Params, records: Sequence[Record], blas: str) -> list[str]:
    """Return the lines that say what is about to run, and on what."""
    count = tree_reduce(lambda count, leaf: count + leaf.size, trained, 0)
    memory = options.memory
    compressed = options.data.reads == "memory"
    read = f"memory    {memory.num_memory_tokens} vectors for" if compressed else "text      of"
    how = "" if memory.anchor_pooling == "mean" else f" ({memory.anchor_pooling})"
    return [
        f"device    {mx.default_device().type.name}" + (f", BLAS: {blas}" if mx.default_device() == mx.cpu else ""),
        *kernel_lines(options.compile),
        f"base      {options.model}, {session.base.module.model_type}, fingerprint {session.fingerprint}",
        f"start     {options.start_from or 'new parameters'}"
        + ("" if options.carry_generator or not options.start_from else ", but a new generator"),
        f"{read} up to {memory.doc_max_tokens} tokens" + (f", anchored{how}" if memory.anchored and compressed else ""),
        f"training  {count:,} parameters on {len(records):,} records of {options.data.data}; stage {options.stage}, "
        f"{options.steps} steps of {options.data.batch_size}",
        f"run       {options.run}",
        *idle_lines(options),
    ]


def idle_lines(options: Options) -> list[str]:
    """Return notes on options that were given and change nothing in this stage."""
    data, notes = options.data, list[str]()
    if data.autoencode_data and options.stage != "pretrain":
        notes.append(f"autoencode_data is not read: stage {options.stage} repeats no documents")
    elif data.autoencode_data and not (data.autoencode_share or data.cloze_share):
        notes.append("autoencode_data is not read: autoencode_share and cloze_share are 0")
    if data.cloze_share and options.stage != "pretrain":
        notes.append(f"cloze_share changes nothing: stage {options.stage} fills in no sentences")
    if data.counterfactual_share and options.stage in CHOOSING:
        notes.append(f"counterfactual_share changes nothing: stage {options.stage} reads documents as they are")
    if options.teacher and options.stage in CHOOSING:
        notes.append(f"teacher is not read: stage {options.stage} has none")
    if options.retrieval.in_batch_negatives and not options.loss.contrastive_weight:
        notes.append("in_batch_negatives changes nothing: contrastive_weight is 0")
    return [f"note      {note}" for note in notes]


def answer_lines(options: Options, answers: Answers) -> list[str]:
    """Return a note where documents are to say otherwise, and no two answers are such as could stand for each other."""
    data = options.data
    if options.stage in CHOOSING or not data.counterfactual_share or any(len(k) > 1 for k in answers.kinds.values()):
        return []
    return [f"note      counterfactual_share changes nothing: no answer of {data.data} can stand in another's place"]


def kernel_lines(compile: str) -> list[str]:
    """Return the line that says why a compiled first step may take minutes on CUDA; nothing elsewhere."""
    if compile == "off" or not mx.cuda.is_available():
        return []
    return [f"kernels   in {keep_kernels()}; a first step builds those that are not there, seconds each"]


def compute_line(every: int, needed: int, there: int, fits: bool) -> str:
    """Return the line on the memory of a step, in bytes; every: each every-th layer is recomputed, 0 for none."""
    layers = "no layer" if every == 0 else "every layer" if every == 1 else f"one layer in {every}"
    size = f"{needed / 1e9:.1f} GB by estimate, {there / 1e9:.0f} GB there"
    advice = "" if fits else "; may not fit: raise --accumulate or lower --batch-size"
    return f"compute   steps of up to {size}; {layers} recomputed{advice}"


def step_line(step: int, total: int, done: Sequence[Done], count: int, peak: int) -> str:
    """Return a progress line with the means of the last `count` steps done, which has no step before this process.

    The time left is reckoned from the median of the last 20. peak: bytes.
    """
    steps = list(done)
    recent, last = sorted(each.seconds for each in steps[-RECENT:]), steps[-count:]
    left = recent[len(recent) // 2] * (total - step)
    had = {name: [each.metrics[name] for each in last if name in each.metrics] for name in ("loss", *TERMS)}
    means = [f"{name} {fmean(values):.4f}" for name, values in had.items() if values]
    losses = "  ".join(means if len(means) > 2 else means[:1])  # a single term says what the loss does
    seconds = sum(each.seconds for each in last)
    speed = f"{sum(each.tokens for each in last) / seconds:,.0f} tokens/s  {seconds / len(last):.2f} s"
    return f"step {step:>{len(str(total))}}/{total}  {losses}  {speed}  peak {peak / 1e9:.1f} GB  left {clock(left)}"


def heldout_line(means: Mapping[str, float], step: int) -> str:
    """Return the line of a held-out evaluation."""
    parts = []
    if "next_token" in means:
        other = f"; {means['other_memory']:.3f} with another document's memory" if "other_memory" in means else ""
        parts.append(f"{means['next_token']:.3f} nats per answer token{other}")
    elif "contrastive" in means:
        parts.append(f"contrastive {means['contrastive']:.3f}")
    if "distillation" in means:
        parts.append(f"{means['distillation']:.3f} nats from the teacher")
    ranks = [f"{label} {means[name]:.3f}" for name, label in rank_labels(means)]
    scores = [f"{label} {means[name]:.3f}" for name, label in SCORES.items() if name in means]
    parts += [", ".join(group) for group in (ranks, scores) if group]
    return f"held-out after step {step}: " + "; ".join(parts or [f"loss {means['loss']:.3f}"])


def clock(seconds: float) -> str:
    """Return a time span as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
