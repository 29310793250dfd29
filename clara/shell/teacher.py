"""The teacher of a run: a generator that was tuned on text, or the base itself, whose next tokens are to be matched."""

from __future__ import annotations

import mlx.core as mx

from clara.core.config import CHOOSING, StepConfig
from clara.core.step import scaled_adapters
from clara.core.types import Params
from clara.io.checkpoint import PARAMS, Checkpoint, float32_params
from clara.io.errors import ClaraError
from clara.shell.evaluation.reader import text_checkpoint
from clara.shell.options import Options, to_options


def teacher_of(options: Options, base: str | None = None) -> Checkpoint | None:
    """Return the checkpoint that a stage has for its teacher; None where that is the base itself, or there is none.

    base: fingerprint of the base that it must have; None where that is not known yet. Raises ClaraError where the run
    is not there, or no teacher on this base.
    """
    if not options.teacher or options.stage in CHOOSING:
        return None
    return text_checkpoint(options.teacher, base, "--teacher", f"--model {options.model}")


def require_teacher(options: Options, teacher: Checkpoint | None, checkpoint: Checkpoint | None) -> None:
    """Raise ClaraError where a run that is resumed had another teacher."""
    if checkpoint and options.stage not in CHOOSING and checkpoint.manifest.teacher != teacher_name(teacher):
        raise ClaraError(
            f"--teacher {options.teacher or '(the base itself)'}: not the teacher that this run was started with "
            f"({checkpoint.manifest.teacher[:16] or 'the base itself, or none'}); was it trained on? Its checkpoint of "
            "that time can be named in its place"
        )


def beside_teacher(params: Params, teacher: Checkpoint | None, config: StepConfig) -> Params:
    """Return parameters that a stage only reads with those of its teacher, at the scale of the stage's own adapters."""
    if teacher is None:
        return params
    scale = to_options(teacher.config, str(teacher.path)).lora.scale / config.lora.scale
    tuned = {"adapters": {"teacher": float32_params(teacher)["adapters"]["generator"]}}
    adapters = scaled_adapters(tuned, scale)["adapters"]
    mx.eval(adapters)  # a compiled step would read the file each time
    return {**params, "adapters": {**params["adapters"], **adapters}}


def teacher_name(teacher: Checkpoint | None) -> str:
    """Return what a teacher is known by, on whatever machine its run is: its parameters; empty for none of its own."""
    return teacher.manifest.files[PARAMS] if teacher else ""


def teacher_lines(options: Options, teacher: Checkpoint | None) -> list[str]:
    """Return the line that says which teacher a stage has; nothing where it has none."""
    if not options.loss.distillation_weight:
        return []
    who = f"{options.teacher} (step {teacher.manifest.step})" if teacher else "the base itself"
    return [f"teacher   {who}, which reads the documents as text; weight {options.loss.distillation_weight}"]
