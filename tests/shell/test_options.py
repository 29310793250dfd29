"""Options: each has one flag with help, layers go over one another, and what is wrong is named."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import mlx.core as mx
import msgspec
import pytest
from mlx import nn

from clara.core.config import Layout
from clara.core.types import Base, TrainState
from clara.io.checkpoint import Checkpoint, Manifest, load_checkpoint, save_checkpoint
from clara.io.errors import ClaraError
from clara.shell.options import (
    FREE_ON_RESUME,
    Options,
    leaves,
    merge,
    read_arguments,
    read_recipe,
    recipes,
    resumed,
    step_config,
    to_options,
    value_at,
)

PATHS = ["/".join(path) for path, _ in leaves()]
HINTS = {"/".join(path): hint for path, hint in leaves()}


def read(*argv: str) -> Options:
    """Return the options of a command line."""
    return read_arguments("train", "Train.", argv)[0]


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


@pytest.mark.parametrize("path", PATHS)
def test_every_option_has_a_help_text_that_ends_like_a_sentence(path: str) -> None:
    description = get_args(HINTS[path])[1].description
    assert len(description.split()) > 1 and description.endswith(".") and description == description.strip()


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
            value = value_at(options, path.split("/"))
            wanted = get_args(HINTS[path])[1].description + ("" if value == "" else f" [{value}]")
            assert wanted in shown, path
    assert "Peak learning rate. [0.25]" in shown


@pytest.mark.parametrize("path", [path for path in PATHS if path != "stage"])
def test_every_flag_sets_its_option_and_no_other(path: str) -> None:
    before = read()
    value = another(path, before)
    after = read(*arguments(path, value))
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


def test_layers_are_laid_over_one_another_leaf_by_leaf() -> None:
    lower, upper = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}, {"a": {"c": {"f": 4}}, "e": {"g": 5}}
    assert merge(lower, upper) == {"a": {"b": 1, "c": {"d": 2, "f": 4}}, "e": {"g": 5}}
    assert lower == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}, "the layers stay as they are"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("step = 7", ["unknown field `step`"]),
        ("[memory]\nanchor = true", ["unknown field `anchor`", "$.memory"]),
        ("[extra]\na = 1", ["unknown field `extra`"]),
        ('steps = "many"', ["int", "$.steps"]),
        ("memory = 3", ["object", "int", "$.memory"]),
        ("steps = 0", ["int", ">= 1", "$.steps"]),
        ("[lora]\ndropout = 1.0", ["< 1.0", "$.lora.dropout"]),
        ("[lora]\nrank = 2.5", ["int", "float", "$.lora.rank"]),
        ('[data]\nqa_form = "song"', ["'song'", "$.data.qa_form"]),
        (
            "[memory]\ncompression_rate = 512\ndoc_max_tokens = 8",
            ["compression_rate 512", "doc_max_tokens 8", "$.memory"],
        ),
        ("[loss]\nnext_token_weight = 0\nalignment_weight = 0", ["both 0", "$.loss"]),
        ("[optimizer]\nlearning_rate = 0", ["> 0.0", "$.optimizer.learning_rate"]),
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
        (["--steps", "many"], ["int", "$.steps"]),
        (["--steps", "0"], [">= 1", "$.steps"]),
        (["--dropout", "1"], ["< 1.0", "$.lora.dropout"]),
        (["--learning-rate", "fast"], ["float", "$.optimizer.learning_rate"]),
        (["--learning-rate", "nan"], ["$.optimizer.learning_rate"]),
        (["--compression-rate", "512"], ["compression_rate 512", "$.memory"]),
    ],
)
def test_a_wrong_flag_is_named(argv: list[str], said: list[str]) -> None:
    message = refusal(*argv)
    assert all(part in message for part in said), message


def test_a_wrong_flag_is_not_laid_at_the_door_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("steps = 7")
    message = refusal("--config", str(tmp_path / "own.toml"), "--steps", "many")
    assert "$.steps" in message and "own.toml" not in message


@pytest.mark.parametrize("argv", [["--step", "7"], ["--colour", "red"], ["red"], ["--qa-form", "song"], ["--steps"]])
def test_a_flag_that_is_none_ends_with_the_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(*argv)
    assert ended.value.code == 2
    assert argv[0].lstrip("-") in capsys.readouterr().err


def test_an_unknown_recipe_is_named_with_those_there_are() -> None:
    assert refusal("--recipe", "soup") == "--recipe soup: not one of paper, sample"


@pytest.mark.parametrize(
    ("name", "content"), [("own.toml", b"steps ="), ("own.json", b'{"steps"'), ("own.toml", b"\xff")]
)
def test_a_broken_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal("--config", str(tmp_path / name)).startswith(f"{tmp_path / name}: not a valid configuration file: ")


def test_a_json_file_that_holds_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("[1]")
    assert refusal("--config", str(tmp_path / "own.json")).startswith(f"{tmp_path / 'own.json'}: ")


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert refusal("--config", str(path)).startswith(f"{path}: cannot be read (")


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid_and_says_nothing_that_is_lost(name: str) -> None:
    recipe = read_recipe(name)
    options = msgspec.to_builtins(read("--recipe", name))
    assert merge(options, recipe) == options


def test_the_sample_recipe_is_the_default() -> None:
    assert recipes() == ["paper", "sample"]
    assert read() == read("--recipe", "sample") != read("--recipe", "paper")


def test_the_paper_recipe_has_the_settings_of_its_table() -> None:
    options = read("--recipe", "paper")
    assert (options.lora.rank, options.lora.alpha, options.lora.dropout) == (16, 32.0, 0.1)
    assert (options.data.batch_size, options.memory.doc_max_tokens) == (128, 256)
    optimizer = options.optimizer
    assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.clip_norm) == (1e-4, 0.9, 0.95, 1.0)
    assert (optimizer.weight_decay, optimizer.warmup_ratio, optimizer.final_ratio) == (0.0, 0.03, 0.1)
    assert not options.memory.anchored and options.loss.alignment_weight == 0.1


def test_the_step_depends_on_these_sections_alone() -> None:
    options = read("--rank", "3", "--no-anchored", "--alignment-weight", "0.5", "--logits-chunk", "7")
    config = step_config(options)
    assert (config.memory, config.lora, config.loss, config.compute) == (
        options.memory,
        options.lora,
        options.loss,
        options.compute,
    )


def checkpoint_of(folder: Path, options: Options, step: int = 3) -> Checkpoint:
    """Return a checkpoint of a run in folder, saved and read again."""
    base = Base(nn.Identity(), Layout(vocab_size=4, num_memory_tokens=1), mx.zeros((2, 2)), mx.array(1.0))
    state = TrainState({"w": mx.zeros(2)}, {"m": mx.zeros(2)}, mx.array(step))
    manifest = Manifest(step=step, base="b", data="d", versions={})
    return load_checkpoint(save_checkpoint(folder / "checkpoints", state, base, msgspec.to_builtins(options), manifest))


def test_options_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    options = read("--recipe", "paper", "--learning-rate", "1e-7", "--anchored", "--seed", "5", "--data", "dát a.jsonl")
    assert math.isclose(options.optimizer.learning_rate, 1e-7)
    assert to_options(checkpoint_of(tmp_path, options).config) == options


def test_resuming_takes_the_options_of_the_run_and_not_of_the_recipe(tmp_path: Path) -> None:
    options = read("--steps", "50", "--rank", "3", "--seed", "5")
    checkpoint_of(tmp_path, options)
    found, checkpoint, notes = read_arguments("train", "Train.", ["--resume", str(tmp_path)])
    assert found == msgspec.structs.replace(options, run=str(tmp_path))
    assert checkpoint is not None and checkpoint.manifest.step == 3 and notes == []


@pytest.mark.parametrize("path", [path for path in PATHS if path not in {"run", "stage"} and path in FREE_ON_RESUME])
def test_a_resumed_run_may_change_what_is_free(path: str, tmp_path: Path) -> None:
    options = read()
    checkpoint_of(tmp_path, options)
    value = another(path, options)
    assert value_at(read("--resume", str(tmp_path), *arguments(path, value)), [path]) == value


@pytest.mark.parametrize("path", [path for path in PATHS if path not in FREE_ON_RESUME and path != "stage"])
def test_a_resumed_run_may_not_change_what_makes_it_another(path: str, tmp_path: Path) -> None:
    options = read()
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
    assert set(FREE_ON_RESUME) <= set(PATHS)


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


def test_a_resumed_checkpoint_of_other_options_is_named_by_its_folder(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, read())
    broken = checkpoint._replace(config=checkpoint.config | {"colour": "red"})
    with pytest.raises(ClaraError, match=f"^{checkpoint.path}: .*unknown field `colour`"):
        resumed(read(), broken)
