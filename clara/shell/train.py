"""The main job: train on compressed documents, watch the loss, then ask questions of held-out documents.

Run `python -m clara.shell.train`; without any option the built-in base learns the bundled sample corpus. `--stage all`
trains the whole curriculum: pretrain, instruct, end_to_end.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from clara.core.types import TrainState
from clara.io import cuda
from clara.io.checkpoint import Checkpoint
from clara.io.dataset import training_batches
from clara.io.errors import ClaraError
from clara.io.files import locked, remove_stale, write_atomic
from clara.io.retention import checkpoints, step_of
from clara.io.runlog import METRICS, append_event, drop_events_from, read_events
from clara.shell.arguments import CONFIG, Plan, read_plan
from clara.shell.command import guarded
from clara.shell.job import Job, prepare, read_data, read_pool, save, with_memories
from clara.shell.launch import ranked, stoppable
from clara.shell.loop import Step, training_steps
from clara.shell.monitor import draw, evaluated, keep_best, measure, out_of_patience, record_step, show
from clara.shell.options import Options, leaves, to_plain, value_at
from clara.shell.progress import RECENT, Done
from clara.shell.ranks import ALONE, Ranks, awaited, exchanged, require_same, told, totals
from clara.shell.reporters import Reporter, check_reporters, open_reporters
from clara.shell.teacher import teacher_of

COMMAND = "python -m clara.shell.train"

PLACES = ("run", "start_from", "memories")
"""Options that ranks take over from rank 0: a new run's folder has the time in its name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 130 interrupted and saved, 1 a message to the user."""
    cuda.launch_plainly()

    def work(ranks: Ranks) -> int:
        return run_plan(agreed(read_plan(COMMAND, __doc__ or "", argv), ranks), ranks)

    return guarded(lambda: ranked(work), "stopped at once; what was saved before is intact")


def agreed(plan: Plan, ranks: Ranks) -> Plan:
    """Return the plan with the folders that rank 0 has.

    Raises ClaraError, naming the rank, where one was started with other options or sees another state of the run.
    """
    values: dict[str, Any] = {}
    for options, checkpoint in plan.stages if ranks.size > 1 else ():
        found = {".".join(path): value_at(options, path) for path, _ in leaves() if path[-1] not in PLACES}
        found["checkpoint"] = (checkpoint.manifest.step, checkpoint.manifest.files) if checkpoint else None
        values |= {f"stage {options.stage}, {name}": value for name, value in found.items()}
    require_same(ranks, values, "all ranks want the same options, and one run folder that they all see")
    own = [{name: value_at(options, [name]) for name in PLACES} for options, _ in plan.stages]
    folder, places = told(ranks, (str(plan.folder), own))
    pairs = zip(plan.stages, places, strict=True)
    stages = tuple((msgspec.structs.replace(options, **place), checkpoint) for (options, checkpoint), place in pairs)
    return plan._replace(folder=Path(folder), stages=stages)


def run_plan(plan: Plan, ranks: Ranks = ALONE) -> int:
    """Train the stages of a plan, each from where the one before ended; return the exit status."""
    for note in plan.notes:
        print(f"skipped a damaged checkpoint: {note}")
    if len(plan.stages) == 1:
        options, checkpoint = plan.stages[0]
        if checkpoint and finished(options, checkpoint):
            raise ClaraError(f"{plan.folder}: {ended(options, checkpoint.manifest.step)} to go on")
        return run_stage(options, checkpoint, plan.folder, ranks)
    for options, _ in plan.stages:
        check_reporters(options.report_to)
        read_data(options)
        read_pool(options)
        teacher_of(options)
    with owned(plan.folder, {"stages": {options.stage: to_plain(options) for options, _ in plan.stages}}, ranks):
        for i, (options, checkpoint) in enumerate(plan.stages, 1):
            print(f"\nstage {i} of {len(plan.stages)}: {options.stage}", flush=True)
            if checkpoint and finished(options, checkpoint):
                print(f"has done its {checkpoint.manifest.step} steps: {options.run}")
            elif status := run_stage(options, checkpoint, plan.folder, ranks):
                return status
    return 0


def finished(options: Options, checkpoint: Checkpoint) -> bool:
    """Return whether a stage has done all of its steps and what follows them, and still has what came of them.

    A stage that ran out of patience has done all of them too.
    """
    step, events = checkpoint.manifest.step, read_events(Path(options.run) / METRICS)
    if step < options.steps and not out_of_patience(options, [each for each in events if each.get("step", 0) <= step]):
        return False
    return any(event["event"] == "finished" and event["step"] >= min(step, options.steps) for event in events)


def ended(options: Options, step: int) -> str:
    """Return why a run has ended after a step, and what would let it go on."""
    if step >= options.steps:
        return f"has done all {options.steps} steps; give a larger --steps"
    count = f"{options.patience} held-out evaluations in a row" if options.patience > 1 else "a held-out evaluation"
    return f"ended after step {step}: {count} brought no better {options.keep_best}; give a larger --patience, or 0"


