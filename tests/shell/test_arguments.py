"""Arguments: each option has one flag with help, layers go over one another, and what is wrong is named."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import mlx.core as mx
import msgspec
import pytest

from clara.core.config import STAGES
from clara.io import builtin
from clara.io.checkpoint import Checkpoint, Manifest, load_checkpoint, save_checkpoint
from clara.io.errors import ClaraError
from clara.io.release import write_release
from clara.shell.arguments import ALL, CONFIG, EARLY, FREE_ON_RESUME, Plan, read_plan, stage_names
from clara.shell.options import Options, leaves, recipes, to_options, to_plain, value_at

PATHS = ["/".join(path) for path, _ in leaves()]
HINTS = {"/".join(path): hint for path, hint in leaves()}


def plan(*argv: str) -> Plan:
    """Return the plan of a command line."""
    return read_plan("train", "Train.", argv)


def read(*argv: str) -> Options:
    """Return the options of a command line that trains one stage, but for the name of a new run."""
    ((options, checkpoint),) = plan(*argv).stages
    return options if checkpoint or "--run" in argv else msgspec.structs.replace(options, run="")


BESIDE = {
    "loss/contrastive_weight": ["--stage", "end_to_end"],
    "patience": ["--eval-every", "5"],
    "teacher": ["--distillation-weight", "1"],
    "data/autoencode_floor": ["--autoencode-share", "0.9"],
}
"""What has to be given for an option to be changed by itself."""


def stage_for(path: str) -> list[str]:
    """Return the arguments beside which an option can be changed by itself."""
    return BESIDE.get(path, [])


def refusal(*argv: str) -> str:
    """Return the message with which a command line is refused."""
    with pytest.raises(ClaraError) as caught:
        read(*argv)
    return str(caught.value)


def help_text(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return what --help prints, on one line."""
    with pytest.raises(SystemExit) as ended:
        read(*argv, "--help")
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def flag(path: str) -> str:
    """Return the flag of an option."""
    return "--" + path.rpartition("/")[2].replace("_", "-")


def another(path: str, options: Options) -> Any:
    """Return a valid value of an option that it does not have."""
    value, kind = value_at(options, path.split("/")), get_args(HINTS[path])[0]
    if kind is bool:
        return not value
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if choice != value), value)
    if get_origin(kind) is Union:  # a number, or auto
        return 3 if value == "auto" else "auto"
    if kind is float:
        return value / 2 + 0.25
    return value + 1 if kind is int else value + "x"


def arguments(path: str, value: Any) -> Sequence[str]:
    """Return an option as words of a command line."""
    if isinstance(value, bool):
        return [flag(path) if value else flag(path).replace("--", "--no-", 1)]
    return [flag(path), str(value)]


def test_no_two_options_share_a_flag() -> None:
    flags = [flag(path) for path in PATHS] + ["--recipe", "--config", "--resume", "--help"]
    assert len(PATHS) > 30 and sorted(set(flags)) == sorted(flags)


def test_help_shows_every_flag_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_text(capsys)
    for path in PATHS:
        assert f"{flag(path)}" in shown, path
        assert get_args(HINTS[path])[1].description in shown, path
    assert "Train." in shown and "--recipe" in shown and "--config" in shown and "--resume" in shown


