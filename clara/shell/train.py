"""The main job: train on compressed documents, watch the loss, then ask questions of held-out documents.

Run `python -m clara.shell.train`; without any option the built-in base learns the bundled sample corpus.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import msgspec

from clara.core.optim import adamw
from clara.core.step import make_eval_step, make_train_step, make_update
from clara.core.types import TrainState
from clara.io import cpu
from clara.io.checkpoint import Checkpoint, Manifest, checkpoints, save_checkpoint
from clara.io.dataset import check_records, evaluation_batches, training_batches
from clara.io.errors import ClaraError
from clara.io.files import write_atomic
from clara.io.records import Record, read_records, require_one_document
from clara.io.runlog import append_event, drop_events_from, read_events, write_curve
from clara.shell.answer import answer
from clara.shell.loop import Step, Update, evaluate, training_steps
from clara.shell.options import Options, read_arguments
from clara.shell.progress import heading, heldout_line, step_line
from clara.shell.setup import Session, data_fingerprint, open_session, prepare_device

COMMAND = "python -m clara.shell.train"


class Job(NamedTuple):
    """A training run, ready to go."""

    options: Options
    session: Session
    folder: Path
    records: list[Record]
    heldout: list[Record]
    data: str
    """Fingerprint of the training data as it was read."""
    start: int
    state: TrainState
    update: Update


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 130 interrupted and saved, 1 a message to the user."""
    try:
        options, checkpoint, notes = read_arguments(COMMAND, __doc__ or "", argv)
        for note in notes:
            print(f"skipped a damaged checkpoint: {note}")
        job = prepare(options, checkpoint)
        return train(job)
    except ClaraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped at once; what was saved before is intact", file=sys.stderr)
        return 130


def prepare(options: Options, checkpoint: Checkpoint | None) -> Job:
    """Read and check everything that the run needs, before any step is computed."""
    data = data_fingerprint(options.data.data)
    records = read_records(options.data.data)
    heldout = read_records(options.data.heldout) if options.data.heldout else []
    require_one_document([*records, *heldout])
    folder = run_folder(options, resuming=checkpoint is not None)
    start = checkpoint.manifest.step if checkpoint else 0
    if checkpoint and checkpoint.manifest.data != data:
        raise ClaraError(f"{options.data.data}: not the data that this run was started with; resume with that")
    if start >= options.steps:
        raise ClaraError(f"{folder}: has done {start} of {options.steps} steps; give a larger --steps to go on")
    compiled = prepare_device(options.compile)
    session = open_session(options, checkpoint)
    check_records([*records, *heldout], session.encoder, options.data)
    optimizer = adamw(options.optimizer, options.steps)
    update = make_update(make_train_step(session.base, session.config), optimizer)
    state = TrainState(
        session.params,
        checkpoint.optimizer_state if checkpoint else optimizer.init(session.params),
        mx.array(start),
    )
    for line in heading(options, session, records, cpu.preload(), folder):
        print(line, flush=True)
    step = mx.compile(update) if compiled else update
    return Job(options, session, folder, records, heldout, data, start, state, step)


