"""The converting command: there and back without a byte changed, usable runs, and refusals that write nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from folders import write_records
from mlx.utils import tree_flatten
from reference import GOLDEN
from runs import Run, built_in, command_of, text_run
from tiny import to_bytes

from clara.io.checkpoint import load_checkpoint, newest_checkpoint
from clara.shell import convert, train
from clara.shell.options import to_options
from clara.shell.setup import open_session

CHECKPOINTS = ("checkpoint_stage1", "checkpoint_stage2_instruct", "checkpoint_stage3")
BASE = GOLDEN / "base"
MODEL_FILE = """
class Model:
    def blend(self, query, answer=None, qa=False, again=False):
        docs = (''.join(self.tokenizer.mem_tokens) + self.tokenizer.sep_token) * self.top_k
        if qa:
            lines = [f"Q: {q}\\nA: {a}" for q, a in zip(query, answer)]
            return [{"role": "system", "content": "Ask."}, {"role": "user", "content": f"Texts:\\n{docs}"},
                    {"role": "assistant", "content": "\\n".join(lines)}]
        if again:
            return [{"role": "system", "content": "Repeat."}, {"role": "user", "content": f"Say again: {docs}"},
                    {"role": "assistant", "content": answer}]
        return [{"role": "system", "content": "Lamps."},
                {"role": "user", "content": f"Texts:\\n{docs}\\n\\nAsk:{query}"},
                {"role": "assistant", "content": answer}]
"""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return the command as a function of its arguments: (exit status, output, errors)."""
    return command_of(convert.main, capsys)


def options_in(base: Path, anchored: bool) -> list[str]:
    """Return arguments of a short, tiny run beside its base."""
    records = write_records(base.parent / "records.jsonl", range(6))
    return [
        *("--model", str(base), "--data", str(records), "--heldout", "", "--steps", "2", "--show", "0", "--rank", "4"),
        *("--doc-max-tokens", "32", "--compression-rate", "8", "--max-tokens", "512", "--batch-size", "2"),
        *("--learning-rate", "0.01", "--anchored" if anchored else "--no-anchored"),
    ]


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    """Return a trained run without anchored memory."""
    assert train.main([*options_in(base, False), "--alpha", "8", "--run", str(base.parent / "run")]) == 0
    return base.parent / "run"


@pytest.fixture(scope="module")
def anchored(base: Path) -> Path:
    """Return a trained run with anchored memory."""
    assert train.main([*options_in(base, True), "--run", str(base.parent / "anchored")]) == 0
    return base.parent / "anchored"


def assert_same_files(first: Path, second: Path) -> None:
    """Assert that two checkpoints of the original have the same configuration, keys, order, dtypes and bits."""
    torch: Any = pytest.importorskip("torch")
    assert json.loads((first / "config.json").read_bytes()) == json.loads((second / "config.json").read_bytes())
    for name in ("adapters.pth", "decoder_first_last_layers.pth"):
        one, two = (torch.load(folder / name, weights_only=True) for folder in (first, second))
        assert_same_state(torch, one, two)


