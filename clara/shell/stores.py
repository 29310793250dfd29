"""A memory store and the session that belongs to it: the checkpoint that compressed it, and whether one fits it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from clara.io.builtin import BUILTIN, run_or_builtin
from clara.io.checkpoint import PARAMS, Checkpoint, newest_checkpoint, save_checkpoint
from clara.io.errors import ClaraError
from clara.io.memories import compressor_fingerprint
from clara.io.memory_store.store import CHECKPOINT, DATABASE, SHARD_BYTES, Store, StoreInfo
from clara.shell.options import to_options
from clara.shell.setup import Session, open_session, prepare_device

SMALLEST_SHARD = 2**24
"""Bytes of a shard in a store of few passages."""


def checkpoint_for(path: Path, source: str = "") -> Checkpoint:
    """Return the newest checkpoint of a run; without a source, the copy that the store at `path` keeps.

    Where there is no store yet, the built-in one is taken, and that is said. Raises ClaraError where there is none.
    """
    stored = not source and (path / DATABASE).is_file()
    try:
        checkpoint, problems = newest_checkpoint(path / CHECKPOINT if stored else run_or_builtin(source))
    except ClaraError as error:
        advice = "--checkpoint RUN names the run that made the store" if stored else "wanted a run or a checkpoint"
        raise ClaraError(f"{error}; {advice}") from error
    for problem in problems:
        print(f"skipped a damaged checkpoint: {problem}")
    if not (source or stored):
        print(builtin_line(checkpoint), flush=True)
    require_compressor_of(checkpoint)
    return checkpoint


def builtin_line(checkpoint: Checkpoint) -> str:
    """Return what is said where the built-in checkpoint is taken because none was named."""
    base = checkpoint.config["model"]
    return (
        f"note      no --checkpoint: {BUILTIN} is taken, which comes with the package and is for {base}; another base "
        "wants a run of its own (python -m clara.shell.train)"
    )


def reads_text(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint's generator was trained on the text of documents, without a compressor."""
    return to_options(checkpoint.config, str(checkpoint.path)).data.reads == "text"


def require_compressor_of(checkpoint: Checkpoint) -> None:
    """Raise ClaraError where a checkpoint was trained on text: its compressor was not trained."""
    if reads_text(checkpoint):
        raise ClaraError(f"{checkpoint.path}: was trained on text and has no memory; wanted a run of memory")


def session_of(checkpoint: Checkpoint, model: str = "") -> Session:
    """Return the session of a checkpoint, on its own base or the same under another name, on a device set up for it."""
    options = to_options(checkpoint.config, str(checkpoint.path))
    if not model and options.model.startswith(("/", ".", "~")) and not Path(options.model).expanduser().exists():
        raise ClaraError(f"{options.model}: the base of {checkpoint.path} is not there; --model says where it is now")
    prepare_device(options.compile)
    return open_session(msgspec.structs.replace(options, model=model or options.model), checkpoint)


def store_fingerprint(session: Session) -> str:
    """Return the compressor's fingerprint as a store has it: the same on every device."""
    return compressor_fingerprint(session.base, session.config, session.params, session.fingerprint, exact=False)


def info_of(
    session: Session, model: str, dtype: str | None = None, bits: int | None = None, passages: int = 0
) -> StoreInfo:
    """Return what a new store for the memories of a session says of itself; dtype and bits as in `StoreInfo`.

    passages: how many are expected. A shard has its full size from the start, so that of a small store is small.
    """
    count, hidden = session.base.layout.num_memory_tokens, session.base.special_embeddings.shape[1]
    return StoreInfo(
        base=session.fingerprint,
        compressor=store_fingerprint(session),
        model=model,
        num_memory_tokens=count,
        hidden=hidden,
        dtype=dtype or "bfloat16",
        bits=bits or 0,
        shard_bytes=min(max(2 * count * hidden * passages, SMALLEST_SHARD), SHARD_BYTES),
    )


def require_packing(info: StoreInfo, dtype: str | None, bits: int | None) -> None:
    """Raise ClaraError where a store packs its memories otherwise than it is wanted; None wants nothing."""
    for name, wanted, found in (("dtype", dtype, info.dtype), ("bits", bits, info.bits)):
        if wanted not in (None, found):
            raise ClaraError(f"--{name} {wanted}: the store has {found or 'none'}; leave it out, or make a new store")


def keep_checkpoint(store: Store, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint into its store, without the optimizer's state; whole or not at all.

    Another one, which has the same compressor, gives way to it.
    """
    folder = store.path / CHECKPOINT
    try:
        kept = newest_checkpoint(folder)[0].manifest.files[PARAMS]
    except ClaraError:
        kept = ""
    if kept != checkpoint.manifest.files[PARAMS]:
        config, manifest = checkpoint.config, checkpoint.manifest
        save_checkpoint(folder, checkpoint.params, {}, checkpoint.extras, config, manifest, keep=1)
