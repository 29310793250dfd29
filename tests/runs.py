"""Runs of the tiny base: a folder with a checkpoint that was not trained, but whose adapters do something; commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from folders import tiny_options, tiny_session

from clara.io import builtin
from clara.io.checkpoint import Manifest, newest_checkpoint, save_checkpoint, versions
from clara.io.release import released, write_release
from clara.shell.options import to_plain
from clara.shell.setup import extras_of

Run = Callable[..., tuple[int, str, str]]
"""A command as a function of its arguments: (exit status, output, errors)."""


def command_of(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *always: object) -> Run:
    """Return the command whose `main` this is; always: arguments that come before those of a call."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in (*always, *argv)])
        return (status, *capsys.readouterr())

    return run


def tiny_run(base: Path, path: Path, compressor: float = 1.0, generator: float = 1.0, **sections: Any) -> Path:
    """Return a run folder with the checkpoint of step 3; the two numbers scale adapters, sections are its options."""
    options, session = tiny_options(base, **sections), tiny_session(base, **sections)
    scales = {"compressor": compressor, "generator": generator}
    adapters: Any = {
        name: {
            layer: {part: leaf * scales.get(name, 1.0) for part, leaf in pair.items()} for layer, pair in each.items()
        }
        for name, each in session.params["adapters"].items()
    }
    params = {**session.params, "adapters": adapters}
    manifest = Manifest(
        step=3,
        stage=options.stage,
        base=session.fingerprint,
        data="",
        seed=0,
        versions=versions(),
        started_from="before",
    )
    optimizer = {"step": mx.array(3)}
    save_checkpoint(path / "checkpoints", params, optimizer, extras_of(session.base), to_plain(options), manifest)
    return path


def text_run(base: Path, path: Path, generator: float = 1.0, **sections: Any) -> Path:
    """Return such a run of a generator that was tuned on the text of documents."""
    return tiny_run(
        base, path, generator=generator, **{"data": {"reads": "text"}, "loss": {"alignment_weight": 0.0}, **sections}
    )


def built_in(base: Path, path: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> Path:
    """Return a released checkpoint of the tiny base, read-only, that stands for the one in the package."""
    run = tiny_run(base, path.with_name(f"{path.name}-run"), **sections)
    write_release(path, released(newest_checkpoint(run)[0], str(base)))
    for each in (*path.iterdir(), path):
        each.chmod(0o555)
    monkeypatch.setattr(builtin, "builtin_folder", lambda: path)
    return path
