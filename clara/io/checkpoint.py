"""Checkpoints: a folder with parameters, optimizer state, configuration and a manifest, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import msgspec
from msgspec import Struct

from clara.core.types import Base, Params, TrainState
from clara.io.errors import ClaraError
from clara.io.files import sync

PARAMS, OPTIMIZER, CONFIG, MANIFEST = (
    "adapters.safetensors",
    "optimizer.safetensors",
    "config.json",
    "manifest.json",
)


class Manifest(Struct, frozen=True, kw_only=True):
    """What a checkpoint is, and how to tell that it is whole."""

    step: int
    """Optimizer steps done."""
    base: str
    """Fingerprint of the base."""
    data: str
    """Fingerprint of the training data."""
    versions: dict[str, str]
    """clara, mlx and mlx-lm when it was written."""
    files: dict[str, str] = {}
    """SHA-256 of each file."""


class Checkpoint(NamedTuple):
    """A checkpoint as read."""

    path: Path
    manifest: Manifest
    config: dict[str, Any]
    """The run's options, as plain data."""
    params: Params
    frozen: dict[str, mx.array]
    """`special_embeddings` and `embedding_rms` of the base that it was trained beside."""
    optimizer_state: dict[str, Any]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, mx.array]:
    """Return the leaves of nested dicts under names joined by "/"."""
    leaves: dict[str, mx.array] = {}
    for name, child in tree.items():
        path = f"{prefix}{name}"
        leaves |= flatten(child, path + "/") if isinstance(child, dict) else {path: child}
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dicts that `flatten` was given: {"a/b": leaf} gives {"a": {"b": leaf}}."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def read_tree(path: Path) -> dict[str, Any]:
    """Return the nested dicts of a safetensors file that `flatten` named."""
    leaves: Any = mx.load(str(path))
    return unflatten(dict(sorted(leaves.items())))


def save_checkpoint(
    folder: Path, state: TrainState, base: Base, config: dict[str, Any], manifest: Manifest, keep: int = 2
) -> Path:
    """Write `folder/step-000123` and return its path; older checkpoints beyond the newest `keep` are removed.

    Everything is written into a folder beside it, flushed to disk and renamed, so that a crash leaves either the
    whole checkpoint or none. Raises ClaraError, with nothing lost, where the disk is full or not writable.
    """
    target = folder / f"step-{manifest.step:06d}"
    beside = folder / f".step-{manifest.step:06d}.{os.getpid()}.tmp"
    try:
        beside.mkdir(parents=True, exist_ok=True)
        frozen = {"special_embeddings": base.special_embeddings, "embedding_rms": base.embedding_rms}
        mx.save_safetensors(str(beside / PARAMS), flatten({"params": state.params, "frozen": frozen}))
        mx.save_safetensors(str(beside / OPTIMIZER), flatten(state.optimizer_state))
        (beside / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config)))
        sums = {name: digest(beside / name) for name in (PARAMS, OPTIMIZER, CONFIG)}
        whole = msgspec.structs.replace(manifest, files=sums)
        (beside / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
        for name in (*sums, MANIFEST):
            sync(beside / name)
        sync(beside)
        replace_folder(beside, target)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise ClaraError(f"{target}: the checkpoint could not be written ({error}); older ones are intact") from error
    # Later steps are those of an undone future: the run was resumed from before them.
    *older, _ = [path for path in checkpoints(folder) if step_of(path) <= manifest.step]
    later = [path for path in checkpoints(folder) if step_of(path) > manifest.step]
    for path in (*older[: max(len(older) + 1 - keep, 0)], *later):
        shutil.rmtree(path, ignore_errors=True)
    return target


def replace_folder(beside: Path, target: Path) -> None:
    """Rename a finished folder into place; one that is there already (the same step, written again) gives way."""
    if target.exists():
        gone = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.replace(target, gone)
        try:
            os.replace(beside, target)
        except OSError:
            os.replace(gone, target)
            raise
        shutil.rmtree(gone, ignore_errors=True)
    else:
        os.replace(beside, target)
    sync(target.parent)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir() and step_of(path) >= 0), key=step_of)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's name states; −1 where it is no checkpoint's name."""
    number = path.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def load_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint. Raises ClaraError, naming the file, where one is missing or was altered."""
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise ClaraError(
            f"{path}: no {MANIFEST}; wanted a checkpoint folder such as RUN/checkpoints/step-000012"
        ) from error
    except msgspec.DecodeError as error:
        raise ClaraError(f"{path / MANIFEST}: damaged ({error})") from error
    for name, expected in manifest.files.items():
        if not (path / name).is_file():
            raise ClaraError(f"{path / name}: missing from the checkpoint")
        if digest(path / name) != expected:
            raise ClaraError(f"{path / name}: its content is not what was saved (truncated or altered)")
    config = msgspec.json.decode((path / CONFIG).read_bytes())
    weights, optimizer_state = (read_tree(path / name) for name in (PARAMS, OPTIMIZER))
    return Checkpoint(path, manifest, config, weights["params"], weights["frozen"], optimizer_state)


def newest_checkpoint(folder: Path) -> tuple[Checkpoint, list[str]]:
    """Return the newest whole checkpoint of a run and what was wrong with newer ones.

    folder: a run, its `checkpoints` folder, or one checkpoint. Raises ClaraError where there is none.
    """
    if (folder / MANIFEST).is_file():
        return load_checkpoint(folder), []
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    problems: list[str] = []
    for path in reversed(checkpoints(inside)):
        try:
            return load_checkpoint(path), problems
        except ClaraError as error:
            problems.append(str(error))
    raise ClaraError("\n".join([f"{folder}: no whole checkpoint found", *problems]))
