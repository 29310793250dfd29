"""Options of a run: one frozen struct, from which defaults, TOML files, `--help` and parsing are derived."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from clara.core.config import ComputeConfig, LoraConfig, LossConfig, MemoryConfig, OptimizerConfig, StepConfig
from clara.io.checkpoint import Checkpoint, newest_checkpoint, unflatten
from clara.io.dataset import DataConfig
from clara.io.errors import ClaraError

FREE_ON_RESUME = (
    "run",
    "steps",
    "eval_every",
    "eval_records",
    "save_every",
    "keep",
    "show",
    "log_every",
    "compile",
)
"""Options that a resumed run may change; any other would make it another run."""


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a training run depends on."""

    model: Annotated[
        str,
        Meta(description="The base: a folder, a .gguf file, a Hugging Face id, or the built-in smollm2-135m."),
    ] = "smollm2-135m"
    stage: Annotated[Literal["pretrain"], Meta(description="The training stage.")] = "pretrain"
    run: Annotated[str, Meta(description="Folder of the run; empty for a new one under runs/.")] = ""
    steps: Annotated[int, Meta(ge=1, description="Optimizer steps.")] = 1000
    eval_every: Annotated[
        int, Meta(ge=0, description="Steps between held-out evaluations; 0 = first and last only.")
    ] = 0
    eval_records: Annotated[int, Meta(ge=0, description="Held-out records that an evaluation takes; 0 = all.")] = 0
    save_every: Annotated[int, Meta(ge=0, description="Steps between checkpoints; 0 = at the end only.")] = 100
    keep: Annotated[int, Meta(ge=1, description="Newest checkpoints that are kept.")] = 2
    show: Annotated[int, Meta(ge=0, description="Held-out documents that are asked a question at the end.")] = 4
    log_every: Annotated[
        int, Meta(ge=1, description="Steps between progress lines; metrics are kept of every step.")
    ] = 10
    compile: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="mx.compile for the step; auto: on a GPU, not on a CPU."),
    ] = "auto"
    memory: MemoryConfig = MemoryConfig()
    lora: LoraConfig = LoraConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    data: DataConfig = DataConfig()


def step_config(options: Options) -> StepConfig:
    """Return the part of the options that the mathematics of a step depends on."""
    return StepConfig(memory=options.memory, lora=options.lora, loss=options.loss, compute=options.compute)


def leaves(kind: type[Struct] = Options, section: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, annotated type) of every option."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Struct):
            yield from leaves(hint, (*section, field.name))
        else:
            yield (*section, field.name), hint


def value_at(options: Options, path: Sequence[str]) -> Any:
    """Return the value of the option at a path such as ("memory", "anchored")."""
    value: Any = options
    for name in path:
        value = getattr(value, name)
    return value


def recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(
        f.name.removesuffix(".toml")
        for f in files("clara.shell").joinpath("recipes").iterdir()
        if f.name.endswith(".toml")
    )


def read_recipe(name: str) -> dict[str, Any]:
    """Return a recipe as nested dicts."""
    if name not in recipes():
        raise ClaraError(f"--recipe {name}: not one of {', '.join(recipes())}")
    return tomllib.loads(files("clara.shell").joinpath("recipes", f"{name}.toml").read_text("utf-8"))


def read_config(path: str) -> dict[str, Any]:
    """Return a TOML or JSON file as nested dicts. Raises ClaraError, naming the file, where it cannot be read."""
    try:
        raw = Path(path).expanduser().read_bytes()
        return msgspec.json.decode(raw, type=dict) if path.endswith(".json") else tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClaraError(f"{path}: not a valid configuration file: {error}") from error


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts laid over one another; the later layer wins, leaf by leaf."""
    out: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(out.get(name), dict)
            out[name] = merge(out[name], value) if both else merge(value) if isinstance(value, Mapping) else value
    return out


def to_options(layers: Mapping[str, Any], source: str = "options") -> Options:
    """Return nested dicts as options. Raises ClaraError that names the option, what was found and what is wanted."""
    try:
        return msgspec.convert(layers, Options, strict=False)
    except msgspec.ValidationError as error:
        raise ClaraError(f"{source}: {error}") from error


def add_options(parser: argparse.ArgumentParser, layers: Mapping[str, Any]) -> None:
    """Add a flag for every option to a parser, with its help text and the default that `layers` give it."""
    options = to_options(layers)
    groups: dict[str, Any] = {}
    for path, hint in leaves():
        title = path[0] if len(path) > 1 else "run"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        value = value_at(options, path)
        shown = "" if value == "" else f" [{value}]"
        groups[title].add_argument(
            "--" + path[-1].replace("_", "-"),
            dest="/".join(path),
            default=argparse.SUPPRESS,
            help=(get_args(hint)[1].description + shown).replace("%", "%%"),
            **flag_form(get_args(hint)[0]),
        )


def flag_form(kind: Any) -> dict[str, Any]:
    """Return how argparse reads an option of this type; values stay text until `to_options` checks them."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return {"metavar": {int: "N", float: "X"}.get(kind, "TEXT")}


def read_arguments(
    program: str, about: str, argv: Sequence[str] | None = None
) -> tuple[Options, Checkpoint | None, list[str]]:
    """Return the options of a training command, the checkpoint to go on from, and what to tell the user about it.

    Recipe, then --config file, then flags; with --resume the run's own options stand in for the recipe.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument(
        "--recipe", metavar="NAME", default="sample", help=f"named options: {', '.join(recipes())} [sample]"
    )
    early.add_argument("--config", metavar="FILE", help="TOML or JSON file of options; it overrules the recipe")
    early.add_argument("--resume", metavar="RUN", help="run folder, or one of its checkpoints, to go on from")
    first, _ = early.parse_known_args(argv)
    checkpoint, notes = newest_checkpoint(Path(first.resume).expanduser()) if first.resume else (None, [])
    given = read_config(first.config) if first.config else {}
    layers = merge(checkpoint.config if checkpoint else read_recipe(first.recipe), given)
    source = first.config or "options"
    to_options(layers, source)
    parser = argparse.ArgumentParser(prog=program, description=about, parents=[early], allow_abbrev=False)
    add_options(parser, layers)
    flags = vars(parser.parse_args(argv))
    options = to_options(merge(layers, unflatten({k: v for k, v in flags.items() if k not in vars(first)})), "options")
    if checkpoint is not None:
        options = resumed(options, checkpoint)
    return options, checkpoint, notes


def resumed(options: Options, checkpoint: Checkpoint) -> Options:
    """Return the options of a resumed run. Raises ClaraError that lists the fields that must not differ but do."""
    before = to_options(checkpoint.config, str(checkpoint.path))
    changed = []
    for path, _ in leaves():
        old, new = value_at(before, path), value_at(options, path)
        if old != new and path[-1] not in FREE_ON_RESUME:
            changed.append(f"{'.'.join(path)}: {old!r} before, {new!r} now")
    if changed:
        raise ClaraError(
            "--resume goes on with the same run, but these options differ: "
            + "; ".join(changed)
            + f". Free to change are {', '.join(FREE_ON_RESUME)}"
        )
    return msgspec.structs.replace(options, run=str(checkpoint.path.absolute().parent.parent))
