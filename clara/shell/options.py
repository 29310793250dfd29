"""Options of a run: one frozen struct, from which defaults, TOML files, `--help` and parsing are derived."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct

from clara.core.config import (
    CHOOSING,
    STAGES,
    ComputeConfig,
    LoraConfig,
    LossConfig,
    MemoryConfig,
    OptimizerConfig,
    RetrievalConfig,
    Stage,
    StepConfig,
    stage_loss,
)
from clara.core.prompts import Prompts
from clara.io.data_config import DataConfig
from clara.io.errors import ClaraError
from clara.shell.bounds import checked

INHERITED = ("model", "memory", "lora", "prompts")
"""Options that a stage takes over from the checkpoint it starts from."""


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the training of one stage depends on."""

    model: Annotated[
        str,
        Meta(description="The base: a folder, a .gguf file, a Hugging Face id, or the built-in smollm2-135m."),
    ] = "smollm2-135m"
    stage: Annotated[
        Stage,
        Meta(
            description=f"The training stage: {', '.join(STAGES)}; several with commas between, trained one after the "
            "other; or all, for pretrain,instruct,end_to_end."
        ),
    ] = "pretrain"
    run: Annotated[str, Meta(description="Folder of the run; empty for a new one under runs/.")] = ""
    start_from: Annotated[
        str, Meta(description="Run, checkpoint or built-in small that training starts from; empty for new parameters.")
    ] = ""
    carry_generator: Annotated[
        bool, Meta(description="Carry the generator on from there; otherwise it starts anew, as in the original.")
    ] = True
    teacher: Annotated[
        str,
        Meta(
            description="Run that was trained with data.reads text, on the same base: the teacher of "
            "distillation_weight; empty for the base itself."
        ),
    ] = ""
    memories: Annotated[
        str,
        Meta(description="Folder of the documents' memories, for stages with a frozen compressor; empty: in the run."),
    ] = ""
    steps: Annotated[int, Meta(ge=1, description="Optimizer steps.")] = 1000
    eval_every: Annotated[
        int, Meta(ge=0, description="Steps between held-out evaluations; 0 = first and last only.")
    ] = 0
    eval_records: Annotated[int, Meta(ge=0, description="Held-out records that an evaluation takes; 0 = all.")] = 0
    eval_generate: Annotated[
        int, Meta(ge=0, description="Held-out questions that an evaluation has answered, for EM, cover-EM and F1.")
    ] = 0
    beams: Annotated[
        int,
        Meta(
            ge=1,
            description="Beams of the search for an answer, here and, unless told otherwise, in ask and evaluate; "
            "1 = greedy.",
        ),
    ] = 1
    save_every: Annotated[int, Meta(ge=0, description="Steps between checkpoints; 0 = at the end only.")] = 100
    keep: Annotated[int, Meta(ge=1, description="Newest checkpoints that are kept.")] = 2
    keep_best: Annotated[
        str,
        Meta(description="Held-out metric whose best checkpoint is kept as well, such as loss or mrr; empty for none."),
    ] = "loss"
    show: Annotated[int, Meta(ge=0, description="Held-out documents that are asked a question at the end.")] = 4
    patience: Annotated[
        int,
        Meta(
            ge=0,
            description="Held-out evaluations in a row without a better keep_best metric that end the run; 0 = none.",
        ),
    ] = 0
    log_every: Annotated[
        int,
        Meta(ge=1, description="Steps between progress lines, each with their means; metrics are kept of every step."),
    ] = 10
    report_to: Annotated[
        str, Meta(description="Where metrics go besides the run folder: tensorboard, wandb, swanlab, with commas.")
    ] = ""
    compile: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="mx.compile for the step; auto: on a GPU, not on a CPU."),
    ] = "auto"
    memory: MemoryConfig = MemoryConfig()
    lora: LoraConfig = LoraConfig()
    loss: LossConfig = LossConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    data: DataConfig = DataConfig()
    prompts: Prompts = Prompts()

    def __post_init__(self) -> None:
        step_config(self)
        if self.data.reads == "text" and self.stage in CHOOSING:
            raise ValueError(f"reads text: stage {self.stage} chooses documents by their memory; wanted reads memory")
        if self.data.reads == "text" and self.loss.alignment_weight:
            raise ValueError(
                f"alignment_weight {self.loss.alignment_weight}: with reads text there is no memory to align; wanted 0"
            )
        if self.data.reads == "text" and self.loss.distillation_weight:
            raise ValueError(
                f"distillation_weight {self.loss.distillation_weight}: with reads text the generator reads what its "
                "teacher would; wanted 0"
            )
        if self.teacher and not self.loss.distillation_weight and self.stage not in CHOOSING:
            raise ValueError(
                f"teacher {self.teacher}: nothing is learnt of it while distillation_weight is 0; wanted a weight, or "
                "no teacher"
            )
        if self.patience and not (self.eval_every and self.keep_best and heldout_of(self.data)):
            raise ValueError(
                f"patience {self.patience}: wanted held-out data, eval_every and keep_best, by which it is counted"
            )


def step_config(options: Options) -> StepConfig:
    """Return the part of the options that the mathematics of a step depends on."""
    return StepConfig(
        stage=options.stage,
        memory=options.memory,
        lora=options.lora,
        loss=options.loss,
        retrieval=options.retrieval,
        compute=options.compute,
    )


def to_plain(options: Options) -> dict[str, Any]:
    """Return options as nested dicts of plain values, as `to_options` reads them."""
    plain: dict[str, Any] = msgspec.to_builtins(options)
    return plain


def stage_defaults(stage: Stage) -> dict[str, Any]:
    """Return the defaults of a stage that are not those of `Options` (arXiv 2511.18659, Table 10)."""
    defaults: dict[str, Any] = {"stage": stage, "loss": msgspec.to_builtins(stage_loss(stage))}
    if stage in CHOOSING:
        defaults["data"] = {"batch_size": 32}
    if stage == "end_to_end":
        defaults["optimizer"] = {"learning_rate": 5e-6}
    return defaults


def heldout_of(data: DataConfig) -> str:
    """Return the held-out data that is meant: for "auto" the sample's own for the sample, else none."""
    if data.heldout != "auto":
        return data.heldout
    return "sample-heldout" if data.data == "sample" else ""


def leaves(kind: type[Struct] = Options, section: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, annotated type) of every option but the prompts, which only files can give."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if hint is Prompts:
            continue
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


def for_stage(layer: Mapping[str, Any], stage: str, source: str) -> dict[str, Any]:
    """Return nested dicts as they are meant for a stage: what stands in its table under `stages` lies over the rest.

    Raises ClaraError where that table names something else than stages.
    """
    stages = layer.get("stages", {})
    tables = isinstance(stages, Mapping) and all(isinstance(table, Mapping) for table in stages.values())
    if not tables or not set(stages) <= set(STAGES):
        raise ClaraError(f"{source}: stages is {stages!r}; wanted tables named {', '.join(STAGES)}")
    return merge({name: value for name, value in layer.items() if name != "stages"}, stages.get(stage, {}))


def to_options(layers: Mapping[str, Any], source: str = "options") -> Options:
    """Return nested dicts as options. Raises ClaraError that names the option, what was found and what is wanted."""
    return checked(layers, Options, source)