def test_help_shows_the_value_that_each_option_would_have(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[optimizer]\nlearning_rate = 0.25\n")
    for argv in ([], ["--recipe", "paper", "--config", str(tmp_path / "own.toml")]):
        shown, options = help_text(capsys, *argv), read(*argv)
        for path in PATHS:
            if path in EARLY:
                continue
            value = value_at(options, path.split("/"))
            wanted = get_args(HINTS[path])[1].description + ("" if value == "" else f" [{value}]")
            assert wanted in shown, path
    assert "Peak learning rate. [0.25]" in shown


@pytest.mark.parametrize("path", [path for path in PATHS if path not in EARLY])
def test_every_flag_sets_its_option_and_no_other(path: str) -> None:
    before = read(*stage_for(path))
    value = another(path, before)
    after = read(*stage_for(path), *arguments(path, value))
    assert value_at(after, path.split("/")) == value
    assert [p for p in PATHS if value_at(after, p.split("/")) != value_at(before, p.split("/"))] == [path]


def test_flags_go_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("steps = 7\n[lora]\nrank = 3\nalpha = 5\n[data]\nseed = 9\n")
    options = read("--recipe", "paper", "--config", str(tmp_path / "own.toml"), "--rank", "2", "--no-anchored")
    assert (options.steps, options.lora.rank, options.lora.alpha, options.data.seed) == (7, 2, 5.0, 9)
    assert (options.data.batch_size, options.optimizer.warmup_ratio) == (128, 0.03)
    assert options.memory.anchored is False


def test_a_json_file_says_the_same_as_a_toml_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("steps = 7\n[memory]\nanchored = false\n")
    (tmp_path / "own.json").write_text(json.dumps({"steps": 7, "memory": {"anchored": False}}))
    toml, json_ = (read("--config", str(tmp_path / f"own.{end}")) for end in ("toml", "json"))
    assert toml == json_ and (toml.steps, toml.memory.anchored) == (7, False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("step = 7", ["unknown field `step`"]),
        ("[memory]\nanchor = true", ["unknown field `anchor`", "$.memory"]),
        ("[extra]\na = 1", ["unknown field `extra`"]),
        ('steps = "many"', ["steps many: wanted a whole number"]),
        ("memory = 3", ["object", "int", "$.memory"]),
        ("steps = 0", ["steps 0: wanted 1 or more"]),
        ("[lora]\ndropout = 1.0", ["lora.dropout 1.0: wanted less than 1"]),
        ("[lora]\nrank = 2.5", ["lora.rank 2.5: wanted a whole number"]),
        ('[data]\nqa_form = "song"', ["data.qa_form song: wanted one of pairs, turns"]),
        (
            "[memory]\ncompression_rate = 512\ndoc_max_tokens = 8",
            ["compression_rate 512", "doc_max_tokens 8", "$.memory"],
        ),
        ("[loss]\nnext_token_weight = 0\nalignment_weight = 0", ["all loss weights are 0", "$"]),
        ("[optimizer]\nlearning_rate = 0", ["optimizer.learning_rate 0: wanted more than 0"]),
    ],
)
def test_a_wrong_value_in_a_file_is_named_with_the_file(content: str, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(content)
    message = refusal("--config", str(path))
    assert message.startswith(f"{path}: ")
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--steps", "many"], ["--steps many: wanted a whole number"]),
        (["--steps", "0"], ["--steps 0: wanted 1 or more"]),
        (["--dropout", "1"], ["--dropout 1: wanted less than 1"]),
        (["--learning-rate", "fast"], ["--learning-rate fast: wanted a number"]),
        (["--learning-rate", "nan"], ["--learning-rate nan: wanted more than 0"]),
        (["--compression-rate", "512"], ["compression_rate 512", "$.memory"]),
    ],
)
def test_a_wrong_flag_is_named(argv: list[str], said: list[str]) -> None:
    message = refusal(*argv)
    assert all(part in message for part in said), message


def test_a_wrong_flag_is_not_laid_at_the_door_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("steps = 7")
    message = refusal("--config", str(tmp_path / "own.toml"), "--steps", "many")
    assert message == "--steps many: wanted a whole number"


@pytest.mark.parametrize("argv", [["--step", "7"], ["--colour", "red"], ["red"], ["--qa-form", "song"], ["--steps"]])
def test_a_flag_that_is_none_ends_with_the_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(*argv)
    assert ended.value.code == 2
    assert argv[0].lstrip("-") in capsys.readouterr().err


def test_an_unknown_recipe_is_named_with_those_there_are() -> None:
    assert refusal("--recipe", "soup") == "--recipe soup: not one of paper, sample, small"


def test_the_sample_recipe_is_the_default() -> None:
    assert recipes() == ["paper", "sample", "small"]
    assert read() == read("--recipe", "sample") != read("--recipe", "paper")


def test_the_paper_recipe_has_the_settings_of_its_table() -> None:
    options = read("--recipe", "paper")
    assert (options.lora.rank, options.lora.alpha, options.lora.dropout) == (16, 32.0, 0.1)
    assert (options.data.batch_size, options.memory.doc_max_tokens) == (128, 256)
    optimizer = options.optimizer
    assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.clip_norm) == (1e-4, 0.9, 0.95, 1.0)
    assert (optimizer.weight_decay, optimizer.warmup_ratio, optimizer.final_ratio) == (0.0, 0.03, 0.1)
    assert not options.memory.anchored and options.loss.alignment_weight == 0.1


def checkpoint_of(folder: Path, options: Options, step: int = 3) -> Checkpoint:
    """Return a checkpoint of a run in folder, saved and read again."""
    manifest = Manifest(step=step, stage=options.stage, base="b", data="d", seed=0, versions={})
    w, config = {"w": mx.zeros(2)}, to_plain(options)
    return load_checkpoint(save_checkpoint(folder / "checkpoints", w, {"m": mx.zeros(2)}, {}, config, manifest))