def assert_same_state(torch: Any, one: Any, two: Any) -> None:
    """Assert that two nested state dicts are the same."""
    assert list(one) == list(two)
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same_state(torch, value, two[key])
        else:
            assert value.dtype == two[key].dtype and value.shape == two[key].shape
            first, second = (tensor.detach().contiguous().numpy().tobytes() for tensor in (value, two[key]))
            assert first == second, key


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_original_comes_back_unchanged(name: str, command: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    status, out, err = command(GOLDEN / name, tmp_path / "run", "--model", BASE)
    assert (status, err) == (0, "") and f"written: {tmp_path / 'run'}" in out
    assert command(tmp_path / "run", tmp_path / "back")[0] == 0
    assert_same_files(GOLDEN / name, tmp_path / "back")
    files = [folder / "config.json" for folder in (tmp_path / "back", GOLDEN / name)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_goes_to_the_original_and_back(run: Path, command: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    status, out, _ = command(run, tmp_path / "original")
    assert status == 0 and "note: the original prompts with its own wording" in out
    assert command(tmp_path / "original", tmp_path / "back")[0] == 0
    before, after = newest_checkpoint(run)[0], newest_checkpoint(tmp_path / "back")[0]
    first, second = (leaves_of(checkpoint.params) for checkpoint in (before, after))
    assert first == second and len(first) > 10
    assert command(tmp_path / "back", tmp_path / "again")[0] == 0
    assert_same_files(tmp_path / "original", tmp_path / "again")


def leaves_of(params: Any) -> dict[str, tuple[Any, bytes]]:
    """Return shape and bytes of each leaf."""
    return {name: (leaf.shape, to_bytes(leaf)) for name, leaf in tree_flatten(params)}


def test_prompts_come_from_the_model_file_beside(command: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    shutil.copytree(GOLDEN / "checkpoint_stage3", tmp_path / "a" / "checkpoint")
    source = tmp_path / "a" / "checkpoint"
    _, out, _ = command(source, tmp_path / "without", "--model", BASE)
    assert f"note: no modeling_clara.py beside {source}" in out
    (tmp_path / "a" / "modeling_clara.py").write_text(MODEL_FILE)
    status, out, _ = command(source, tmp_path / "with", "--model", BASE)
    assert status == 0 and "note" not in out
    config = json.loads((tmp_path / "with" / "config.json").read_bytes())
    assert config["prompts"]["answer"] == {"user": "Texts:\n{memory}\n\nAsk:{question}", "system": "Lamps."}
    checkpoint, _ = newest_checkpoint(tmp_path / "with")
    session = open_session(to_options(checkpoint.config), checkpoint)
    assert session.encoder.prompts.answer.system == "Lamps."
    assert json.loads((tmp_path / "without" / "config.json").read_bytes())["prompts"] != config["prompts"]


@pytest.mark.parametrize(
    ("form", "file"),
    [("mlx-lm", "adapters.safetensors"), ("peft", "adapter_model.safetensors"), ("fused", "model.safetensors")],
)
@pytest.mark.parametrize("adapter", ["compressor", "generator"])
def test_an_adapter_is_written_for_others(
    form: str, file: str, adapter: str, anchored: Path, command: Run, tmp_path: Path
) -> None:
    status, out, err = command(anchored, tmp_path / "to", "--format", form, "--adapter", adapter)
    assert (status, err) == (0, "") and "written:" in out
    assert (tmp_path / "to" / file).stat().st_size > 1000
    other = tmp_path / "other"
    assert command(anchored, other, "--format", form)[0] == 0, "the generator, where none is named"
    assert ((other / file).read_bytes() == (tmp_path / "to" / file).read_bytes()) == (adapter == "generator")


def test_a_converted_run_is_trained_on(base: Path, command: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert command(GOLDEN / "checkpoint_stage2_instruct", tmp_path / "run", "--model", BASE)[0] == 0
    records = write_records(tmp_path / "records.jsonl", range(8))
    argv = ["--start-from", tmp_path / "run", "--stage", "end_to_end", "--run", tmp_path / "on", "--data", records]
    more = ["--candidates", "4", "--steps", "2", "--batch-size", "2", "--heldout", "", "--show", "0"]
    assert train.main([str(argument) for argument in (*argv, *more)]) == 0
    checkpoint = load_checkpoint(tmp_path / "on" / "checkpoints" / "step-000002")
    before = leaves_of(newest_checkpoint(tmp_path / "run")[0].params)
    after = leaves_of(checkpoint.params)
    changed = {name.split(".")[1] for name, leaf in after.items() if leaf != before.get(name)}
    assert changed == {"reasoner", "generator"}
    assert command(tmp_path / "on", tmp_path / "back")[0] == 0, "what was trained on goes back to the original too"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--format", "mlx-lm", "--adapter", "reasoner"], "no adapter reasoner; there are compressor, generator"),
        (["--adapter", "generator"], "--adapter is for mlx-lm, peft and fused"),
        ([], "anchored memory cannot be written for the original"),
    ],
)
def test_what_a_run_cannot_become_is_refused(
    more: list[str], said: str, anchored: Path, command: Run, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    status, _, err = command(anchored, tmp_path / "to", *more)
    assert status == 1 and err.startswith("error: ") and said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [["--format", "peft"], ["--adapter", "generator"]])
def test_an_original_is_only_converted_to_a_run(more: list[str], command: Run, tmp_path: Path) -> None:
    status, _, err = command(GOLDEN / "checkpoint_stage1", tmp_path / "to", *more)
    assert status == 1 and "--format and --adapter are for checkpoints of this project: convert to one first" in err
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_it_was_not_trained_on_is_refused(base: Path, command: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    status, _, err = command(GOLDEN / "checkpoint_stage1", tmp_path / "to", "--model", base)
    assert status == 1 and "give the base that it was trained on (--model)" in err
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_holds_something_is_refused(anchored: Path, command: Run, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "own.txt").write_text("mine")
    status, _, err = command(anchored, tmp_path / "to", "--format", "peft")
    assert status == 1 and f"error: {tmp_path / 'to'}: holds something already; give another folder" in err
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["own.txt"]


@pytest.mark.parametrize("name", ["./missing", "../missing/run"])
def test_a_source_that_is_not_there_is_refused(name: str, command: Run, tmp_path: Path) -> None:
    status, _, err = command(name, tmp_path / "to")
    assert status == 1 and f"error: {name}: neither a folder nor a Hugging Face id" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_checkpoint_is_refused(command: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = command(tmp_path / "empty", tmp_path / "to")
    assert status == 1 and f"error: {tmp_path / 'empty'}: no whole checkpoint found" in err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("more", [(), ("--format", "peft", "--adapter", "compressor")])
def test_the_compressor_of_a_run_of_text_is_refused(
    more: tuple[str, ...], base: Path, command: Run, tmp_path: Path
) -> None:
    run = text_run(base, tmp_path / "text")
    status, _, err = command(str(run), str(tmp_path / "out"), *more)
    assert status == 1 and "was trained on text and has no memory" in err and not (tmp_path / "out").exists()


def test_the_generator_of_a_run_of_text_is_converted(base: Path, command: Run, tmp_path: Path) -> None:
    run = text_run(base, tmp_path / "text")
    status, _, _ = command(str(run), str(tmp_path / "out"), "--format", "mlx-lm")
    assert status == 0 and (tmp_path / "out").is_dir()


def test_a_checkpoint_to_give_away_answers_and_is_trained_on_in_float32(
    anchored: Path, command: Run, tmp_path: Path
) -> None:
    status, out, err = command(anchored, tmp_path / "given", "--format", "clara")
    assert (status, err) == (0, "") and "note: the base is called tiny there; --model says" in out
    assert sorted(path.name for path in (tmp_path / "given").iterdir()) == [
        *("adapters.safetensors", "config.json", "manifest.json")
    ]
    checkpoint, base = newest_checkpoint(tmp_path / "given")[0], newest_checkpoint(anchored)[0].config["model"]
    assert {leaf.dtype for _, leaf in tree_flatten(checkpoint.params["adapters"])} == {mx.bfloat16}
    assert checkpoint.config["model"] == "tiny" and checkpoint.config["run"] == "anchored"
    records = write_records(tmp_path / "records.jsonl", range(6))
    argv = ["--start-from", tmp_path / "given", "--model", base, "--run", tmp_path / "on", "--data", records]
    more = ["--steps", "1", "--batch-size", "2", "--heldout", "", "--show", "0"]
    assert train.main([str(argument) for argument in (*argv, *more)]) == 0
    trained = newest_checkpoint(tmp_path / "on")[0]
    leaves = tree_flatten({"params": trained.params, "optimizer": trained.optimizer_state})
    assert {leaf.dtype for _, leaf in leaves if leaf.ndim} == {mx.float32}


def test_what_is_given_away_is_replaced_and_nothing_else(anchored: Path, command: Run, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "README.md").write_text("card")
    assert [command(anchored, given, "--format", "clara")[0] for _ in range(2)] == [0, 0]
    assert (given / "README.md").read_text() == "card"
    status, _, err = command(anchored, given, "--format", "peft")
    assert status == 1 and "holds something already" in err
    status, _, err = command(anchored, anchored, "--format", "clara")
    assert status == 1 and "holds something already" in err
    status, _, err = command(anchored, tmp_path / "to", "--format", "clara", "--adapter", "generator")
    assert status == 1 and "--adapter is for mlx-lm, peft and fused; a checkpoint has all of them" in err


def test_the_built_in_checkpoint_is_converted_in_full_precision(
    base: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in(base, tmp_path / "built-in", monkeypatch)
    assert command("small", tmp_path / "peft", "--format", "peft")[0] == 0
    written: Any = mx.load(str(tmp_path / "peft" / "adapter_model.safetensors"))
    assert {leaf.dtype for leaf in written.values()} == {mx.float32}
