"""The generator that was tuned on text, which `tuned_text` asks: what memory is measured against."""

from __future__ import annotations

from typing import Any

from clara.io.builtin import run_path
from clara.io.checkpoint import PARAMS, Checkpoint, newest_checkpoint
from clara.io.errors import ClaraError
from clara.shell.setup import Session
from clara.shell.stores import reads_text, session_of


def text_checkpoint(
    source: str, base: str | None, option: str = "--text-checkpoint", beside: str = "--checkpoint"
) -> Checkpoint:
    """Return the newest checkpoint of a run that was trained on text.

    base: fingerprint of the base that it must have, that of `beside`; None for any. option: what names the run. Raises
    ClaraError for another base, and for a run that was trained on memory.
    """
    try:
        checkpoint, problems = newest_checkpoint(run_path(source))
    except ClaraError as error:
        raise ClaraError(f"{option} {error}") from error
    for problem in problems:
        print(f"skipped a damaged checkpoint: {problem}")
    if not reads_text(checkpoint):
        raise ClaraError(f"{option} {source}: was trained on memory; wanted a run with data.reads text")
    if base is not None and checkpoint.manifest.base != base:
        raise ClaraError(
            f"{option} {source}: was trained on another base (fingerprint {checkpoint.manifest.base}) than "
            f"{beside} (fingerprint {base}); wanted the same"
        )
    return checkpoint


def require_memory(checkpoint: Checkpoint) -> None:
    """Raise ClaraError where a checkpoint has no memory to measure."""
    if reads_text(checkpoint):
        raise ClaraError(
            f"--checkpoint {checkpoint.path}: was trained on text and has no memory; wanted a run of memory, and this "
            "one as --text-checkpoint beside it"
        )


def open_reader(checkpoint: Checkpoint, session: Session, model: str) -> Session:
    """Return the session of a checkpoint that was trained on text, with the base that another session has loaded."""
    opened = session_of(checkpoint, model)
    return opened._replace(base=opened.base._replace(module=session.base.module))


def text_facts(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return what a configuration says of the generator that was tuned on text; nothing where there is none."""
    if checkpoint is None:
        return {}
    return {
        "text_checkpoint": str(checkpoint.path),
        "text_parameters": checkpoint.manifest.files[PARAMS][:16],
        "text_step": checkpoint.manifest.step,
        "text_doc_max_tokens": checkpoint.config["memory"]["doc_max_tokens"],
    }