def test_options_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    options = read("--recipe", "paper", "--learning-rate", "1e-7", "--anchored", "--seed", "5", "--data", "dát a.jsonl")
    assert math.isclose(options.optimizer.learning_rate, 1e-7)
    assert to_options(checkpoint_of(tmp_path, options).config) == options


def test_resuming_takes_the_options_of_the_run_and_not_of_the_recipe(tmp_path: Path) -> None:
    options = read("--steps", "50", "--rank", "3", "--seed", "5")
    checkpoint_of(tmp_path, options)
    folder, ((found, checkpoint),), notes = plan("--resume", str(tmp_path))
    assert found == msgspec.structs.replace(options, run=str(tmp_path)) and folder == tmp_path
    assert checkpoint is not None and checkpoint.manifest.step == 3 and notes == ()


FREE = [name.replace(".", "/") for name in FREE_ON_RESUME]


@pytest.mark.parametrize("path", [path for path in PATHS if path not in {"run", "stage"} and path in FREE])
def test_a_resumed_run_may_change_what_is_free(path: str, tmp_path: Path) -> None:
    options = read(*stage_for(path))
    checkpoint_of(tmp_path, options)
    value = another(path, options)
    assert value_at(read("--resume", str(tmp_path), *arguments(path, value)), path.split("/")) == value


@pytest.mark.parametrize("path", [path for path in PATHS if path not in (*FREE, *EARLY)])
def test_a_resumed_run_may_not_change_what_makes_it_another(path: str, tmp_path: Path) -> None:
    options = read(*stage_for(path))
    checkpoint_of(tmp_path, options)
    value, before = another(path, options), value_at(options, path.split("/"))
    message = refusal("--resume", str(tmp_path), *arguments(path, value))
    assert f"{path.replace('/', '.')}: {before!r} before, {value!r} now" in message
    assert message.count(" before, ") == 1


def test_all_changed_options_are_listed_at_once_with_those_that_are_free(tmp_path: Path) -> None:
    checkpoint_of(tmp_path, read())
    message = refusal("--resume", str(tmp_path), "--rank", "3", "--seed", "4", "--steps", "99")
    assert "lora.rank: " in message and "data.seed: 0 before, 4 now" in message
    assert "steps: " not in message and all(name in message for name in FREE_ON_RESUME)


def test_free_options_are_options() -> None:
    assert set(FREE) <= set(PATHS)


def test_resuming_from_nothing_is_named(tmp_path: Path) -> None:
    assert refusal("--resume", str(tmp_path)).startswith(f"{tmp_path}: no whole checkpoint found")


