"""Options: each has a help text, layers go over one another, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from clara.core.config import STAGES, Stage
from clara.io.data_config import DataConfig
from clara.io.errors import ClaraError
from clara.shell.options import (
    INHERITED,
    Options,
    for_stage,
    heldout_of,
    leaves,
    merge,
    read_config,
    read_recipe,
    recipes,
    stage_defaults,
    step_config,
    to_options,
    to_plain,
    value_at,
)


def refusal(layers: dict[str, Any]) -> str:
    """Return the message with which options are refused."""
    with pytest.raises(ClaraError) as caught:
        to_options(layers, "here")
    return str(caught.value)


def unread(path: Path) -> str:
    """Return the message with which a file is refused."""
    with pytest.raises(ClaraError) as caught:
        read_config(str(path))
    return str(caught.value)


HINTS = {"/".join(path): hint for path, hint in leaves()}


@pytest.mark.parametrize("path", HINTS)
def test_every_option_has_a_help_text_that_ends_like_a_sentence(path: str) -> None:
    description = get_args(HINTS[path])[1].description
    assert len(description.split()) > 1 and description.endswith(".") and description == description.strip()


def test_layers_are_laid_over_one_another_leaf_by_leaf() -> None:
    lower, upper = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}, {"a": {"c": {"f": 4}}, "e": {"g": 5}}
    assert merge(lower, upper) == {"a": {"b": 1, "c": {"d": 2, "f": 4}}, "e": {"g": 5}}
    assert lower == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}, "the layers stay as they are"


@pytest.mark.parametrize(
    ("name", "content"), [("own.toml", b"steps ="), ("own.json", b'{"steps"'), ("own.toml", b"\xff")]
)
def test_a_broken_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert unread(tmp_path / name).startswith(f"{tmp_path / name}: not a valid configuration file: ")


def test_a_json_file_that_holds_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("[1]")
    assert unread(tmp_path / "own.json").startswith(f"{tmp_path / 'own.json'}: ")


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert unread(path).startswith(f"{path}: cannot be read (")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid_and_says_nothing_that_is_lost(name: str, stage: Stage) -> None:
    recipe = for_stage(read_recipe(name), stage, name)
    options = to_plain(to_options(merge(stage_defaults(stage), recipe)))
    assert merge(options, recipe) == options


def test_the_step_depends_on_these_sections_alone() -> None:
    options = to_options({"stage": "end_to_end", "lora": {"rank": 3}, "loss": {"alignment_weight": 0}})
    config = step_config(options)
    assert all(getattr(config, name) == getattr(options, name) for name in config.__struct_fields__)


def test_options_come_back_from_plain_values_also_through_json() -> None:
    options = to_options({"steps": 7, "data": {"data": "dát a.jsonl"}, "optimizer": {"learning_rate": 1e-7}})
    assert to_options(to_plain(options)) == options
    assert to_options(msgspec.json.decode(msgspec.json.encode(to_plain(options)))) == options


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_defaults_that_are_valid(stage: Stage) -> None:
    options = to_options(stage_defaults(stage))
    assert options.stage == stage == step_config(options).stage
    assert merge(to_plain(options), stage_defaults(stage)) == to_plain(options)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_of_the_paper_is_off_by_default(stage: Stage) -> None:
    options = to_options(stage_defaults(stage))
    assert (options.memory.anchored, options.memory.anchor_pooling) == (False, "mean")
    assert (options.retrieval.relevance, options.retrieval.in_batch_negatives) == ("flattened", False)


def test_the_stages_have_the_settings_of_the_papers_table() -> None:
    found = {stage: to_options(stage_defaults(stage)) for stage in STAGES}
    weights = {stage: tuple(options.loss.weights.values()) for stage, options in found.items()}
    assert weights == {
        "pretrain": (1.0, 0.1, 0.0, 0.0),
        "instruct": (1.0, 0.1, 0.0, 0.0),
        "retrieval": (0.0, 0.0, 1.0, 0.0),
        "end_to_end": (1.0, 0.0, 0.0, 0.0),
    }
    assert [found[stage].data.batch_size for stage in STAGES] == [128, 128, 32, 32]
    assert [found[stage].optimizer.learning_rate for stage in STAGES] == [1e-4, 1e-4, 1e-4, 5e-6]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"stage": "sing"}, ["stage sing: wanted one of pretrain, instruct, "]),
        ({"loss": {"contrastive_weight": 1}}, ["contrastive_weight 1.0", "stage pretrain has no candidates"]),
        ({"stage": "retrieval"}, ["next_token_weight 1.0", "stage retrieval asks no generator"]),
        ({"stage": "end_to_end"}, ["alignment_weight 0.1", "frozen compressor", "train_compressor"]),
        ({"memory": {"anchor_pooling": "learned"}}, ["anchor_pooling learned", "no anchors", "wanted anchored"]),
        ({"memory": {"anchor_pooling": "most"}}, ["memory.anchor_pooling most: wanted one of mean, "]),
        ({"data": {"reads": "text"}}, ["alignment_weight 0.1", "no memory to align", "wanted 0"]),
        (
            {"stage": "end_to_end", "loss": {"alignment_weight": 0}, "data": {"reads": "text"}},
            ["stage end_to_end choo"],
        ),
        ({"teacher": "runs/text"}, ["teacher runs/text", "distillation_weight is 0", "wanted a weight"]),
        (
            {"loss": {"alignment_weight": 0, "distillation_weight": 1}, "data": {"reads": "text"}},
            ["distillation_weight 1.0", "with reads text", "wanted 0"],
        ),
        (
            {"stage": "end_to_end", "loss": {"alignment_weight": 0, "distillation_weight": 1}},
            ["distillation_weight 1.0", "stage end_to_end has no teacher", "for stage pretrain or instruct alone"],
        ),
        ({"patience": 2}, ["patience 2", "wanted held-out data, eval_every and keep_best"]),
        ({"patience": 2, "eval_every": 5, "keep_best": ""}, ["patience 2"]),
        ({"patience": 2, "eval_every": 5, "data": {"heldout": ""}}, ["patience 2"]),
        ({"data": {"autoencode_floor": 0.5}}, ["autoencode_floor 0.5", "must not be larger"]),
        ({"retrieval": {"relevance": "early"}}, ["retrieval.relevance early: wanted one of flattened, "]),
    ],
)
def test_what_a_stage_cannot_learn_is_refused(layers: dict[str, Any], said: list[str]) -> None:
    message = refusal(layers)
    assert message.startswith("here: ") and all(part in message for part in said), message


def test_the_table_of_a_stage_goes_over_the_rest_for_that_stage_alone() -> None:
    layer = {"steps": 7, "data": {"seed": 1}, "stages": {"instruct": {"steps": 9, "data": {"batch_size": 2}}}}
    assert for_stage(layer, "pretrain", "here") == {"steps": 7, "data": {"seed": 1}}
    assert for_stage(layer, "instruct", "here") == {"steps": 9, "data": {"seed": 1, "batch_size": 2}}


@pytest.mark.parametrize("stages", [3, "instruct", [1], {"sing": {}}, {"instruct": 3}, {"instruct": {}, "sing": {}}])
def test_a_table_of_no_stage_is_refused(stages: Any) -> None:
    with pytest.raises(
        ClaraError, match=r"^here: stages is .*; wanted tables named pretrain, instruct, retrieval, end"
    ):
        for_stage({"stages": stages}, "instruct", "here")


@pytest.mark.parametrize(
    ("data", "heldout", "meant"),
    [
        ("sample", "auto", "sample-heldout"),
        ("own.jsonl", "auto", ""),
        ("sample", "", ""),
        ("own.jsonl", "held.jsonl", "held.jsonl"),
    ],
)
def test_the_sample_alone_has_held_out_data_by_itself(data: str, heldout: str, meant: str) -> None:
    assert heldout_of(DataConfig(data=data, heldout=heldout)) == meant


def test_what_is_inherited_are_options() -> None:
    assert set(INHERITED) <= set(Options.__struct_fields__)


def test_a_value_is_found_at_its_path() -> None:
    options = Options()
    assert all(value_at(options, path) == to_plain(options)[path[0]] for path, _ in leaves() if len(path) == 1)
    assert value_at(options, ("memory", "anchored")) is False


def test_a_json_file_is_read_like_a_toml_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("steps = 7\n[memory]\nanchored = false\n")
    (tmp_path / "own.json").write_text(json.dumps({"steps": 7, "memory": {"anchored": False}}))
    assert read_config(str(tmp_path / "own.toml")) == read_config(str(tmp_path / "own.json"))


def test_patience_is_taken_where_there_is_something_to_count_by() -> None:
    assert to_options({"patience": 2, "eval_every": 5}).patience == 2
