"""What every entrypoint begins with: the base, its special tokens, its parameters, and an encoder for text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from clara.core.bind import anatomy, part_of
from clara.core.config import CHOOSING, AnchorPooling, MemoryConfig, Stage, StepConfig
from clara.core.init import add_lens, add_pooling, add_reasoner, init_base, init_params, resample_memory
from clara.core.types import Base, Params
from clara.io import cuda
from clara.io.base import LoadedBase, load_base
from clara.io.builtin import run_path
from clara.io.checkpoint import Checkpoint, float32_params, newest_checkpoint
from clara.io.errors import ClaraError
from clara.io.examples import Encoder, layout_for, make_encoder
from clara.io.records import data_path, source_names
from clara.io.tokens import Tokenizer
from clara.shell.options import Options, step_config, to_options
from clara.shell.ranks import ALONE, Ranks

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_context_length")
"""What bases call the number of positions that they can read."""


CACHE_SHARE = 8
"""On CUDA, the part of the device's memory that MLX may keep for reuse."""


class Session(NamedTuple):
    """A base with its parameters, ready for steps or questions."""

    base: Base
    config: StepConfig
    params: Params
    """All of them, whether the stage trains them or not."""
    tokenizer: Tokenizer
    encoder: Encoder
    fingerprint: str
    """Of the base."""
    origin: Mapping[str, Any] = MappingProxyType({})
    """What the checkpoint of the original said that the parameters came from, if they did."""
    context: int | None = None
    """Positions that the base can read; None where it does not say."""
    beams: int = 1
    """Of the search for an answer; 1 for none."""


def prepare_device(compile: str = "auto") -> bool:
    """Set the device up as mlx-lm does and return whether steps are to be compiled: "on", "off", or "auto".

    On CUDA freed memory stays with the driver's pool rather than with MLX, whose cache of exact sizes would grow over
    the whole device where lengths vary. On a CPU, "auto" also stops mlx-lm from compiling its own small functions,
    which would take g++ longer than it ever saves.
    """
    maybe_set_recommended_wired_limit()
    if mx.cuda.is_available():
        cuda.keep_memory()
        cuda.keep_kernels()
        mx.set_cache_limit(int(mx.device_info()["total_memory"]) // CACHE_SHARE)
    on_cpu = mx.default_device() == mx.cpu
    if on_cpu and compile != "on":
        mx.disable_compile()
    return compile == "on" or (compile == "auto" and not on_cpu)


def device_memory() -> int:
    """Return the bytes of memory that there are for training: the GPU's (what Metal recommends), or the machine's."""
    info = mx.device_info()
    known = [info[name] for name in ("max_recommended_working_set_size", "total_memory") if name in info]
    return int(known[0]) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def open_session(
    options: Options,
    checkpoint: Checkpoint | None = None,
    loaded: LoadedBase | None = None,
    ranks: Ranks = ALONE,
) -> Session:
    """Return the session of options: with the parameters of a checkpoint, or with those that its training begins with.

    loaded: the base, where it was loaded before; ranks: whether and over which processes it is cut, where it was not.
    Raises ClaraError where the parameters belong to another base, or were trained with another memory or rank.
    """
    loaded = loaded or load_base(options.model, group=ranks.group if ranks.cut else None)
    config = step_config(options)
    source = checkpoint
    if source is None and options.start_from:
        source, _ = newest_checkpoint(run_path(options.start_from))
    base = to_base(loaded, options)
    if source is None:
        params = init_params(base, config, options.data.seed)
    else:
        check_origin(source, loaded, options)
        base, params = beside(base, source), float32_params(source)
    if checkpoint is None and source is not None and not options.carry_generator:
        anew = init_params(base, config, options.data.seed)["adapters"]["generator"]
        params = {**params, "adapters": {**params["adapters"], "generator": anew}}
    params = add_pooling(resample_memory(params, options.memory), options.memory, options.data.seed)
    if options.stage in CHOOSING:
        params = add_lens(add_reasoner(params)) if config.has_lens else add_reasoner(params)
    mx.eval(base.special_embeddings, base.embedding_rms, params)
    encoder = make_encoder(
        loaded.tokenizer, base.layout, options.memory.doc_max_tokens, options.data.max_tokens, options.prompts
    )._replace(reads=options.data.reads)
    origin = source.manifest.origin if source else {}
    context = context_of(loaded)
    return Session(base, config, params, loaded.tokenizer, encoder, loaded.fingerprint, origin, context, options.beams)


def context_of(loaded: LoadedBase) -> int | None:
    """Return how many positions a base can read; None where its configuration does not say."""
    return next((int(loaded.config[name]) for name in CONTEXT_FIELDS if name in loaded.config), None)


def check_origin(checkpoint: Checkpoint, loaded: LoadedBase, options: Options) -> None:
    """Raise ClaraError where a checkpoint's parameters do not fit the base or the options.

    `pretrain` may go on at another compression rate, and with anchors that are pooled by more than before.
    """
    if checkpoint.manifest.base != loaded.fingerprint:
        raise ClaraError(
            f"{checkpoint.path}: was trained on another base (fingerprint {checkpoint.manifest.base}) than "
            f"--model {options.model} (fingerprint {loaded.fingerprint}); give the base that it was trained on, or "
            "a run that was trained on this one"
        )
    before = to_options(checkpoint.config, str(checkpoint.path))
    pairs = {
        name: (getattr(before.memory, name), getattr(options.memory, name)) for name in MemoryConfig.__struct_fields__
    }
    pairs |= {name: (getattr(before.lora, name), getattr(options.lora, name)) for name in ("rank", "alpha")}
    free = changeable(options.stage, before.memory, options.memory)
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name not in free}
    if differing:
        said = "; ".join(f"{name} {old!r}, not {new!r}" for name, (old, new) in differing.items())
        other = " and ".join(sorted(changeable("pretrain", before.memory, options.memory) & differing.keys()))
        advice = f" (stage pretrain takes another {other})" if other else ""
        raise ClaraError(f"{checkpoint.path}: was trained with {said}; leave these options out{advice}")