@pytest.mark.parametrize("given", ["run", "run/checkpoints", "run/checkpoints/step-000003"])
def test_the_run_is_found_from_its_folder_and_what_is_in_it(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_of(tmp_path / "run", read())
    monkeypatch.chdir(tmp_path)
    assert Path(read("--resume", given).run).resolve() == tmp_path / "run"


@pytest.mark.parametrize(
    ("where", "given"),
    [("run", "."), ("run/checkpoints", "."), ("run/checkpoints", "step-000003"), ("run/checkpoints/step-000003", ".")],
)
def test_the_run_is_found_from_inside_it(
    where: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_of(tmp_path / "run", read())
    monkeypatch.chdir(tmp_path / where)
    assert Path(read("--resume", given).run).resolve() == tmp_path / "run"


def test_a_released_checkpoint_is_started_from_and_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "built-in"
    write_release(folder, checkpoint_of(tmp_path / "run", read("--rank", "3", "--model", "tiny")))
    monkeypatch.setattr(builtin, "builtin_folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    for given in ("small", str(folder)):
        wanted = f"--resume {folder}: a checkpoint without a run; --start-from small begins one there"
        assert refusal("--resume", given) == wanted
    assert refusal("--run", str(folder)).startswith(f"{folder}: holds a run already")
    options = read("--start-from", "small", "--run", "small")
    assert (options.start_from, options.model, options.lora.rank, options.run) == ("small", "tiny", 3, "small")


def test_a_resumed_checkpoint_of_other_options_is_refused(tmp_path: Path) -> None:
    manifest = Manifest(step=3, stage="pretrain", base="b", data="d", seed=0, versions={})
    config = to_plain(read()) | {"colour": "red"}
    save_checkpoint(tmp_path / "checkpoints", {"w": mx.zeros(2)}, {}, {}, config, manifest)
    assert "unknown field `colour`" in refusal("--resume", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", ALL),
        ("pretrain", ("pretrain",)),
        ("instruct,end_to_end", ("instruct", "end_to_end")),
        ("pretrain, instruct ,retrieval,end_to_end", STAGES),
    ],
)
def test_a_stage_value_names_one_stage_or_several(text: str, names: tuple[str, ...]) -> None:
    assert stage_names(text) == names


@pytest.mark.parametrize("text", ["sing", "pretrain,", "pretrain,pretrain", "instruct,pretrain", "all,retrieval", ","])
def test_a_stage_value_that_is_none_is_refused(text: str) -> None:
    assert refusal("--stage", text) == (
        f"--stage {text}: wanted all, or some of pretrain,instruct,retrieval,end_to_end in this order"
    )


@pytest.mark.parametrize("line", ["stage = 3", "start_from = 3", "stages = 3", "[stages]\ninstruct = 3"])
def test_a_file_with_something_else_in_place_of_stages_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(line)
    assert "3" in refusal("--config", str(tmp_path / "own.toml"))


def test_all_stages_have_a_folder_each_and_start_from_the_one_before(tmp_path: Path) -> None:
    found = plan("--stage", "all", "--run", str(tmp_path / "run"))
    assert found.folder == tmp_path / "run" and found.notes == ()
    options = [options for options, _ in found.stages]
    assert [each.stage for each in options] == list(ALL)
    assert [each.run for each in options] == [str(tmp_path / "run" / name) for name in ALL]
    assert [each.start_from for each in options] == ["", *(str(tmp_path / "run" / name) for name in ALL[:-1])]
    assert {each.memories for each in options} == {str(tmp_path / "run" / "memories")}
    assert [checkpoint for _, checkpoint in found.stages] == [None] * 3


def test_a_new_run_is_called_by_time_and_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {text: plan("--stage", text).folder for text in ("all", "retrieval", "instruct,end_to_end")}
    assert [path.parent for path in names.values()] == [Path("runs")] * 3
    assert [path.name.split("-", 2)[2] for path in names.values()] == ["all", "retrieval", "instruct-end_to_end"]
    assert list(tmp_path.iterdir()) == [], "a plan makes nothing"


def test_an_option_is_given_to_one_stage_alone_by_flag_and_by_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'stage = "all"\nsteps = 7\n[stages.instruct]\nsteps = 8\n[stages.end_to_end.retrieval]\ntop_k = 2\n'
    )
    argv = ["--config", str(tmp_path / "own.toml"), "--end_to_end.steps", "9", "--instruct.qa-form", "pairs"]
    options = [options for options, _ in plan(*argv, "--batch-size", "3", "--instruct.batch-size", "4").stages]
    assert [each.steps for each in options] == [7, 8, 9]
    assert [each.retrieval.top_k for each in options] == [5, 5, 2]
    assert [each.data.batch_size for each in options] == [3, 4, 3]
    assert options[1].data.qa_form == "pairs"


def test_a_flag_for_all_stages_goes_over_a_files_table_of_one(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[stages.instruct]\nsteps = 8\n")
    argv = ["--config", str(tmp_path / "own.toml"), "--stage", "all", "--steps", "3"]
    assert [options.steps for options, _ in plan(*argv).stages] == [3, 3, 3]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--instruct.rank", "3"], "stages pretrain and instruct must agree in lora.rank: 16 and 3"),
        (["--end_to_end.doc-max-tokens", "64"], "stages pretrain and end_to_end must agree in memory.doc_max_tokens: "),
        (["--instruct.model", "other"], "must agree in model: 'smollm2-135m' and 'other'"),
    ],
)
def test_stages_that_cannot_follow_one_another_are_refused(flags: list[str], said: str) -> None:
    assert said in refusal("--stage", "all", *flags)


def test_stages_may_have_their_own_dropout() -> None:
    found = plan("--stage", "all", "--instruct.dropout", "0.5").stages
    assert [options.lora.dropout == 0.5 for options, _ in found] == [False, True, False]


