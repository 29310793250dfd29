"""Converts trained parameters: from and to the original's checkpoints, and to what mlx-lm and PEFT load.

Run `python -m clara.shell.convert FROM TO`. A checkpoint of the original (a folder, or a Hugging Face id such as
apple/CLaRa-7B-Instruct/compression-16) becomes a run folder that every command here takes; a run or checkpoint of this
project becomes what --format says; clara is one of its own, to give away: rounded to bfloat16, without optimizer and
paths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from clara.core.measure import measure_base
from clara.io.base import load_base
from clara.io.builtin import run_path
from clara.io.checkpoint import Checkpoint, Manifest, float32_params, newest_checkpoint, save_checkpoint, versions
from clara.io.errors import ClaraError
from clara.io.exchange import from_original, options_of, origin_of, to_original
from clara.io.export import write_fused, write_mlx_lm_adapter, write_peft_adapter
from clara.io.files import require_free, staged
from clara.io.original import is_original, locate_original, read_original, write_original
from clara.io.release import last_part, released, require_replaceable, write_release
from clara.shell.arguments import CONFIG
from clara.shell.command import guarded
from clara.shell.options import Options, merge, stage_defaults, step_config, to_options, to_plain
from clara.shell.setup import check_origin, open_session, prepare_device
from clara.shell.stores import require_compressor_of

FORMATS = ("original", "mlx-lm", "peft", "fused", "clara")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 1 a message to the user."""
    parser = argparse.ArgumentParser(
        prog="python -m clara.shell.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FROM", help="run, checkpoint, built-in small, or the original's checkpoint")
    parser.add_argument("target", metavar="TO", help="folder to write: new, empty, or of format clara")
    parser.add_argument("--model", help="the base, where it is not the one that FROM names")
    parser.add_argument("--format", choices=FORMATS, help="what to write from a checkpoint of this project [original]")
    parser.add_argument(
        "--adapter",
        choices=("compressor", "reasoner", "generator"),
        help="the adapter that mlx-lm, peft and fused write [generator]",
    )
    parser.add_argument(
        "--keep-quantization",
        action="store_true",
        help="fused: leave a quantised base in its bits, which rounds most of a small adapter away; else it gets plain",
    )
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say, and say so; return the exit status."""
    free = require_replaceable if arguments.format == "clara" else require_free
    free(Path(arguments.target).expanduser())
    convert(arguments)
    print(f"written: {arguments.target}")
    return 0


def convert(arguments: argparse.Namespace) -> None:
    """Do what the arguments say. Raises ClaraError where they do not fit what is there."""
    target, local = Path(arguments.target).expanduser(), run_path(arguments.source)
    prepare_device()
    if not local.is_dir() or is_original(local):
        if arguments.format or arguments.adapter:
            raise ClaraError("--format and --adapter are for checkpoints of this project: convert to one first")
        return import_original(arguments.source, target, arguments.model or "")
    checkpoint, problems = newest_checkpoint(local)
    for problem in problems:
        print(f"skipped a damaged checkpoint: {problem}")
    options = to_options(checkpoint.config, str(checkpoint.path))
    options = msgspec.structs.replace(options, model=arguments.model or options.model)
    if (arguments.format or "original") == "original" or arguments.adapter == "compressor":
        require_compressor_of(checkpoint)
    if (arguments.format or "original") == "original":
        if arguments.adapter:
            raise ClaraError("--adapter is for mlx-lm, peft and fused; the original's format has all of them")
        return export_original(checkpoint, options, target)
    if arguments.format == "clara":
        if arguments.adapter:
            raise ClaraError("--adapter is for mlx-lm, peft and fused; a checkpoint has all of them")
        return export_release(checkpoint, options, target)
    return export_adapter(checkpoint, options, target, arguments)


def import_original(source: str, target: Path, model: str) -> None:
    """Write a checkpoint of the original as a run folder with one checkpoint."""
    path = locate_original(source)
    original = read_original(path)
    plain = options_of(original, model)
    if original.prompts is None:
        print(f"note: no modeling_clara.py beside {path}: prompts are this project's own, not those of its training")
    else:
        plain["prompts"] = msgspec.to_builtins(original.prompts)
    options = to_options(merge(stage_defaults(plain["stage"]), plain), str(path / CONFIG))
    loaded = load_base(options.model)
    params, extras = from_original(original, loaded, options.memory.num_memory_tokens)
    manifest = Manifest(
        step=0,
        stage=options.stage,
        base=loaded.fingerprint,
        data="",
        seed=options.data.seed,
        started_from=source,
        versions=versions(),
        origin=origin_of(original),
    )
    with staged(target) as beside:
        (beside / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(to_plain(options))) + b"\n")
        save_checkpoint(beside / "checkpoints", params, {}, extras, to_plain(options), manifest)


def export_original(checkpoint: Checkpoint, options: Options, target: Path) -> None:
    """Write a checkpoint of this project in the original's format."""
    loaded = load_base(options.model, dequantize=False)
    session = open_session(options, checkpoint, loaded)
    if not session.origin:
        print("note: the original prompts with its own wording; these parameters were trained with this project's")
    write_original(
        target,
        to_original(float32_params(checkpoint), session.base, loaded, step_config(options), checkpoint.manifest.origin),
    )


def export_release(checkpoint: Checkpoint, options: Options, target: Path) -> None:
    """Write a checkpoint of this project as others take it."""
    check_origin(checkpoint, load_base(options.model), options)
    model = options.model
    if Path(model).expanduser().exists():
        model = last_part(model)
        print(f"note: the base is called {model} there; --model says by what name others find it")
    write_release(target, released(checkpoint, model))


def export_adapter(checkpoint: Checkpoint, options: Options, target: Path, arguments: argparse.Namespace) -> None:
    """Write one adapter of a checkpoint for mlx-lm or PEFT, or merged into its base."""
    adapters, name = float32_params(checkpoint)["adapters"], arguments.adapter or "generator"
    if name not in adapters:
        raise ClaraError(f"{checkpoint.path}: no adapter {name}; there are {', '.join(adapters)}")
    loaded = load_base(options.model, dequantize=False)
    check_origin(checkpoint, loaded, options)
    if arguments.format == "mlx-lm":
        return write_mlx_lm_adapter(target, adapters[name], options.lora, measure_base(loaded.module).layers)
    if arguments.format == "peft":
        return write_peft_adapter(target, adapters[name], options.lora, options.model)
    return write_fused(target, loaded, adapters[name], options.lora, dequantize=not arguments.keep_quantization)


if __name__ == "__main__":
    sys.exit(main())
