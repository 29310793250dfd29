"""What is seen of a run: progress lines, metrics, held-out evaluation, curves, the best checkpoint, sample answers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from clara.core.types import TrainState
from clara.io.dataset import evaluation_batches
from clara.io.records import Record
from clara.io.report.svg import write_svg
from clara.io.retention import Best, checkpoints, mark_best, read_best, step_of
from clara.io.runlog import METRICS, append_event, read_events
from clara.shell.answer import answer_chosen
from clara.shell.job import Job, current, save
from clara.shell.loop import Step, evaluate, score_answers
from clara.shell.options import Options
from clara.shell.progress import Done, heldout_line, step_line
from clara.shell.ranks import dealt, exchanged, progressing
from clara.shell.reporters import Reporter
from clara.shell.reporting.curves import loss_figure, rank_figure
from clara.shell.setup import Session

LOWER_IS_BETTER = ("loss", "next_token", "alignment", "contrastive", "distillation", "other_memory")


def record_step(job: Job, step: Step, done: Sequence[Done], report: Reporter) -> None:
    """Log a step, and print a line where one is due, of the steps since the line before; rank 0 does.

    done: the last steps of this process, this one among them.
    """
    if not job.ranks.leads:
        return
    values = {
        **step.metrics,
        "tokens": step.tokens,
        "seconds": round(step.seconds, 4),
        "peak_gb": round(mx.get_peak_memory() / 1e9, 3),
    }
    append_event(job.folder / METRICS, {"event": "step", "step": step.number, **values})
    report(step.number, "training", values)
    every, total = job.options.log_every, job.options.steps
    if step.number in (1, total) or step.number % every == 0:
        before = max((step.number - 1) // every * every, min(step.number - 1, 1))  # step 1 has a line of its own
        print(step_line(step.number, total, done, step.number - before, mx.get_peak_memory()), flush=True)


def measure(job: Job, state: TrainState, report: Reporter) -> dict[str, float]:
    """Evaluate on held-out records, log and print the result, and return it: metric → mean; nothing without records.

    The ranks share the work, and rank 0 logs and prints.
    """
    options, ranks, step = job.options, job.ranks, int(state.step)
    heldout = job.heldout[: options.eval_records or None]
    if not heldout:
        return {}
    batches = progressing(ranks, evaluation_batches(heldout, job.feed, options.data.batch_size, ranks.part))
    gather = functools.partial(exchanged, ranks)
    means = evaluate(job.eval_step, state.params, batches, job.session.config.loss.weights, gather)
    asked = [record for record in heldout if record.data_type == "qa"][: options.eval_generate]
    session = current(job, state)
    own = progressing(ranks, dealt(ranks, asked))
    means |= score_answers(own, lambda record: reply(session, record), gather)
    if not ranks.leads:
        return means
    append_event(job.folder / METRICS, {"event": "heldout", "step": step, **means})
    report(step, "held-out", means)
    print(heldout_line(means, step), flush=True)
    if options.keep_best and options.keep_best not in means and step == 0:
        print(f"note      no best checkpoint is kept: no held-out metric {options.keep_best} among {', '.join(means)}")
        if options.patience:
            print(f"note      patience {options.patience} never ends the run, for want of that metric")
    return means


def evaluated(job: Job, step: int) -> dict[str, float]:
    """Return the held-out metrics that were logged of a step; nothing where there are none."""
    events = [e for e in read_events(job.folder / METRICS) if e["event"] == "heldout" and e["step"] == step]
    return {name: value for name, value in events[-1].items() if name not in ("event", "step")} if events else {}


def keep_best(job: Job, state: TrainState, means: Mapping[str, float]) -> None:
    """Keep the checkpoint of a state, writing it where need be, if it is the best so far by the chosen metric.

    Rank 0 does.
    """
    metric, folder, step = job.options.keep_best, job.folder / "checkpoints", int(state.step)
    if metric not in means or not job.ranks.leads:
        return
    best, value = read_best(folder), means[metric]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    if best is not None and best.metric == metric and sign * value <= sign * best.value:
        return
    if step not in map(step_of, checkpoints(folder)):
        save(job, state)
    mark_best(folder, Best(step=step, metric=metric, value=value))


def out_of_patience(options: Options, events: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether as many held-out evaluations in a row as `patience` says have not bettered the `keep_best` metric.

    events: of the run. What was measured before the first step does not count.
    """
    metric = options.keep_best
    values = {e["step"]: e[metric] for e in events if e["event"] == "heldout" and e["step"] and metric in e}
    if not options.patience or not values:
        return False
    sign = -1 if metric in LOWER_IS_BETTER else 1
    ranked = [sign * value for _, value in sorted(values.items())]
    return len(ranked) - 1 - ranked.index(max(ranked)) >= options.patience


def draw(job: Job) -> None:
    """Write the curves of the run's metrics: losses, and how the candidates rank."""
    events = read_events(job.folder / METRICS)
    for name, figure in (("loss", loss_figure(events)), ("recall", rank_figure(events))):
        if figure.series:
            write_svg(job.folder / f"{name}.svg", figure, 720, 360)


def reply(session: Session, record: Record, question: int = 0) -> str:
    """Return the answer to one of a record's questions."""
    return "".join(answer_chosen(session, record.docs, record.questions[question])).strip()


def show(job: Job, state: TrainState) -> None:
    """Ask one question each of a few held-out records."""
    session = current(job, state)
    asked = [record for record in job.heldout if record.data_type == "qa"][: job.options.show]
    for i, record in enumerate(asked):
        pick = i % len(record.questions)
        print(
            f"\n  question  {record.questions[pick]}\n  answer    {reply(session, record, pick)}\n"
            f"  expected  {record.replies[pick]}",
            flush=True,
        )