def changeable(stage: Stage, before: MemoryConfig, now: MemoryConfig) -> set[str]:
    """Return the options of memory that a stage may have otherwise than the run that it starts from."""
    free = set[str]() if before.anchor_pooling == "mapped" else {"anchor_map_rank"}
    ways = get_args(AnchorPooling)
    richer = ways.index(now.anchor_pooling) > ways.index(before.anchor_pooling)
    return free | {"compression_rate", *(["anchor_pooling"] * richer)} if stage == "pretrain" else free


def beside(base: Base, checkpoint: Checkpoint) -> Base:
    """Return the base with what a checkpoint was trained beside: special embeddings and, if it has them, head rows."""
    extras = checkpoint.extras
    return base._replace(
        special_embeddings=extras["special_embeddings"],
        embedding_rms=extras["embedding_rms"],
        head_rows=extras.get("head_rows"),
        head_size=int(extras["head_size"]) if "head_size" in extras else None,
    )


def extras_of(base: Base) -> dict[str, mx.array]:
    """Return what a checkpoint keeps of a base, as `beside` reads it."""
    extras = {"special_embeddings": base.special_embeddings, "embedding_rms": base.embedding_rms}
    if base.head_rows is not None:
        extras["head_rows"] = base.head_rows
    if base.head_size is not None:
        extras["head_size"] = mx.array(base.head_size)
    return extras


def to_base(loaded: LoadedBase, options: Options) -> Base:
    """Return a loaded base with CLaRa's special tokens."""
    try:
        rows = part_of(loaded.module, anatomy(loaded.module).embedding).weight.shape[0]
    except ValueError as error:
        raise ClaraError(f"{loaded.name}: {error}") from error
    return init_base(loaded.module, layout_for(loaded.tokenizer, rows, options.memory), options.data.seed)


def data_fingerprint(source: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a data file; of several, with commas between, of their digests."""
    digests = []
    for name in source_names(source):
        with open(data_path(name), "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return whole[:16]