def test_a_wrong_value_of_one_stage_is_named_with_the_stage() -> None:
    assert refusal("--stage", "all", "--instruct.steps", "0") == "stage instruct: --steps 0: wanted 1 or more"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--recipe", "paper"], "--recipe"),
        (["--stage", "instruct"], "--stage"),
        (["--start-from", "x"], "--start-from"),
        (["--recipe", "sample", "--stage", "all"], "--recipe, --stage"),
    ],
)
def test_what_only_a_new_run_takes_is_refused_beside_resume(flags: list[str], named: str, tmp_path: Path) -> None:
    checkpoint_of(tmp_path, read())
    assert refusal("--resume", str(tmp_path), *flags).startswith(f"{named} beside --resume: ")


def test_what_a_run_starts_from_gives_model_memory_lora_and_prompts_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[prompts.answer]\nuser = "{memory} {question}"\n')
    before = read(
        *("--config", str(tmp_path / "own.toml"), "--model", "other", "--rank", "3", "--doc-max-tokens", "64"),
        *("--steps", "50", "--seed", "5"),
    )
    checkpoint_of(tmp_path, before)
    found = read("--stage", "instruct", "--start-from", str(tmp_path))
    assert (found.model, found.memory, found.lora, found.prompts) == (
        before.model,
        before.memory,
        before.lora,
        before.prompts,
    )
    assert found.start_from == str(tmp_path) and found.steps != 50 and found.data.seed == 0
    assert read("--stage", "instruct", "--start-from", str(tmp_path), "--dropout", "0.25").lora.dropout == 0.25


def test_a_folder_that_holds_a_run_is_refused_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    for stage in ("pretrain", "all"):
        message = refusal("--run", str(tmp_path), "--stage", stage)
        assert message.startswith(f"{tmp_path}: holds a run already; go on with it by --resume {tmp_path}")


def begun_run(folder: Path, options: Options) -> None:
    """Write what a run of one stage has in its folder before its first checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_bytes(msgspec.json.encode(to_plain(options)))


def test_a_run_that_ended_before_its_first_checkpoint_is_begun_anew_with_its_options(tmp_path: Path) -> None:
    begun_run(tmp_path, read("--steps", "50", "--seed", "5"))
    folder, ((options, checkpoint),), _ = plan("--resume", str(tmp_path))
    assert folder == tmp_path and checkpoint is None
    assert (options.run, options.steps, options.data.seed) == (str(tmp_path), 50, 5)


def several(folder: Path, done: Sequence[str], *more: str) -> list[Options]:
    """Return the options of a run of all stages that is written to a folder, some of its stages with a checkpoint."""
    options = [each for each, _ in plan("--stage", "all", "--run", str(folder), *more).stages]
    for each in options:
        if each.stage in done:
            checkpoint_of(Path(each.run), each)
    (folder / CONFIG).write_bytes(msgspec.json.encode({"stages": {each.stage: to_plain(each) for each in options}}))
    return options


def test_a_run_of_several_stages_goes_on_with_all_of_them(tmp_path: Path) -> None:
    options = several(tmp_path, ["pretrain", "instruct"], "--steps", "9", "--instruct.steps", "4")
    found = plan("--resume", str(tmp_path))
    assert [each for each, _ in found.stages] == options
    steps = [checkpoint.manifest.step if checkpoint else None for _, checkpoint in found.stages]
    assert steps == [3, 3, None]


def test_a_run_of_several_stages_that_was_moved_goes_on_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    several(tmp_path / "old", ["pretrain"])
    (tmp_path / "old").rename(tmp_path / "new")
    found = [options for options, _ in plan("--resume", str(tmp_path / "new")).stages]
    assert [each.run for each in found] == [str(tmp_path / "new" / name) for name in ALL]
    assert found[1].start_from == str(tmp_path / "new" / "pretrain")


def test_what_differs_in_one_of_several_stages_is_named_with_the_stage(tmp_path: Path) -> None:
    several(tmp_path, ["pretrain", "instruct"])
    message = refusal("--resume", str(tmp_path), "--instruct.learning-rate", "0.5")
    assert "these options of stage instruct differ: optimizer.learning_rate: " in message
    found = plan("--resume", str(tmp_path), "--end_to_end.learning-rate", "0.5").stages
    assert found[2][0].optimizer.learning_rate == 0.5, "a stage that was not begun is free"


def test_a_damaged_checkpoint_of_one_of_several_stages_is_noted(tmp_path: Path) -> None:
    options = several(tmp_path, ["pretrain", "instruct"])
    later = checkpoint_of(Path(options[1].run), options[1], step=5).path
    (later / "adapters.safetensors").write_bytes(b"x")
    found = plan("--resume", str(tmp_path))
    assert found.stages[1][1] is not None and found.stages[1][1].manifest.step == 3
    (note,) = found.notes
    assert str(later) in note
