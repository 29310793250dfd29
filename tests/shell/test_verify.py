"""The report on a base: what it says of a tiny one, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import tiny_folder
from mlx.utils import tree_flatten

from clara.core.config import MemoryConfig, StepConfig
from clara.core.init import init_params
from clara.io.base import load_base
from clara.shell.options import Options, for_stage, read_recipe, to_options
from clara.shell.setup import to_base
from clara.shell.verify import main, memory_line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny base."""
    return tiny_folder(tmp_path_factory.mktemp("base"))


def report(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, str]:
    """Return the lines of a report by their names."""
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return {name: text for name, text in (line.split(maxsplit=1) for line in captured.out.splitlines())}


def test_the_report_says_what_the_base_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = report(capsys, str(folder))
    loaded = load_base(str(folder))
    count = sum(leaf.size for _, leaf in tree_flatten(loaded.module.parameters()))
    assert said["base"] == f"{folder}, fingerprint {loaded.fingerprint}"
    assert said["model"] == "llama, 2 layers, hidden 32, vocabulary 260"
    assert said["size"].startswith(f"{count / 1e6:,.1f} million parameters")
    assert said["stored"] == "float32" and said["chat"] == "has a chat template"


def test_the_adapters_are_as_large_as_those_that_are_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = report(capsys, str(folder), "--recipe", "paper")
    options = to_options(for_stage(read_recipe("paper"), "pretrain", "paper"))
    base = to_base(load_base(str(folder)), options)
    adapter = init_params(base, StepConfig(lora=options.lora), 0)["adapters"]["generator"]
    count = sum(leaf.size for _, leaf in tree_flatten(adapter))
    assert said["adapters"] == f"on 14 linear layers, rank 16: {count / 1e6:.2f} million parameters each"


def test_a_larger_batch_takes_more_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        float(report(capsys, str(folder), "--batch-size", str(rows))["training"].split()[1]) for rows in (1000, 100_000)
    ]
    assert 0 < found[0] < found[1]


@pytest.mark.parametrize(("context", "verdict"), [(275, "fits"), (274, "does NOT fit into 274 tokens"), (None, "")])
def test_a_document_with_its_memory_fits_into_the_context_or_not(context: int | None, verdict: str) -> None:
    line = memory_line(StepConfig(memory=MemoryConfig(doc_max_tokens=256, compression_rate=16)), context)
    assert line.startswith("16 vectors a document; the compressor reads up to 275 tokens") and line.endswith(verdict)


def test_the_longest_document_is_what_the_compressor_is_said_to_read(folder: Path) -> None:
    options = Options()
    layout = to_base(load_base(str(folder)), options).layout
    frame = len(layout.prefix) + len(layout.suffix)
    assert f"up to {256 + 16 + frame} tokens" in memory_line(StepConfig(memory=options.memory), None)


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["/nowhere/base"], "/nowhere/base: no such folder"), (["x", "--batch-size", "0"], "--batch-size 0")],
)
def test_what_cannot_be_reported_on_is_said_in_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {said}") and captured.err.count("\n") == 1
