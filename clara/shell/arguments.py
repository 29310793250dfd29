"""The arguments of the training command: from recipes, files, flags and earlier runs to a plan of stages."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from clara.core.config import CHOOSING, STAGES, Stage
from clara.io.builtin import run_name, run_path
from clara.io.checkpoint import MANIFEST, Checkpoint, newest_checkpoint, unflatten
from clara.io.errors import ClaraError
from clara.io.retention import checkpoints, step_of
from clara.shell.options import (
    INHERITED,
    Options,
    for_stage,
    leaves,
    merge,
    read_config,
    read_recipe,
    recipes,
    stage_defaults,
    to_options,
    value_at,
)

ALL: tuple[Stage, ...] = ("pretrain", "instruct", "end_to_end")
"""What `--stage all` trains."""

FREE_ON_RESUME = (
    "run",
    "memories",
    "steps",
    "eval_every",
    "eval_records",
    "eval_generate",
    "beams",
    "save_every",
    "keep",
    "keep_best",
    "patience",
    "show",
    "log_every",
    "report_to",
    "compile",
    "compute.grad_checkpoint",
    "compute.shard",
)
"""Options that a resumed run may change; any other would make it another run."""

EARLY = ("stage", "start_from")
"""Options that decide what the defaults of all others are."""

CONFIG = "config.json"
"""The file of a run folder with its options; of several stages, in a table `stages`."""

EPILOG = (
    "An option can be given for one stage alone: --instruct.steps 200, or [stages.instruct] in a file. Over the "
    "defaults of a stage lies the recipe, over that what --start-from was trained with, then the --config file, and "
    "flags over all."
)

Layers = list[tuple[str, Mapping[str, Any]]]
"""Nested dicts of options with their name for messages, the lowest first; a table `stages` holds those of one stage."""


class Plan(NamedTuple):
    """What a training command is to do."""

    folder: Path
    """Of the run; of several stages each has a folder in it, named after the stage."""
    stages: tuple[tuple[Options, Checkpoint | None], ...]
    """The options of each stage and, where it was begun before, the checkpoint to go on from."""
    notes: tuple[str, ...]
    """What to tell the user about damaged checkpoints."""


class Before(NamedTuple):
    """A run that was begun."""

    folder: Path
    options: dict[str, Any]
    """Of each stage, as nested dicts."""
    checkpoints: dict[str, Checkpoint | None]
    notes: tuple[str, ...]


def read_plan(program: str, about: str, argv: Sequence[str] | None = None) -> Plan:
    """Return what a training command is to do. Raises ClaraError that says what is wrong with its arguments."""
    early = early_parser()
    first, _ = early.parse_known_args(argv)
    config = read_config(first.config) if first.config else {}
    before = begun(run_path(first.resume)) if first.resume else None
    if before:
        refuse_beside_resume(first)
        names = tuple(name for name in STAGES if name in before.options)
        layers: Layers = [("the run", {"stages": before.options})]
    else:
        names = stage_names(first.stage or str(config.get("stage") or "pretrain"))
        layers = new_layers(first.recipe or "sample", first.start_from or str(config.get("start_from") or ""))
    layers.append((first.config or "--config", {name: value for name, value in config.items() if name != "stage"}))
    parser = argparse.ArgumentParser(
        prog=program, description=about, parents=[early], epilog=EPILOG, allow_abbrev=False
    )
    add_options(parser, to_options(resolve(layers, names[0]), first.config or "options"))
    flags = {name: value for name, value in vars(parser.parse_args(argv)).items() if name not in vars(first)}
    flags |= {"start_from": first.start_from} if first.start_from else {}
    layers.append(("options", unflatten(flags)))
    stages = [to_options(resolve(layers, name), "options" if len(names) == 1 else f"stage {name}") for name in names]
    check_shared(stages)
    return resumed(stages, before) if before else fresh(stages)


def early_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments that say where the options of all others come from."""
    hints = {path: hint for path, hint in leaves() if path[-1] in EARLY}
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--recipe", metavar="NAME", help=f"named options: {', '.join(recipes())} [sample]")
    early.add_argument("--config", metavar="FILE", help="TOML or JSON file of options; it overrules the recipe")
    early.add_argument("--resume", metavar="RUN", help="run folder, or one of its checkpoints, to go on from")
    for (name,), hint in hints.items():
        early.add_argument(flag(name), metavar="TEXT", help=get_args(hint)[1].description)
    return early


