"""Options of the benchmarks: one frozen struct, from which flags, their help and their checks are derived."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from clara.core.config import ComputeConfig, LoraConfig
from clara.io.checkpoint import unflatten
from clara.io.errors import ClaraError
from clara.shell.arguments import flag, flag_form
from clara.shell.bounds import checked
from clara.shell.options import leaves, merge


class BenchOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the numbers depend on, and what is shown of them."""

    size: Annotated[
        Literal["tiny", "smollm2", "mistral7b", "mistral7b-4bit"],
        Meta(description="Shapes of base and batch: random weights in the shape of SmolLM2-135M or of Mistral-7B."),
    ] = "smollm2"
    model: Annotated[
        str,
        Meta(description="A real base in place of random weights: folder, .gguf, Hugging Face id or built-in name."),
    ] = ""
    only: Annotated[
        str,
        Meta(description="Groups or GROUP/CASE to run, with commas between; * stands for anything; empty for all."),
    ] = ""
    compare: Annotated[
        str, Meta(description="Saved output of another run, or its last line: adds columns with ratios to it.")
    ] = ""
    rows: Annotated[int, Meta(ge=0, description="Examples of a step; 0 = 2 on a CPU, 8 on a GPU.")] = 0
    passages: Annotated[
        int, Meta(ge=0, description="Passages that are compressed at a time; 0 = four times the rows.")
    ] = 0
    candidates: Annotated[int, Meta(ge=1, description="Candidates of a question in the choosing stages.")] = 20
    memories: Annotated[
        str, Meta(description="Sizes of memory stores, with commas; empty: 1000,10000,100000, of size tiny 1000.")
    ] = ""
    data: Annotated[str, Meta(description="Records of the data cases: a file, or the built-in sample.")] = "sample"
    batches: Annotated[
        int, Meta(ge=0, le=1000, description="Batches that a data case takes; 0 = 4 on a CPU, 16 on a GPU.")
    ] = 0
    growth_steps: Annotated[
        int, Meta(ge=0, description="Steps that growth of memory is looked for in; 0 = 30 on a CPU, 200 on a GPU.")
    ] = 0
    rounds: Annotated[int, Meta(ge=1, description="Times that a case is timed, after one call that is not.")] = 5
    seconds: Annotated[float, Meta(ge=0, description="Seconds of timing after which a case gets no further round.")] = (
        30.0
    )
    compile: Annotated[
        Literal["auto", "on", "off"], Meta(description="mx.compile for steps; auto: on a GPU, not on a CPU.")
    ] = "auto"
    lora: LoraConfig = LoraConfig(dropout=0.0)
    compute: ComputeConfig = ComputeConfig()


UNUSED = ("shard",)
"""Options of training that no case has: every rank has the whole base."""

SHOWN = ("only", "compare")
"""Options that no number depends on, and that pytest has its own ways for."""


def offered(without: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Return the options that have a flag, each with its type."""
    return [(path, hint) for path, hint in leaves(BenchOptions) if path[-1] not in (*without, *UNUSED)]


def add_flags(add: Callable[..., Any], without: tuple[str, ...] = ()) -> None:
    """Add a flag for every option through `add`, which takes what argparse's add_argument takes."""
    for path, hint in offered(without):
        kind, about = get_args(hint)[:2]
        value: Any = BenchOptions()
        for name in path:
            value = getattr(value, name)
        shown = "" if value == "" else f" [{value}]"
        text = (about.description + shown).replace("%", "%%")
        add(flag(path[-1]), dest="/".join(path), default=None, help=text, **flag_form(kind))


def destinations(without: tuple[str, ...] = ()) -> list[str]:
    """Return the names under which those flags leave their values."""
    return ["/".join(path) for path, _ in offered(without)]


def to_bench_options(given: Mapping[str, Any]) -> BenchOptions:
    """Return options from the values of flags, None for those left out. Raises ClaraError that names the option."""
    flags = unflatten({name: value for name, value in given.items() if value is not None})
    return checked(merge(msgspec.to_builtins(BenchOptions()), flags), BenchOptions)


def read_options(program: str, about: str, argv: Sequence[str] | None = None) -> BenchOptions:
    """Return the options that a command line gives. Raises ClaraError for a value out of bounds."""
    parser = argparse.ArgumentParser(
        prog=program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser.add_argument)
    return to_bench_options(vars(parser.parse_args(argv)))


def store_sizes(options: BenchOptions) -> list[int]:
    """Return how many memories each store has. Raises ClaraError where `memories` is no list of numbers."""
    text = options.memories or ("1000" if options.size == "tiny" else "1000,10000,100000")
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ClaraError(f"--memories {text}: wanted whole numbers from 1 on, with commas between, such as 1000,10000")
    return sizes
