"""Which checkpoints a run has, and which of them it keeps: the newest ones and the best."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from clara.io.errors import ClaraError
from clara.io.files import discard, write_atomic

BEST = "best.json"
NAME = re.compile(r"step-(?P<step>[0-9]+)(?P<aside>\.old)?")
"""A checkpoint's name; `.old` marks one that was to be replaced by another of the same step."""


class Best(Struct, frozen=True):
    """The checkpoint of a run that did best on held-out records."""

    step: int
    metric: str
    """What it was best at, such as "next_token"."""
    value: float


def checkpoint_name(step: int) -> str:
    """Return the name of a step's checkpoint: step-000123."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's name states; −1 where it is no checkpoint's name."""
    found = NAME.fullmatch(path.name)
    return int(found["step"]) if found else -1


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first.

    Of two of one step, the one that was to be replaced comes first: a process killed while it replaced a checkpoint
    may have left either, or both.
    """
    found = [path for path in folder.glob("step-*") if step_of(path) >= 0 and path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path), not path.name.endswith(".old"), path.name))


def path_of(folder: Path, step: int) -> Path | None:
    """Return the checkpoint of a step; None where there is none."""
    return {step_of(path): path for path in checkpoints(folder)}.get(step)


def mark_best(folder: Path, best: Best) -> None:
    """Make a checkpoint the best of its run, which is kept whatever is saved after it.

    Raises ClaraError where its value is no finite number, and where the mark cannot be written.
    """
    if not math.isfinite(best.value):
        raise ClaraError(f"{folder / BEST}: {best.metric} of step {best.step} is {best.value}; wanted a finite number")
    write_atomic(folder / BEST, msgspec.json.format(msgspec.json.encode(best)) + b"\n")


def read_best(folder: Path) -> Best | None:
    """Return which checkpoint is the best; None where none is marked, the mark is damaged or its checkpoint gone."""
    best = read_mark(folder)
    return best if best and path_of(folder, best.step) else None


def read_mark(folder: Path) -> Best | None:
    """Return what is marked as the best, whether or not it is still there; None where that cannot be read."""
    try:
        return msgspec.json.decode((folder / BEST).read_bytes(), type=Best)
    except (OSError, ValueError):
        return None


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove all checkpoints but that of `step`, the newest `keep` up to it, and the best.

    Later steps are those of an undone future: the run went on from before them. Their mark as the best goes too.
    Nothing fails here: what cannot be removed stays for the next time.
    """
    mark = read_mark(folder)
    if mark is None or mark.step > step:
        with suppress(OSError):
            (folder / BEST).unlink()
    last = {step_of(path): path for path in checkpoints(folder)}
    kept = sorted(found for found in last if found <= step)[-max(keep, 1) :]
    best = read_best(folder)
    for path in checkpoints(folder):
        found = step_of(path)
        if path != last[found] or (found not in kept and not (best and found == best.step)):
            discard(path)