def stage_names(text: str) -> tuple[Stage, ...]:
    """Return the stages that a `--stage` value names, in order. Raises ClaraError for anything else."""
    names = ALL if text == "all" else tuple(name.strip() for name in text.split(","))
    order = [STAGES.index(name) for name in names if name in STAGES]
    if len(order) < len(names) or order != sorted(set(order)):
        raise ClaraError(f"--stage {text}: wanted all, or some of {','.join(STAGES)} in this order")
    return tuple(STAGES[i] for i in order)


def new_layers(recipe: str, start_from: str) -> Layers:
    """Return the layers under a new run's own options: a recipe, and what it takes over from where it starts."""
    layers: Layers = [(f"recipe {recipe}", read_recipe(recipe))]
    if start_from:
        checkpoint, _ = newest_checkpoint(run_path(start_from))
        layers.append((start_from, taken_over(checkpoint.config)))
    return layers


def taken_over(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run takes over from the configuration it starts from; of a reasoner also how it scores."""
    taken = {name: config[name] for name in INHERITED if name in config}
    relevance = config.get("retrieval", {}).get("relevance")
    return {**taken, "retrieval": {"relevance": relevance}} if relevance and config["stage"] in CHOOSING else taken


def resolve(layers: Layers, stage: Stage) -> dict[str, Any]:
    """Return the options of a stage as nested dicts: the layers over its defaults, the later ones on top."""
    named = [for_stage(layer, stage, name) for name, layer in layers]
    return merge(stage_defaults(stage), *named, {"stage": stage})


def add_options(parser: argparse.ArgumentParser, options: Options) -> None:
    """Add a flag for every option to a parser, with its help text and value, and one for every option of a stage."""
    groups: dict[str, Any] = {}
    for path, hint in leaves():
        title = path[0] if len(path) > 1 else "run"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        if path[-1] in EARLY:
            continue
        kind, about = get_args(hint)[:2]
        value = value_at(options, path)
        shown = "" if value == "" else f" [{value}]"
        form, dest = flag_form(kind), "/".join(path)
        text = (about.description + shown).replace("%", "%%")
        groups[title].add_argument(flag(path[-1]), dest=dest, default=argparse.SUPPRESS, help=text, **form)
        for stage in STAGES:
            parser.add_argument(
                flag(f"{stage}.{path[-1]}"),
                dest=f"stages/{stage}/{dest}",
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
                **form,
            )


def flag(name: str) -> str:
    """Return the flag of an option: `eval_every` gives `--eval-every`, `end_to_end.top_k` `--end_to_end.top-k`."""
    stage, dot, option = name.rpartition(".")
    return f"--{stage}{dot}{option.replace('_', '-')}"


def flag_form(kind: Any) -> dict[str, Any]:
    """Return how argparse reads an option of this type; values stay text until `to_options` checks them."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return {"metavar": {int: "N", float: "X"}.get(kind, "TEXT")}


def check_shared(stages: Sequence[Options]) -> None:
    """Raise ClaraError, naming the fields, where stages differ in what one takes over from the one before."""
    for options in stages[1:]:
        differing = [f"{name}: {a!r} and {b!r}" for name, a, b in differences(stages[0], options) if shared(name)]
        if differing:
            raise ClaraError(f"stages {stages[0].stage} and {options.stage} must agree in {'; '.join(differing)}")


def shared(name: str) -> bool:
    """Return whether an option must be the same in all stages of a run."""
    return name.split(".")[0] in INHERITED and name != "lora.dropout"


def differences(first: Options, second: Options) -> list[tuple[str, Any, Any]]:
    """Return (name, value of the first, of the second) of every option that differs."""
    paths = [*(path for path, _ in leaves()), ("prompts",)]
    pairs = [(".".join(path), value_at(first, path), value_at(second, path)) for path in paths]
    return [(name, a, b) for name, a, b in pairs if a != b]


def fresh(stages: Sequence[Options]) -> Plan:
    """Return the plan of a new run. Raises ClaraError where its folder holds a run already."""
    names = "-".join(options.stage for options in stages)
    kind = "all" if names == "-".join(ALL) else names
    folder = Path(stages[0].run or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{kind}").expanduser()
    if any((folder / name).exists() for name in (CONFIG, "checkpoints")):
        raise ClaraError(f"{folder}: holds a run already; go on with it by --resume {folder}, or give another --run")
    return Plan(folder, tuple((options, None) for options in placed(stages, folder)), ())


def placed(stages: Sequence[Options], folder: Path) -> list[Options]:
    """Return the options of stages with the folder of each, each starting from the one before."""
    if len(stages) == 1:
        return [msgspec.structs.replace(stages[0], run=str(folder))]
    memories = stages[0].memories or str(folder / "memories")
    starts = [stages[0].start_from, *(str(folder / options.stage) for options in stages)]
    return [
        msgspec.structs.replace(options, run=str(folder / options.stage), start_from=start, memories=memories)
        for options, start in zip(stages, starts, strict=False)
    ]


def begun(path: Path) -> Before:
    """Return a run that was begun: the one in a folder, or that of a checkpoint, which is then gone on from.

    Raises ClaraError where there is none, or where it has checkpoints but none is whole.
    """
    if (path / MANIFEST).is_file() and step_of(path.absolute()) < 0:
        raise ClaraError(f"--resume {path}: a checkpoint without a run; --start-from {run_name(path)} begins one there")
    options = read_config(str(path / CONFIG)) if (path / CONFIG).is_file() else {}
    if "stages" in options:
        found = {name: newest(path / name) for name in options["stages"]}
        notes = tuple(note for _, problems in found.values() for note in problems)
        return Before(path, options["stages"], {name: checkpoint for name, (checkpoint, _) in found.items()}, notes)
    begins_anew = options and step_of(path.absolute()) < 0 and not checkpoints(path / "checkpoints")
    checkpoint, problems = (None, []) if begins_anew else newest_checkpoint(path)
    if checkpoint is None:
        return Before(path, {options["stage"]: options}, {options["stage"]: None}, ())
    stage = checkpoint.config["stage"]
    return Before(
        checkpoint.path.absolute().parent.parent, {stage: checkpoint.config}, {stage: checkpoint}, tuple(problems)
    )


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint of a stage and what was wrong with newer ones; None before the first."""
    return newest_checkpoint(folder) if checkpoints(folder / "checkpoints") else (None, [])


def refuse_beside_resume(first: argparse.Namespace) -> None:
    """Raise ClaraError where arguments were given that only a new run takes."""
    given = [name for name in ("recipe", *EARLY) if getattr(first, name)]
    if given:
        raise ClaraError(f"{', '.join(map(flag, given))} beside --resume: a resumed run keeps its own; leave it out")


def resumed(stages: Sequence[Options], before: Before) -> Plan:
    """Return the plan of a resumed run. Raises ClaraError that lists the fields that must not differ but do."""
    plan = []
    several = len(stages) > 1
    for options in placed(stages, before.folder) if several else stages:
        checkpoint = before.checkpoints[options.stage]
        changed = []
        if checkpoint is not None:
            old = to_options(checkpoint.config, str(checkpoint.path))
            skipped = (*FREE_ON_RESUME, "start_from") if several else FREE_ON_RESUME
            changed = [f"{n}: {a!r} before, {b!r} now" for n, a, b in differences(old, options) if n not in skipped]
        if changed:
            raise ClaraError(
                f"--resume goes on with the same run, but these options of stage {options.stage} differ: "
                + "; ".join(changed)
                + f". Free to change are {', '.join(FREE_ON_RESUME)}"
            )
        run = options.run if several else str(before.folder)
        plan.append((msgspec.structs.replace(options, run=run), checkpoint))
    return Plan(before.folder, tuple(plan), before.notes)
