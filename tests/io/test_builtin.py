"""The built-in checkpoint: what its name means, and that the one in the package is whole, small and of no machine."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import msgspec
import pytest
from mlx.utils import tree_flatten

from clara.io import builtin
from clara.io.builtin import BUILTIN, builtin_folder, is_builtin, run_name, run_path
from clara.io.checkpoint import CONFIG, MANIFEST, PARAMS, load_checkpoint
from clara.io.download import BUILTIN as BASES
from clara.io.release import CARD
from clara.shell.options import to_options

MOST = 32_000_000
"""Bytes that the checkpoint in the package may have."""


def test_the_name_means_the_one_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_path(BUILTIN) == builtin_folder()


def test_a_folder_of_that_name_comes_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / BUILTIN).mkdir()
    assert run_path(BUILTIN) == Path(BUILTIN)


@pytest.mark.parametrize("source", ["", f"./{BUILTIN}", f"runs/{BUILTIN}", "run"])
def test_any_other_name_is_a_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_path(source) == Path(source)


def test_a_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_path("~/run") == tmp_path / "run"


def test_it_is_written_down_by_its_name_and_others_by_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "builtin_folder", lambda: tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert [is_builtin(tmp_path / name) for name in ("a", "link", "b")] == [True, True, False]
    assert [run_name(tmp_path / name) for name in ("a", "b")] == [BUILTIN, str(tmp_path / "b")]


def test_the_one_in_the_package_is_whole_and_of_the_built_in_base() -> None:
    checkpoint = load_checkpoint(builtin_folder())
    options = to_options(checkpoint.config)
    (pin,) = (pin for name, pin in BASES.items() if name == options.model)
    assert checkpoint.manifest.base == pin.sha256[:16], "that of a GGUF file begins with its hash"
    assert options.data.reads == "memory" and checkpoint.optimizer_state == {}
    adapters = checkpoint.params["adapters"]
    assert sorted(adapters) == ["compressor", "generator", "reasoner"]
    assert {leaf.dtype for _, leaf in tree_flatten(adapters)} == {mx.bfloat16}
    assert all(mx.isfinite(leaf).all() for _, leaf in tree_flatten(checkpoint.params))


def test_the_one_in_the_package_is_small_and_has_a_card() -> None:
    found = {path.name: path.stat().st_size for path in builtin_folder().iterdir()}
    assert sorted(found) == sorted([PARAMS, CONFIG, MANIFEST, CARD])
    assert sum(found.values()) <= MOST


@pytest.mark.parametrize("name", [CONFIG, MANIFEST, CARD])
def test_the_one_in_the_package_names_no_path_of_a_machine(name: str) -> None:
    text = (builtin_folder() / name).read_text("utf-8")
    assert re.findall(r"(?<![\w.~}])/(?:home|root|tmp|work|Users|mnt|var/folders)\b[^\s]*", text) == []
    assert name == CARD or not re.findall(r'"(?:[/~]|[A-Za-z]:\\)[^"]*"', text)


def test_nothing_in_its_card_is_still_to_be_filled_in() -> None:
    assert re.findall(r"@@\w*@@", (builtin_folder() / CARD).read_text("utf-8")) == []


def test_its_options_are_those_that_the_card_tells() -> None:
    config = msgspec.json.decode((builtin_folder() / CONFIG).read_bytes())
    memory, card = config["memory"], (builtin_folder() / CARD).read_text("utf-8")
    count = memory["doc_max_tokens"] // memory["compression_rate"]
    assert f"{count} vectors for up to {memory['doc_max_tokens']} tokens" in card
    assert f"LoRA of rank {config['lora']['rank']} on" in card