def run_stage(options: Options, checkpoint: Checkpoint | None, root: Path, ranks: Ranks = ALONE) -> int:
    """Train one stage in its own folder; return the exit status. root: what --resume is given to go on."""
    job = prepare(options, checkpoint, ranks)
    with owned(job.folder, to_plain(options), ranks):
        names, project = check_reporters(options.report_to), f"clara-{options.stage}"
        with open_reporters(names if ranks.leads else [], job.folder, project, to_plain(options), job.start) as report:
            status = train(with_memories(job), report, root)
    exchanged(ranks, None)  # the next stage starts from what rank 0 saved
    return status


@contextmanager
def owned(folder: Path, config: Any, ranks: Ranks) -> Iterator[None]:
    """Make a run's folder, write the options into it, and hold it in the block; rank 0 does."""
    if not ranks.leads:
        yield
        return
    make_folder(folder)
    with locked(folder, "training"):
        write_config(folder, config)
        yield


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
    options, state, ranks = job.options, job.state, job.ranks
    if ranks.leads:
        drop_events_from(job.folder / METRICS, job.start if job.start else -1)
    batches = training_batches(job.records, job.feed, options.steps, job.start, ranks.part)
    done = deque[Done](maxlen=max(options.log_every, RECENT))
    with stoppable(ranks, "step") as interrupted:
        catch_up(job, report)
        steps = training_steps(job.update, state, batches, functools.partial(goes_ahead, job))
        for step in patient(job, told_where(job, awaited(ranks, steps))):
            state = step.state
            tokens, asked = totals(ranks, [step.tokens, int(interrupted())])
            step = step if ranks.cut else step._replace(tokens=tokens)
            done.append(Done(step.metrics, step.tokens, step.seconds))
            record_step(job, step, done, report)
            last = step.number == options.steps
            stop = bool(asked) or (ranks.size == 1 and interrupted())
            if ranks.leads and (last or stop or due(step.number, options.save_every)):
                save(job, state)
                draw(job)
            if last or due(step.number, options.eval_every):
                keep_best(job, state, measure(job, state, report))
            if stop and not last:
                print(f"interrupted; saved step {step.number}. Go on with: {COMMAND} --resume {root}")
                return 130
    if ranks.leads:
        conclude(job, state)
    elif ranks.cut:
        show(job, state)  # all answer or none, as each has only a part of the base
    return 0


def conclude(job: Job, state: TrainState) -> None:
    """Save what was not, and show what was learnt."""
    options = job.options
    if (done := int(state.step)) < options.steps:
        print(ended(options, done))
        if done not in map(step_of, checkpoints(job.folder / "checkpoints")):
            save(job, state)
    draw(job)
    show(job, state)
    append_event(job.folder / METRICS, {"event": "finished", "step": done})
    print(f"\nrun folder: {job.folder}")


def catch_up(job: Job, report: Reporter) -> None:
    """Evaluate where training starts: before its first step, and what a run that was killed had yet to evaluate."""
    first, options = job.start == 0, job.options
    if job.ranks.leads:
        remove_stale(job.folder / "checkpoints")
    if not (first or job.start == options.steps or due(job.start, options.eval_every)):
        return
    means = told(job.ranks, evaluated(job, job.start)) or measure(job, job.state, report)
    if not first:
        keep_best(job, job.state, means)


def patient(job: Job, steps: Iterable[Step]) -> Iterator[Step]:
    """Yield the steps until as many evaluations in a row as `patience` says have brought nothing better."""

    def over() -> bool:
        return bool(told(job.ranks, out_of_patience(job.options, read_events(job.folder / METRICS))))

    if over():
        return
    for step in steps:
        yield step
        if due(step.number, job.options.eval_every) and over():
            return


def told_where(job: Job, steps: Iterable[Step]) -> Iterator[Step]:
    """Yield the steps; an error among them also says which checkpoint is the last good one."""
    try:
        yield from steps
    except ClaraError as error:
        saved = checkpoints(job.folder / "checkpoints")
        raise ClaraError(f"{error}; last good checkpoint: {saved[-1] if saved else 'none was saved'}") from error


def goes_ahead(job: Job, step: int) -> bool:
    """Return whether a device is handed the next step before this one is looked at: a GPU, where nothing comes between.

    Ranks that exchange values after a step take one at a time.
    """
    options = job.options
    pauses = due(step, options.save_every) or due(step, options.eval_every)
    return job.ranks.size == 1 and mx.default_device() == mx.gpu and not pauses


def due(step: int, every: int) -> bool:
    """Return whether something that happens every n steps happens after this one; never for n = 0."""
    return every > 0 and step % every == 0


if __name__ == "__main__":
    sys.exit(main())
