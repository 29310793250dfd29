"""Checkpoints: a folder with parameters, optimizer state, configuration and a manifest, written whole or not at all."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import msgspec
from mlx.utils import tree_map
from msgspec import Struct

from clara.core.types import Params
from clara.io.errors import ClaraError
from clara.io.files import digest, reason, remove_stale, staged
from clara.io.retention import checkpoint_name, checkpoints, prune, step_of

PARAMS, OPTIMIZER, CONFIG, MANIFEST = (
    "adapters.safetensors",
    "optimizer.safetensors",
    "config.json",
    "manifest.json",
)
BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


class Manifest(Struct, frozen=True, kw_only=True):
    """What a checkpoint is, and how to tell that it is whole."""

    step: int
    """Optimizer steps done."""
    stage: str
    """The training stage."""
    base: str
    """Fingerprint of the base."""
    data: str
    """Fingerprint of the training data."""
    seed: int
    """The run's seed."""
    teacher: str = ""
    """Fingerprint of the parameters of its teacher; empty where that is the base itself, or there is none."""
    versions: dict[str, str]
    """What `versions` returned when it was written."""
    origin: dict[str, Any] = {}
    """Of parameters that came from a checkpoint of the original: its configuration, for the way back."""
    started_from: str = ""
    """The checkpoint that the run's parameters came from; empty for new ones."""
    files: dict[str, str] = {}
    """SHA-256 of each file."""
    seal: str = ""
    """SHA-256 of everything else in this manifest."""


class Checkpoint(NamedTuple):
    """A checkpoint as read."""

    path: Path
    manifest: Manifest
    config: dict[str, Any]
    """The run's options, as plain data."""
    params: Params
    extras: dict[str, mx.array]
    """What is not trained but belongs to the parameters, such as the embeddings of special tokens."""
    optimizer_state: dict[str, Any]
    """Empty where none was saved."""


def versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on; "not installed" of what runs from a bare folder."""
    found = {}
    for name in ("clara-mlx", "mlx", "mlx-lm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"python": platform.python_version()}


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


def write_arrays(path: Path, leaves: Mapping[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file and read it back; equal leaves give equal files, whatever their order.

    Raises OSError where the disk is full, or gives back anything but these very bits.
    """
    ordered = dict(sorted(leaves.items()))
    mx.eval(ordered)
    try:
        mx.save_safetensors(str(path), ordered, metadata)
        written: Any = mx.load(str(path))
        wrong = [name for name, leaf in ordered.items() if not same_bits(leaf, written.pop(name, None))]
    except RuntimeError as error:
        raise OSError(f"{path.name}: {error}") from error
    if wrong or written:
        raise OSError(f"{path.name}: {', '.join(wrong) or 'it'} is not on the disk as it was written")


def same_bits(one: mx.array, other: mx.array | None) -> bool:
    """Return whether two arrays have the same type, shape and bits; nan equals nan here, and 0 is not −0."""
    if other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    kind = BITS[one.dtype.size]
    return bool(mx.array_equal(one.view(kind), other.view(kind)))


def save_checkpoint(
    folder: Path,
    params: Params,
    optimizer_state: dict[str, Any],
    extras: dict[str, mx.array],
    config: dict[str, Any],
    manifest: Manifest,
    keep: int = 2,
) -> Path:
    """Write `folder/step-000123` and return its path; then only the newest `keep` and the best are kept.

    Everything is written into a folder beside it, read back, flushed to disk and renamed: a crash leaves the whole
    checkpoint or none, and of one that is written again the old or the new. Checkpoints of later steps, from which
    the run went back, are removed. Raises ClaraError, with nothing lost, where the disk is full or not writable.
    """
    target = folder / checkpoint_name(manifest.step)
    remove_stale(folder)
    try:
        with staged(target, replace=True) as beside:
            write_checkpoint(beside, params, optimizer_state, extras, config, manifest)
    except ClaraError as error:
        raise ClaraError(f"{error}; older checkpoints are intact") from error
    prune(folder, manifest.step, keep)
    return target


def write_checkpoint(
    folder: Path,
    params: Params,
    optimizer_state: dict[str, Any],
    extras: dict[str, mx.array],
    config: dict[str, Any],
    manifest: Manifest,
) -> None:
    """Write the files of a checkpoint into a folder, its manifest last. Raises OSError."""
    trees = {PARAMS: {"params": params, "extras": extras}, OPTIMIZER: optimizer_state}
    parts = {name: flatten(tree) for name, tree in trees.items() if tree}
    for name, leaves in parts.items():
        write_arrays(folder / name, leaves)
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config)))
    sums = {name: digest(folder / name) for name in (*parts, CONFIG)}
    content = msgspec.to_builtins(msgspec.structs.replace(manifest, files=sums))
    content["seal"] = seal(content)
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(content)))


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest as plain data, its seal left out."""
    content = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a checkpoint.

    Raises ClaraError, naming the file, where it is missing, damaged, altered, or another step's than the folder's.
    """
    file = path / MANIFEST
    try:
        content = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        manifest = msgspec.convert(content, Manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ClaraError(
            f"{path}: no {MANIFEST}; wanted a checkpoint folder such as RUN/checkpoints/step-000012"
        ) from error
    except OSError as error:
        raise ClaraError(f"{file}: cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise ClaraError(f"{file}: damaged, or of another version of clara ({error})") from error
    if manifest.seal != seal(content):
        raise ClaraError(f"{file}: its content is not what was saved (altered)")
    if step_of(path) not in (-1, manifest.step):
        raise ClaraError(f"{file}: is that of step {manifest.step}, but the folder is {path.name}")
    if missing := sorted({PARAMS, CONFIG} - manifest.files.keys()):
        raise ClaraError(f"{file}: lists no {missing[0]}")
    return manifest


def fingerprint(path: Path) -> str:
    """Return 16 hexadecimal digits that identify a checkpoint's parameters. Raises ClaraError as `read_manifest`."""
    return read_manifest(path).files[PARAMS][:16]


def load_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint. Raises ClaraError, naming the file, where one is missing, truncated or altered."""
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        require_whole(path / name, expected)
    try:
        config = msgspec.json.decode((path / CONFIG).read_bytes())
        weights = read_tree(path / PARAMS)
        optimizer_state = read_tree(path / OPTIMIZER) if OPTIMIZER in manifest.files else {}
    except (OSError, RuntimeError, ValueError) as error:
        raise ClaraError(f"{path}: cannot be read ({error})") from error
    return Checkpoint(path, manifest, config, weights.get("params", {}), weights.get("extras", {}), optimizer_state)


def float32_params(checkpoint: Checkpoint) -> Params:
    """Return a checkpoint's parameters in float32, which is what is trained; it may keep some in bfloat16."""
    params: Params = tree_map(lambda leaf: leaf.astype(mx.float32), checkpoint.params)
    return params


def require_whole(file: Path, expected: str) -> None:
    """Raise ClaraError where a file is missing, or its SHA-256 is not the expected one."""
    try:
        found = digest(file)
    except FileNotFoundError as error:
        raise ClaraError(f"{file}: missing from the checkpoint") from error
    except OSError as error:
        raise ClaraError(f"{file}: cannot be read ({reason(error)})") from error
    if found != expected:
        raise ClaraError(f"{file}: its content is not what was saved (truncated or altered)")


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
