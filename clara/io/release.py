"""A checkpoint as it is given to others: rounded to bfloat16, without optimizer and the paths of its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx.utils import tree_map

from clara.io.checkpoint import CONFIG, MANIFEST, PARAMS, Checkpoint, write_checkpoint
from clara.io.files import require_free, staged
from clara.io.retention import step_of

CARD = "README.md"
"""What people wrote about a released checkpoint; it stays where another takes its place."""

LARGE = ("adapters", "anchor_map_a", "anchor_map_b")
"""Parameters that are given in bfloat16."""

PLACES = ("run", "start_from", "memories")
SOURCES = ("data", "heldout", "autoencode_data")
"""Options that name folders, and those of data that name files, with commas between."""


def released(checkpoint: Checkpoint, model: str) -> Checkpoint:
    """Return a checkpoint as others take it; model: what they call its base.

    Of paths the last part stays. Parameters beside the adapters and the maps of anchors are few, and keep their dtype.
    """
    large = {name: leaf for name, leaf in checkpoint.params.items() if name in LARGE}
    params = {**checkpoint.params, **tree_map(lambda leaf: leaf.astype(mx.bfloat16), large)}
    manifest = msgspec.structs.replace(
        checkpoint.manifest,
        started_from=last_part(checkpoint.manifest.started_from),
        origin=without_paths(checkpoint.manifest.origin),
    )
    config = portable_config(checkpoint.config) | {"model": model}
    return checkpoint._replace(manifest=manifest, config=config, params=params, optimizer_state={})


def portable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's options, as nested dicts, with the names alone of its folders and files."""
    places = {name: last_part(config[name]) for name in PLACES if name in config}
    data = dict(config.get("data", {}))
    data |= {name: ",".join(map(last_part, data[name].split(","))) for name in SOURCES if name in data}
    return {**config, **places, **({"data": data} if data else {})}


def last_part(path: str) -> str:
    """Return the name at the end of a path; of an empty one nothing."""
    return Path(path.strip()).name


def without_paths(value: Any) -> Any:
    """Return nested dicts and lists whose texts that are paths from a root are their last parts."""
    if isinstance(value, dict):
        return {name: without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    return last_part(value) if isinstance(value, str) and value.startswith(("/", "~")) else value


def write_release(target: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's files into a folder of their own, whole or not at all; an earlier one there gives way.

    Raises ClaraError as `require_replaceable` does, and where it cannot be written.
    """
    require_replaceable(target)
    card = (target / CARD).read_bytes() if (target / CARD).is_file() else None
    with staged(target, replace=True) as beside:
        if card is not None:
            (beside / CARD).write_bytes(card)
        write_checkpoint(
            beside, checkpoint.params, checkpoint.optimizer_state, checkpoint.extras, checkpoint.config,
            checkpoint.manifest,
        )  # fmt: skip


def require_replaceable(target: Path) -> None:
    """Raise ClaraError where a path is anything but absent, an empty folder, or that of a released checkpoint.

    A card may stand there alone.
    """
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    whole = {PARAMS, CONFIG, MANIFEST}
    if step_of(target.resolve()) < 0 and (names == {CARD} or whole <= names <= whole | {CARD}):
        return
    require_free(target)
