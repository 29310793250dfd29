"""Measures a checkpoint: all systems side by side on the same questions, with intervals and paired tests.

Run `python -m clara.shell.evaluate --checkpoint RUN --data FILE`; without RUN the built-in checkpoint is measured. The
data are records of this project, the original's evaluation files, HotpotQA, 2WikiMultihopQA, MuSiQue, SQuAD or NQ-open
as they are distributed. --paper paper.pdf asks the built-in questions on the CLaRa paper instead, about passages of the
PDF. Predictions are kept as they are made: the same command goes on where it stopped, and with further --systems adds
these.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import mlx.core as mx
import msgspec

from clara.io.errors import ClaraError, short_of_memory
from clara.io.evaluation.formats import Question
from clara.io.evaluation.labels import heading
from clara.io.evaluation.predictions import (
    SUMMARY,
    Prediction,
    append_predictions,
    predictions_path,
    read_predictions,
    write_predictions,
    write_scores,
)
from clara.io.evaluation.systems import serves
from clara.io.files import locked, write_atomic
from clara.io.report.document import Report, Section
from clara.io.report.markdown import markdown, section
from clara.shell.arguments import flag, flag_form
from clara.shell.bounds import checked
from clara.shell.command import guarded
from clara.shell.evaluation.answering import answered
from clara.shell.evaluation.choosing import Bench, prompt_size, read_by
from clara.shell.evaluation.documents import compress_documents
from clara.shell.evaluation.plan import EvaluateOptions, Plan, plan_of, require_same, write_config
from clara.shell.evaluation.summary import scores_of, tables
from clara.shell.interrupt import interruptible
from clara.shell.memories import EVERY
from clara.shell.options import leaves
from clara.shell.progress import clock

COMMAND = "python -m clara.shell.evaluate"

PEAKS = "peaks.json"
"""The most memory that the device held for each system, over all runs into the folder."""

TIMES = "compress.jsonl"
"""What compressing documents took."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 130 interrupted, 1 a message to the user."""
    return guarded(
        lambda: evaluate(plan_of(read_arguments(argv))),
        "stopped at once; what was computed before is kept: run the same command again",
    )


