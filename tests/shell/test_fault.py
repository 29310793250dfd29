"""A run that is killed again and again, wherever it happens to be, ends with the bits of one that never was.

Run as a program, this file is the process that does the killing: it imports everything once, computes nothing itself,
and forks a process for each attempt. Where forking is not safe, each attempt is a fresh process.
"""

from __future__ import annotations

import clara  # noqa: F401  # isort: skip  (its BLAS has to be there before MLX)

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import mlx_lm.models.llama  # noqa: F401

from clara.io.checkpoint import newest_checkpoint, read_manifest
from clara.io.retention import checkpoints, step_of
from clara.io.runlog import read_events
from clara.io.tokens import load_tokenizer
from clara.shell import memories, monitor, train

SETTINGS = """
stage = "pretrain,end_to_end"
steps = 10
save_every = 1
eval_every = 3
eval_generate = 0
show = 0

[memory]
doc_max_tokens = 32
compression_rate = 8

[lora]
rank = 4
dropout = 0.2

[optimizer]
learning_rate = 0.01

[data]
batch_size = 2
accumulate = 2
max_tokens = 384
length_multiple = 16
autoencode_share = 0.3

[stages.pretrain.loss]
alignment_weight = 0.1

[stages.end_to_end.data]
candidates = 4
"""
STAGES = ("pretrain", "end_to_end")
STEPS = 10
KILLS, EACH = 50, 2
"""Kills in all, and how many are tried for at each kind of place: where a delayed one hits, the machine decides."""
MOST_ROUNDS = 6
PLACES = ("starting", "preparing", "caching", "stepping", "saving", "evaluating", "drawing")
WHERE = {
    **{(train, "prepare"): "preparing", (train, "with_memories"): "caching", (train, "train"): "stepping"},
    **{(train, "save"): "saving", (monitor, "save"): "saving"},
    **{(train, "measure"): "evaluating", (train, "draw"): "drawing"},
}
"""Which function is which place; what begins and what follows all of them is "starting"."""
CALLS = {"fsync": 24, "rename": 5, "replace": 6, "unlink": 9, "rmdir": 3}
"""Calls of the system that a process kills itself at: how many of them it does at most before."""
METHOD = "spawn" if sys.platform == "darwin" else "fork"


class Order(NamedTuple):
    """When a process is to die: at the n-th call of a function of `os`, or so long after it came to a place."""

    call: str = ""
    number: int = 0
    after: bool = False
    """Whether the call is done first."""
    place: str = ""
    """Empty: from its start on."""
    delay: float = 0.0
    """Seconds."""