def run_folder(options: Options, resuming: bool) -> Path:
    """Return the run's folder, not made yet. Raises ClaraError where another run is in it."""
    folder = Path(options.run or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{options.stage}").expanduser()
    if not resuming and checkpoints(folder / "checkpoints"):
        raise ClaraError(f"{folder}: holds a run already; go on with it by --resume {folder}, or give another --run")
    return folder


def make_folder(folder: Path) -> None:
    """Make the run's folder. Raises ClaraError where that cannot be."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClaraError(f"{folder}: cannot be made ({error.strerror}); give another --run") from error


def train(job: Job) -> int:
    """Run the steps of a job, save, and show what was learnt."""
    options, metrics = job.options, job.folder / "metrics.jsonl"
    make_folder(job.folder)
    write_atomic(job.folder / "config.json", msgspec.json.format(msgspec.json.encode(options)) + b"\n")
    drop_events_from(metrics, job.start if job.start else -1)
    state = job.state
    batches = training_batches(job.records, job.session.encoder, options.data, options.steps, job.start)
    seconds: list[float] = []
    saved = job.start
    with interruptible() as interrupted:
        if job.start == 0:
            measure(job, state, 0)
        for step in training_steps(job.update, state, batches):
            state = step.state
            seconds.append(step.seconds)
            record_step(job, step, seconds)
            last = step.number == options.steps
            if last or interrupted() or due(step.number, options.save_every):
                saved = save(job, state)
            if last or due(step.number, options.eval_every):
                measure(job, state, step.number)
            if interrupted() and not last:
                print(f"interrupted; saved step {saved}. Go on with: {COMMAND} --resume {job.folder}")
                return 130
    draw(job)
    show(job, state)
    print(f"\nrun folder: {job.folder}")
    return 0


def due(step: int, every: int) -> bool:
    """Return whether something that happens every n steps happens after this one; never for n = 0."""
    return every > 0 and step % every == 0


def record_step(job: Job, step: Step, seconds: list[float]) -> None:
    """Log a step, and print its line where one is due."""
    append_event(
        job.folder / "metrics.jsonl",
        {
            "event": "step",
            "step": step.number,
            **step.metrics,
            "tokens": step.tokens,
            "seconds": round(step.seconds, 4),
            "peak_gb": round(mx.get_peak_memory() / 1e9, 3),
        },
    )
    if step.number == job.options.steps or due(step.number, job.options.log_every):
        print(step_line(step, job.options.steps, seconds, mx.get_peak_memory()), flush=True)


def measure(job: Job, state: TrainState, step: int) -> None:
    """Evaluate on held-out records, log and print the result."""
    heldout = job.heldout[: job.options.eval_records or None]
    if not heldout:
        return
    eval_step = make_eval_step(job.session.base, job.session.config)
    batches = evaluation_batches(heldout, job.session.encoder, job.options.data, job.options.data.batch_size)
    means = evaluate(eval_step, state.params, batches)
    append_event(job.folder / "metrics.jsonl", {"event": "heldout", "step": step, **means})
    print(heldout_line(means, step), flush=True)


def save(job: Job, state: TrainState) -> int:
    """Write a checkpoint and the loss curve; return the step."""
    manifest = Manifest(
        step=int(state.step),
        base=job.session.fingerprint,
        data=job.data,
        versions={name: version(name) for name in ("clara-mlx", "mlx", "mlx-lm")},
    )
    options = msgspec.to_builtins(job.options)
    save_checkpoint(job.folder / "checkpoints", state, job.session.base, options, manifest, job.options.keep)
    draw(job)
    return manifest.step


def draw(job: Job) -> None:
    """Write the loss curves of the run's metrics."""
    events = read_events(job.folder / "metrics.jsonl")
    curves = {
        "training": [(e["step"], e["loss"]) for e in events if e["event"] == "step"],
        "held-out": [(e["step"], e["next_token"]) for e in events if e["event"] == "heldout" and "next_token" in e],
        "held-out, other memory": [(e["step"], e["other_memory"]) for e in events if "other_memory" in e],
    }
    write_curve(job.folder / "loss.svg", {k: v for k, v in curves.items() if v}, "loss (nats per answer token)")


def show(job: Job, state: TrainState) -> None:
    """Compress a few held-out documents and ask one question of each."""
    session = job.session._replace(params=state.params)
    asked = [record for record in job.heldout if record.data_type == "qa"][: job.options.show]
    for i, record in enumerate(asked):
        pick = i % len(record.questions)
        reply = "".join(answer(session, record.docs, record.questions[pick])).strip()
        print(
            f"\n  question  {record.questions[pick]}\n  answer    {reply}\n  expected  {record.replies[pick]}",
            flush=True,
        )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; pressed twice, it stops the process at once."""
    pressed = []

    def handle(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step; press Ctrl-C again to stop at once", flush=True)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
