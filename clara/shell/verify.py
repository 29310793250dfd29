"""Reports on a base: what it is, whether CLaRa fits on it, what training it will take, and that it answers.

Run `python -m clara.shell.verify MODEL`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mlx.core as mx
from mlx_lm import generate

from clara.core.config import StepConfig
from clara.core.init import init_params
from clara.core.measure import Size, measure_base
from clara.core.step import make_train_step
from clara.core.types import Base, Batch, Documents
from clara.io import cpu
from clara.io.base import LoadedBase, load_base
from clara.io.errors import ClaraError
from clara.io.tokens import chat_pieces
from clara.shell.arguments import new_layers, resolve
from clara.shell.command import guarded
from clara.shell.options import Options, recipes, step_config, to_options
from clara.shell.setup import context_of, prepare_device, to_base

QUESTION = "What is the capital of France?"
PROBE = 64
"""Positions of the smaller of the two steps that memory is measured with; the larger has twice as many."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 fits, 1 a message to the user."""
    parser = argparse.ArgumentParser(prog="python -m clara.shell.verify", description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="the base, as for --model [%(default)s]")
    parser.add_argument("--recipe", choices=recipes(), default="sample", help="training settings [%(default)s]")
    parser.add_argument("--batch-size", type=int, metavar="N", help="batch that memory is reckoned for [the recipe's]")
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit status. Raises ClaraError where they do not fit what is there."""
    options = to_options(resolve(new_layers(arguments.recipe, ""), "pretrain"), arguments.recipe)
    rows = options.data.batch_size if arguments.batch_size is None else arguments.batch_size
    if rows < 1:
        raise ClaraError(f"--batch-size {rows}: wanted 1 or more")
    prepare_device()
    report(load_base(arguments.model), options, rows)
    return 0


def report(loaded: LoadedBase, options: Options, rows: int) -> None:
    """Print the report, each line as soon as it is known."""
    base = to_base(loaded, options)
    size = measure_base(loaded.module)
    config = step_config(options)
    context = context_of(loaded)
    shape = f"{size.layers} layers, hidden {size.hidden}, vocabulary {size.vocabulary:,}"
    for name, text in (
        ("device", f"{mx.default_device().type.name}; BLAS on a CPU: {cpu.preload()}"),
        ("base", f"{loaded.name}, fingerprint {loaded.fingerprint}"),
        ("model", f"{loaded.config['model_type']}, {shape}"),
        ("size", f"{size.parameters / 1e6:,.1f} million parameters, {size.bytes / 1e9:.2f} GB as loaded here"),
        ("stored", "; ".join(loaded.formats)),
        ("context", "not stated by the base" if context is None else f"{context:,} tokens"),
        ("memory", memory_line(config, context)),
        ("adapters", adapter_line(size, config)),
        ("chat", "has a chat template" if loaded.tokenizer.chat_template else "no chat template: plain prompts"),
        ("answer", f"{QUESTION} {first_answer(loaded)}"),
        ("training", training_line(base, options, rows)),
    ):
        print(f"{name:9s} {text}", flush=True)


def memory_line(config: StepConfig, context: int | None) -> str:
    """Return how a document and its memory tokens fit into the context."""
    memory = config.memory
    longest = memory.doc_max_tokens + memory.num_memory_tokens + 3
    verdict = "" if context is None else ", fits" if longest <= context else f", does NOT fit into {context} tokens"
    return f"{memory.num_memory_tokens} vectors a document; the compressor reads up to {longest} tokens{verdict}"


def adapter_line(size: Size, config: StepConfig) -> str:
    """Return how large an adapter on every linear layer is."""
    if not size.linears:
        return "no linear layer found in the blocks: adapters do NOT fit"
    each = sum((rows + columns) * config.lora.rank for rows, columns in size.linears.values())
    return f"on {len(size.linears)} linear layers, rank {config.lora.rank}: {each / 1e6:.2f} million parameters each"


def first_answer(loaded: LoadedBase) -> str:
    """Return the base's own greedy answer to a plain question."""
    pieces = chat_pieces(loaded.tokenizer, [{"role": "user", "content": QUESTION}])
    prompt = [token for piece in pieces for token in piece]
    return generate(loaded.module, loaded.tokenizer.hf, prompt, max_tokens=24).strip().replace("\n", " ")


def training_line(base: Base, options: Options, rows: int) -> str:
    """Return the memory that a step takes: measured on two short rows, reckoned for `rows` rows of full length."""
    small, large = (step_bytes(base, step_config(options), scale * PROBE) for scale in (1, 2))
    slope = max(large - small, 0) / PROBE
    positions = rows * max(options.memory.doc_max_tokens + options.memory.num_memory_tokens, options.data.max_tokens)
    total = small + slope * max(positions - PROBE, 0)
    cut = ""
    limit = mx.device_info().get("max_recommended_working_set_size") or mx.device_info().get("memory_size")
    if limit and total > float(limit):
        cut = f"; more than the {float(limit) / 1e9:.0f} GB here: raise --accumulate, or give --grad-checkpoint 1"
    return f"about {total / 1e9:.1f} GB for {rows} rows of full length, {small / 1e9:.1f} GB for one short row{cut}"


def step_bytes(base: Base, config: StepConfig, width: int) -> int:
    """Return the peak memory of one training step, in bytes, on one row of `width` document and decoder positions."""
    count = base.layout.num_memory_tokens
    params = init_params(base, config, seed=0)
    tokens = mx.zeros((1, width), dtype=mx.int32)
    documents = Documents(mx.zeros((1, width + count), dtype=mx.int32), mx.array([width]))
    index = mx.arange(width // 2, width - 1)[None]
    mask = mx.ones(index.shape, dtype=mx.bool_)
    batch = Batch(documents, mx.array([[0]]), tokens, index, mx.zeros_like(index), mask, mx.random.key(0))
    mx.eval(params, batch)
    mx.reset_peak_memory()
    mx.eval(make_train_step(base, config)(params, batch))
    return mx.get_peak_memory()


if __name__ == "__main__":
    sys.exit(main())
