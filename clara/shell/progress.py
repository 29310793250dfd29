"""The lines that a training run prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_reduce

from clara.io.records import Record
from clara.shell.loop import Step
from clara.shell.options import Options
from clara.shell.setup import Session


def heading(options: Options, session: Session, records: Sequence[Record], blas: str, folder: Path) -> list[str]:
    """Return the lines that say what is about to run, and on what."""
    trained = tree_reduce(lambda count, leaf: count + leaf.size, session.params, 0)
    memory = options.memory
    return [
        f"device    {mx.default_device().type.name}" + (f", BLAS: {blas}" if mx.default_device() == mx.cpu else ""),
        f"base      {options.model}, {session.base.module.model_type}, fingerprint {session.fingerprint}",
        f"memory    {memory.num_memory_tokens} vectors for up to {memory.doc_max_tokens} tokens"
        + (", anchored" if memory.anchored else ""),
        f"training  {trained:,} parameters on {len(records):,} records of {options.data.data}; stage {options.stage}, "
        f"{options.steps} steps of {options.data.batch_size}",
        f"run       {folder}",
    ]


def step_line(step: Step, total: int, seconds: Sequence[float], peak: int) -> str:
    """Return a progress line; the time left is reckoned from the median of the last 20 steps. peak: bytes."""
    recent = sorted(seconds[-20:])
    left = recent[len(recent) // 2] * (total - step.number)
    terms = "  ".join(
        f"{name} {step.metrics[name]:.4f}" for name in ("next_token", "alignment") if name in step.metrics
    )
    speed = f"{step.tokens / step.seconds:,.0f} tokens/s  {step.seconds:.2f} s"
    return (
        f"step {step.number:>{len(str(total))}}/{total}  loss {step.metrics['loss']:.4f}  {terms}  {speed}  "
        f"peak {peak / 1e9:.1f} GB  left {clock(left)}"
    )


def heldout_line(means: Mapping[str, float], step: int) -> str:
    """Return the line of a held-out evaluation."""
    if "next_token" not in means:
        return f"held-out after step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    return (
        f"held-out after step {step}: {means['next_token']:.3f} nats per answer token; "
        f"{means['other_memory']:.3f} with another document's memory"
    )


def clock(seconds: float) -> str:
    """Return a time span as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