def attempt(argv: list[str], order: Order, place: Any, log: Path) -> None:
    """Train in this process, telling the other one where it is, and dying where the order has a call."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    memories.BATCH = 2
    for (module, name), where in WHERE.items():
        setattr(module, name, told(getattr(module, name), PLACES.index(where), place))
    if order.call:
        setattr(os, order.call, deadly(getattr(os, order.call), order))
    sys.exit(train.main(argv))


def told(function: Callable[..., Any], number: int, place: Any) -> Callable[..., Any]:
    """Return a function that says where the process is while it runs."""

    def run(*args: Any, **options: Any) -> Any:
        before, place.value = place.value, number
        result = function(*args, **options)
        place.value = before
        return result

    return run


def deadly(function: Callable[..., Any], order: Order) -> Callable[..., Any]:
    """Return a function of the system that kills the process at one of its calls, before or after it is done."""
    calls = count(1)

    def run(*args: Any, **options: Any) -> Any:
        last = next(calls) == order.number
        if last and not order.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return run


def started(argv: list[str], order: Order, log: Path, patience: float) -> tuple[int, str]:
    """Return (exit status, last place) of an attempt, killed as ordered, and without a call once patience is over."""
    context = multiprocessing.get_context(METHOD)
    place = context.RawValue("i", 0)
    process: Any = context.Process(target=attempt, args=(argv, order, place, log))
    process.start()
    end = time.monotonic() + patience
    while order.place and process.is_alive() and time.monotonic() < end and PLACES[place.value] != order.place:
        time.sleep(0.0002)
    process.join(None if order.call else order.delay)
    process.kill()
    process.join()
    return process.exitcode, PLACES[place.value]


def orders(draw: random.Random, run: Path, whole: float, kills: Counter[str]) -> Iterator[Order]:
    """Yield how each attempt of a run is to die; what was hit too seldom comes twice. whole: seconds undisturbed."""
    step = whole / (4 * STEPS)
    brief = {"starting": step / 4, "preparing": step, "stepping": step}
    brief |= {"saving": step / 4, "evaluating": step / 4, "drawing": step / 100}
    caching = 0
    while True:
        kinds = [*brief, "any", "any", *CALLS]
        kinds += [name for name in kinds if name != "any" and kills[name] < EACH]
        draw.shuffle(kinds)
        for kind in kinds:
            first, second = (checkpoints(run / stage / "checkpoints") for stage in STAGES)
            while caching < 4 and step_of(first[-1] if first else run) == STEPS and not second:
                caching += 1
                yield Order(place="caching", delay=draw.uniform(0, step / 2))
            if kind in CALLS:
                yield Order(call=kind, number=draw.randint(1, CALLS[kind]), after=draw.random() < 0.5)
            elif kind == "any":
                yield Order(delay=draw.uniform(0, 0.2 * whole))
            else:
                yield Order(place=kind, delay=draw.uniform(0, brief[kind]))


def outcome(run: Path) -> list[Any]:
    """Return what of a finished run must not depend on how often it was stopped."""
    found: list[Any] = []
    for stage in STAGES:
        checkpoint, problems = newest_checkpoint(run / stage)
        assert (problems, checkpoint.manifest.step) == ([], STEPS)
        files = read_manifest(checkpoint.path).files
        steps = [event for event in read_events(run / stage / "metrics.jsonl") if event["event"] == "step"]
        losses = [[event["step"], event["loss"], event["gradient_norm"]] for event in steps]
        found.append([stage, files["adapters.safetensors"], files["optimizer.safetensors"], losses])
    return found


def kill_again_and_again(folder: Path) -> dict[str, Any]:
    """Return the outcome of the undisturbed run, those of the disturbed ones, and the kills by place."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    load_tokenizer(folder / "base")
    settings, log = ["--config", str(folder / "settings.toml")], folder / "log.txt"
    draw = random.Random(0)
    whole = time.monotonic()
    status, _ = started([*settings, "--run", str(folder / "calm")], Order(call="abort"), log, 0.0)
    whole = time.monotonic() - whole
    if status:
        raise SystemExit(f"undisturbed: exit {status}\n{log.read_text()}")
    kills: Counter[str] = Counter()
    outcomes = []
    for number in range(MOST_ROUNDS):
        run = folder / f"run{number}"
        for order in orders(draw, run, whole, kills):
            argv = ["--resume", str(run)] if (run / "config.json").exists() else [*settings, "--run", str(run)]
            status, place = started(argv, order, log, whole)
            if status == 0:
                break
            if status != -signal.SIGKILL:
                raise SystemExit(f"{order}: exit {status}\n{log.read_text()}")
            kills[order.call or place] += 1
        outcomes.append(outcome(run))
        if kills.total() >= KILLS and min(kills[name] for name in (*PLACES, *CALLS)) >= EACH:
            break
    return {"calm": outcome(folder / "calm"), "outcomes": outcomes, "kills": kills, "seconds": whole}


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    from folders import tiny_folder, write_records

    base = tiny_folder(tmp_path / "base")
    data, heldout = (
        write_records(tmp_path / "data.jsonl", range(14)),
        write_records(tmp_path / "h.jsonl", range(20, 24)),
    )
    options = SETTINGS.replace("[data]", f'[data]\ndata = "{data}"\nheldout = "{heldout}"', 1)
    (tmp_path / "settings.toml").write_text(f'model = "{base}"\n{options}')
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"kills {found['kills']}, runs {len(found['outcomes'])}, {found['seconds']:.1f} s undisturbed")
    for disturbed in found["outcomes"]:
        assert disturbed == found["calm"]
    assert sum(found["kills"].values()) >= KILLS
    assert [name for name in ("stepping", "saving", *CALLS) if not found["kills"].get(name)] == []


if __name__ == "__main__":
    print(json.dumps(kill_again_and_again(Path(sys.argv[1]))))
