"""A run's metrics sent to TensorBoard, Weights & Biases or SwanLab, whose packages are imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from clara.io.errors import ClaraError
from clara.io.files import write_atomic

Reporter = Callable[[int, str, Mapping[str, float]], None]
"""Takes a step, a group such as "training" or "held-out", and its values by name."""

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "swanlab": "swanlab"}
REPORTERS = tuple(PACKAGES)
RUN_ID = "report-id"


class Run(NamedTuple):
    """What a reporter is told of a run when it is opened."""

    folder: Path
    project: str
    config: dict[str, Any]
    start: int
    """Steps done before: whatever was reported of later ones will be reported anew."""


class Sink(NamedTuple):
    """An open reporter."""

    name: str
    report: Reporter
    close: Callable[[int], object]
    """Takes an exit status: 0, or 1 where the run ends by an error."""


def check_reporters(names: str) -> list[str]:
    """Return the reporters of a comma-separated list, each once.

    Raises ClaraError for an unknown name, and for one whose package is not installed.
    """
    chosen = list(dict.fromkeys(name.strip().lower() for name in names.split(",") if name.strip()))
    for name in chosen:
        if name not in PACKAGES:
            raise ClaraError(f"{name}: no such reporter; wanted one or more of {', '.join(REPORTERS)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ClaraError(f'{name}: {PACKAGES[name]} is not installed; run: pip install "clara-mlx[{name}]"')
    return chosen


@contextmanager
def open_reporters(
    names: Sequence[str], folder: Path, project: str, config: Mapping[str, Any], start: int = 0
) -> Iterator[Reporter]:
    """Yield one reporter that passes everything on to those named; to none, where none is named.

    folder: the run's; a run that is resumed there goes on in the same place. config: plain data, as it is shown.
    start: steps that a resumed run has done. Raises ClaraError where one cannot be opened. One that fails later is
    named on stderr, once, and the run goes on.
    """
    run = Run(folder, project, dict(config), start)
    sinks: list[Sink] = []
    failed: set[str] = set()
    status = 1
    try:
        for name in names:
            sinks.append(open_sink(name, run))
        yield partial(pass_on, sinks, failed)
        status = 0
    finally:
        for sink in reversed(sinks):
            attempt(sink.name, failed, partial(sink.close, status))


def pass_on(sinks: Sequence[Sink], failed: set[str], step: int, group: str, values: Mapping[str, float]) -> None:
    """Report values to every open reporter."""
    for sink in sinks:
        attempt(sink.name, failed, partial(sink.report, step, group, values))


def attempt(name: str, failed: set[str], action: Callable[[], object]) -> None:
    """Let a reporter do something; an error is no more than a warning, and that only the first time."""
    try:
        action()
    except Exception as error:
        if name not in failed:
            failed.add(name)
            print(f"warning: {name} failed ({said(error)}); the run goes on", file=sys.stderr, flush=True)


def said(error: Exception) -> str:
    """Return the message of an error, or its kind where it has none."""
    return str(error) or type(error).__name__


def open_sink(name: str, run: Run) -> Sink:
    """Return an open reporter. Raises ClaraError where it cannot be opened."""
    openers = {"tensorboard": open_tensorboard, "wandb": open_wandb, "swanlab": open_swanlab}
    try:
        return openers[name](importlib.import_module(PACKAGES[name]), run)
    except Exception as error:
        raise ClaraError(f"{name}: cannot be opened ({said(error)}); put that right or go on without it") from error


def open_tensorboard(package: Any, run: Run) -> Sink:
    """Return a reporter that writes event files into `tensorboard` in the run's folder."""
    # Files are named by the second: without a name of its own, one opened in the same second would replace another.
    writer = package.SummaryWriter(
        str(run.folder / "tensorboard"),
        purge_step=run.start + 1 if run.start else None,
        filename_suffix=f".{secrets.token_hex(4)}",
        flush_secs=10,
    )
    writer.add_text("options", f"```\n{json.dumps(run.config, indent=2)}\n```", run.start)

    def report(step: int, group: str, values: Mapping[str, float]) -> None:
        for name, value in named(group, values).items():
            writer.add_scalar(name, value, step)

    return Sink("tensorboard", report, lambda _: writer.close())


def open_wandb(package: Any, run: Run) -> Sink:
    """Return a reporter to Weights & Biases."""
    opened = package.init(
        project=run.project,
        name=run.folder.resolve().name,
        id=run_id(run.folder),
        resume="allow",
        dir=str(run.folder),
        config=run.config,
        allow_val_change=True,
    )

    def report(step: int, group: str, values: Mapping[str, float]) -> None:
        opened.log(named(group, values), step=step)

    return Sink("wandb", report, lambda status: opened.finish(exit_code=status))


def open_swanlab(package: Any, run: Run) -> Sink:
    """Return a reporter to SwanLab."""
    opened = package.init(
        project=run.project,
        experiment_name=run.folder.resolve().name,
        id=run_id(run.folder),
        resume="allow",
        logdir=str(run.folder / "swanlog"),
        config=run.config,
    )

    def report(step: int, group: str, values: Mapping[str, float]) -> None:
        opened.log(named(group, values), step=step)

    return Sink("swanlab", report, lambda _: opened.finish())


def named(group: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return values under the names that reporters show in groups: training/loss."""
    return {f"{group}/{name}": float(value) for name, value in values.items()}


def run_id(folder: Path) -> str:
    """Return the id of a run, 21 hexadecimal digits, which is drawn once and kept in the run's folder.

    Two folders of one name are two runs, and a folder that was moved is still the same. Raises ClaraError where the
    id cannot be written, and OSError or UnicodeDecodeError where it cannot be read.
    """
    file = folder / RUN_ID
    kept = file.read_text("ascii").strip() if file.exists() else ""
    if kept:
        return kept
    drawn = secrets.token_hex(11)[:21]
    write_atomic(file, drawn.encode() + b"\n")
    return drawn
