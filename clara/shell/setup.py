"""What every entrypoint begins with: the base, its special tokens, its parameters, and an encoder for text."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from clara.core.bind import anatomy, part_of
from clara.core.config import StepConfig
from clara.core.init import init_base, init_params
from clara.core.types import Base, Params
from clara.io.base import LoadedBase, load_base
from clara.io.checkpoint import Checkpoint
from clara.io.errors import ClaraError
from clara.io.examples import Encoder, layout_for, make_encoder
from clara.io.records import data_path
from clara.io.tokens import Tokenizer
from clara.shell.options import Options, step_config


class Session(NamedTuple):
    """A base with its parameters, ready for steps or questions."""

    base: Base
    config: StepConfig
    params: Params
    tokenizer: Tokenizer
    encoder: Encoder
    fingerprint: str
    """Of the base."""


def prepare_device(compile: str = "auto") -> bool:
    """Set the device up as mlx-lm does and return whether steps are to be compiled: "on", "off", or "auto".

    On a CPU, "auto" also stops mlx-lm from compiling its own small functions, which would take g++ longer than it
    ever saves.
    """
    maybe_set_recommended_wired_limit()
    on_cpu = mx.default_device() == mx.cpu
    if on_cpu and compile != "on":
        mx.disable_compile()
    return compile == "on" or (compile == "auto" and not on_cpu)


def open_session(options: Options, checkpoint: Checkpoint | None = None) -> Session:
    """Return the session of options, with new parameters or those of a checkpoint.

    Raises ClaraError where the checkpoint belongs to another base.
    """
    loaded = load_base(options.model)
    if checkpoint is not None and checkpoint.manifest.base != loaded.fingerprint:
        raise ClaraError(
            f"{checkpoint.path}: was trained on another base (fingerprint {checkpoint.manifest.base}) than "
            f"--model {options.model} (fingerprint {loaded.fingerprint}); give the base that it was trained on"
        )
    base = to_base(loaded, options)
    config = step_config(options)
    if checkpoint is not None:
        base = base._replace(
            special_embeddings=checkpoint.frozen["special_embeddings"],
            embedding_rms=checkpoint.frozen["embedding_rms"],
        )
        params = checkpoint.params
    else:
        params = init_params(base, config, options.data.seed)
    mx.eval(base.special_embeddings, base.embedding_rms, params)
    encoder = make_encoder(loaded.tokenizer, base.layout, options.memory.doc_max_tokens, options.data.max_tokens)
    return Session(base, config, params, loaded.tokenizer, encoder, loaded.fingerprint)


def to_base(loaded: LoadedBase, options: Options) -> Base:
    """Return a loaded base with CLaRa's special tokens."""
    try:
        rows = part_of(loaded.module, anatomy(loaded.module).embedding).weight.shape[0]
    except ValueError as error:
        raise ClaraError(f"{loaded.name}: {error}") from error
    return init_base(loaded.module, layout_for(loaded.tokenizer, rows, options.memory), options.data.seed)


def data_fingerprint(source: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a data file."""
    with open(data_path(source), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
