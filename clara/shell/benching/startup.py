"""How long a new process takes until it has imported the main job, has its base, and has done its first step."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import mlx.core as mx
import msgspec

import clara.shell.train  # noqa: F401 - what a new process of the main job imports
from clara.shell.benching.options import BenchOptions
from clara.shell.benching.steps import step_work
from clara.shell.benching.timing import Work, timed
from clara.shell.benching.workbench import Workbench, workbench
from clara.shell.setup import prepare_device

Until = Literal["import", "load", "first step"]

CODE = "import sys; from clara.shell.benching.startup import begin; begin(*sys.argv[1:])"


def startup_work(bench: Workbench, until: Until) -> Work:
    """Return a process of its own that comes as far as `until`, from its start to its end."""
    command = [sys.executable, "-c", CODE, until, msgspec.json.encode(bench.options).decode()]

    def call(_: None) -> list[mx.array]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        return []

    return Work(call, {"starts": 1}, once=True)


def begin(until: Until, options: str) -> None:
    """Come as far as `until`: what the process of `startup_work` does. options: `BenchOptions` as JSON."""
    if until == "import":
        return
    given = msgspec.json.decode(options, type=BenchOptions)
    with workbench(given, prepare_device(given.compile)) as bench:
        bench.base()
        if until == "first step":
            timed(step_work(bench, "pretrain"))