def read_arguments(argv: Sequence[str] | None) -> EvaluateOptions:
    """Return the options of the arguments. Raises ClaraError for values that are out of bounds."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {field.name: field.default for field in msgspec.structs.fields(EvaluateOptions)}
    for (name,), hint in leaves(EvaluateOptions):
        kind, about = get_args(hint)[:2]
        shown = defaults[name] not in ("", 0, False) or name == "seed"
        text = about.description + (f" [{defaults[name]}]" if shown else "")
        parser.add_argument(flag(name), default=argparse.SUPPRESS, help=text, **flag_form(kind))
    return checked(vars(parser.parse_args(argv)), EvaluateOptions)


def evaluate(plan: Plan) -> int:
    """Ask every system, keep what they answer, and print and write what that is worth; return the exit status."""
    print("\n".join(heading(plan.config)), flush=True)
    with locked(plan.out, "evaluating"):
        # Another process may have written there since the plan was made.
        plan = plan._replace(config=require_same(plan))
        write_config(plan)
        bench = compressed(plan)
        with interruptible("batch") as interrupted:
            for name in plan.systems:
                if not run_system(plan, bench, name, interrupted):
                    print(f"interrupted; the same command goes on in {plan.out}")
                    return 130
        finish(plan)
    return 0


def served(plan: Plan, name: str) -> list[Question]:
    """Return the questions that a system answers."""
    return [each for each in plan.questions if serves(name, each, plan.bench.corpus)]


def compressed(plan: Plan) -> Bench:
    """Return the bench with every document compressed that some system reads as memory which is not done yet."""
    texts: list[str] = []
    for name in plan.systems:
        found = {each.id for each in read_predictions(predictions_path(plan.out, name))}
        questions = served(plan, name)
        if any(each.id not in found for each in questions):
            texts += read_by(plan.bench, name, questions)
    if not texts:
        return plan.bench
    root = Path(plan.options.memories or plan.out / "memories").expanduser()
    return plan.bench._replace(compressed=compress_documents(plan.bench.session, texts, root, plan.out / TIMES))


def run_system(plan: Plan, bench: Bench, name: str, interrupted: Callable[[], bool]) -> bool:
    """Have a system answer the questions that it has not answered yet; return whether it has answered all.

    Batches do not depend on where an earlier run stopped: one of which a part is missing is answered anew. While a
    system runs its predictions stand in the order of batches, then in that of the questions. The first batch is also
    answered once before, so that no time holds what is done once.
    """
    questions = served(plan, name)
    path = predictions_path(plan.out, name)
    found = {each.id: each for each in read_predictions(path)}
    batches = batches_of(bench, name, questions, plan.options.batch_size)
    rest = [batch for batch in batches if any(each.id not in found for each in batch)]
    if rest:
        dropped = {each.id for batch in rest for each in batch}
        found = {id_: each for id_, each in found.items() if id_ not in dropped}
        write_predictions(path, list(found.values()))
        mx.reset_peak_memory()
        answered_in_parts(bench, name, rest[0])
    begun = told = time.perf_counter()
    done = before = len(found)
    for batch in rest:
        made = answered_in_parts(bench, name, batch)
        append_predictions(path, made)
        found |= {each.id: each for each in made}
        done, now = done + len(batch), time.perf_counter()
        if now - told > EVERY or done == len(questions):
            told, speed = now, (done - before) / (now - begun)
            left = clock((len(questions) - done) / speed)
            print(f"{name:<17} {done:,}/{len(questions):,}, {speed:.2f} questions/s, {left} left", flush=True)
        if interrupted():
            keep_peak(plan.out, name)
            return False
    if rest:
        keep_peak(plan.out, name)
    write_predictions(path, [found[each.id] for each in questions])
    return True


def answered_in_parts(bench: Bench, name: str, batch: Sequence[Question]) -> list[Prediction]:
    """Return a system's predictions for a batch; where memory is short for it, half of it at a time, and so on.

    Raises ClaraError where memory is short for a single question.
    """
    try:
        return answered(bench, name, batch)
    except (RuntimeError, MemoryError) as error:
        if not short_of_memory(error):
            raise
        if len(batch) == 1:
            raise ClaraError(f"system {name}, question {batch[0].id}: out of memory ({error})") from error
    # Out of the block above, whose error holds on to what was computed.
    mx.clear_cache()
    half = -(-len(batch) // 2)
    print(f"{name:<17} out of memory on {len(batch)} questions at a time; {half} are tried (--batch-size)", flush=True)
    return [each for part in (batch[:half], batch[half:]) for each in answered_in_parts(bench, name, part)]


def batches_of(bench: Bench, name: str, questions: Sequence[Question], size: int) -> list[list[Question]]:
    """Return the questions in batches of one task and of similar prompts, the shortest first."""
    sizes = {each.id: prompt_size(bench, name, each) for each in questions}
    batches = []
    for task in ("qa", "paraphrase"):
        order = sorted((each for each in questions if each.task == task), key=lambda each: sizes[each.id])
        batches += [order[i : i + size] for i in range(0, len(order), size)]
    return batches


def keep_peak(folder: Path, name: str) -> None:
    """Keep the most memory that the device held since it was last reset, where that is more than is kept already."""
    peaks = read_peaks(folder)
    peaks[name] = max(peaks.get(name, 0), mx.get_peak_memory())
    write_atomic(folder / PEAKS, msgspec.json.encode(peaks))


def read_peaks(folder: Path) -> dict[str, int]:
    """Return the peaks that a folder keeps. Raises ClaraError where the file is damaged."""
    try:
        return msgspec.json.decode((folder / PEAKS).read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise ClaraError(f"{folder / PEAKS}: damaged ({error}); remove it") from error


def finish(plan: Plan) -> None:
    """Score all systems of the folder that have answered every question; print the tables, and write them."""
    predictions: dict[str, list[Prediction]] = {}
    for name in plan.config["systems"]:
        answers = read_predictions(predictions_path(plan.out, name))
        if len(answers) == len(served(plan, name)):
            predictions[name] = answers
    scores = scores_of(predictions, read_peaks(plan.out), plan.options.seed)
    found = Section("Scores", tuple(tables(scores)))
    name = Path(plan.config["data"]).name + ", counterfactual" * plan.config["counterfactual"]
    report = Report(f"Evaluation on {name}", tuple(heading(plan.config)), (found,))
    write_scores(plan.out, scores)
    write_atomic(plan.out / SUMMARY, markdown(report, {}).encode())
    print("\n" + "\n\n".join([*section(found, 2, {}), f"written: {plan.out}"]))


if __name__ == "__main__":
    sys.exit(main())
