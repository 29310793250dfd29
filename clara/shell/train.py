"""The main job: train on compressed documents, watch the loss, then ask questions of held-out documents.

Run `python -m clara.shell.train`; without any option the built-in base learns the bundled sample corpus. `--stage all`
trains the whole curriculum: pretrain, instruct, end_to_end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clara.io.checkpoint import Checkpoint
from clara.io.dataset import training_batches
from clara.io.errors import ClaraError
from clara.io.files import locked, remove_stale, write_atomic
from clara.io.retention import checkpoints
from clara.io.runlog import METRICS, append_event, drop_events_from, read_events
from clara.shell.arguments import CONFIG, Plan, read_plan
from clara.shell.command import guarded
from clara.shell.interrupt import interruptible
from clara.shell.job import Job, prepare, read_data, save, with_memories
from clara.shell.loop import Step, training_steps
from clara.shell.monitor import draw, evaluated, keep_best, measure, record_step, show
from clara.shell.options import Options, to_plain
from clara.shell.reporters import Reporter, check_reporters, open_reporters

COMMAND = "python -m clara.shell.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 130 interrupted and saved, 1 a message to the user."""
    return guarded(
        lambda: run_plan(read_plan(COMMAND, __doc__ or "", argv)), "stopped at once; what was saved before is intact"
    )


def run_plan(plan: Plan) -> int:
    """Train the stages of a plan, each from where the one before ended; return the exit status."""
    for note in plan.notes:
        print(f"skipped a damaged checkpoint: {note}")
    if len(plan.stages) == 1:
        options, checkpoint = plan.stages[0]
        if finished(options, checkpoint):
            raise ClaraError(f"{plan.folder}: has done all {options.steps} steps; give a larger --steps to go on")
        return run_stage(options, checkpoint, plan.folder)
    for options, _ in plan.stages:
        check_reporters(options.report_to)
        read_data(options)
    make_folder(plan.folder)
    with locked(plan.folder, "training"):
        write_config(plan.folder, {"stages": {options.stage: to_plain(options) for options, _ in plan.stages}})
        for i, (options, checkpoint) in enumerate(plan.stages, 1):
            print(f"\nstage {i} of {len(plan.stages)}: {options.stage}", flush=True)
            if finished(options, checkpoint):
                print(f"has done its {options.steps} steps: {options.run}")
            elif status := run_stage(options, checkpoint, plan.folder):
                return status
    return 0


def finished(options: Options, checkpoint: Checkpoint | None) -> bool:
    """Return whether a stage has done all of its steps and what follows them, and still has what came of them."""
    if checkpoint is None or checkpoint.manifest.step < options.steps:
        return False
    events = read_events(Path(options.run) / METRICS)
    return any(event["event"] == "finished" and event["step"] >= options.steps for event in events)


def run_stage(options: Options, checkpoint: Checkpoint | None, root: Path) -> int:
    """Train one stage in its own folder; return the exit status. root: what --resume is given to go on."""
    job = prepare(options, checkpoint)
    make_folder(job.folder)
    with locked(job.folder, "training"):
        write_config(job.folder, to_plain(options))
        names, project = check_reporters(options.report_to), f"clara-{options.stage}"
        with open_reporters(names, job.folder, project, to_plain(options), job.start) as report:
            return train(with_memories(job), report, root)


def make_folder(folder: Path) -> None:
    """Make a run's folder. Raises ClaraError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClaraError(f"{folder}: cannot be made ({error.strerror}); give another --run") from error


def write_config(folder: Path, config: Any) -> None:
    """Write the options into a run's folder."""
    write_atomic(folder / CONFIG, msgspec.json.format(msgspec.json.encode(config)) + b"\n")


def train(job: Job, report: Reporter, root: Path) -> int:
    """Run the steps of a job, save, and show what was learnt; return the exit status."""
    options, state = job.options, job.state
    drop_events_from(job.folder / METRICS, job.start if job.start else -1)
    batches = training_batches(job.records, job.feed, options.steps, job.start)
    seconds: list[float] = []
    with interruptible("step") as interrupted:
        catch_up(job, report)
        for step in told_where(job, training_steps(job.update, state, batches)):
            state = step.state
            seconds.append(step.seconds)
            record_step(job, step, seconds, report)
            last, stop = step.number == options.steps, interrupted()
            if last or stop or due(step.number, options.save_every):
                save(job, state)
                draw(job)
            if last or due(step.number, options.eval_every):
                keep_best(job, state, measure(job, state, report))
            if stop and not last:
                print(f"interrupted; saved step {step.number}. Go on with: {COMMAND} --resume {root}")
                return 130
    draw(job)
    show(job, state)
    append_event(job.folder / METRICS, {"event": "finished", "step": options.steps})
    print(f"\nrun folder: {job.folder}")
    return 0


def catch_up(job: Job, report: Reporter) -> None:
    """Evaluate where training starts: before its first step, and what a run that was killed had yet to evaluate."""
    first, options = job.start == 0, job.options
    remove_stale(job.folder / "checkpoints")
    if not (first or job.start == options.steps or due(job.start, options.eval_every)):
        return
    means = evaluated(job, job.start) or measure(job, job.state, report)
    if not first:
        keep_best(job, job.state, means)


def told_where(job: Job, steps: Iterable[Step]) -> Iterator[Step]:
    """Yield the steps; an error among them also says which checkpoint is the last good one."""
    try:
        yield from steps
    except ClaraError as error:
        saved = checkpoints(job.folder / "checkpoints")
        raise ClaraError(f"{error}; last good checkpoint: {saved[-1] if saved else 'none was saved'}") from error


def due(step: int, every: int) -> bool:
    """Return whether something that happens every n steps happens after this one; never for n = 0."""
    return every > 0 and step % every == 0


if __name__ == "__main__":
    sys.exit(main())
