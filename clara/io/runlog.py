"""A run's metrics as JSON Lines, one event a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clara.io.errors import ClaraError
from clara.io.files import write_atomic

METRICS = "metrics.jsonl"
"""Name of the file in a run's folder."""


def append_event(path: Path, event: Mapping[str, Any]) -> None:
    """Add one event to a metrics file; the line is in the file when this returns."""
    try:
        with open(path, "a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + msgspec.json.encode(event) + b"\n")
    except OSError as error:
        raise ClaraError(f"{path}: cannot be written ({error.strerror})") from error


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a metrics file; a last line that a crash cut off is left out."""
    events = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            events.append(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.DecodeError:
            continue
    return events


def drop_events_from(path: Path, step: int) -> None:
    """Remove events of steps after `step`: a run resumed from there will write them again."""
    kept = [event for event in read_events(path) if event.get("step", 0) <= step]
    write_atomic(path, b"".join(msgspec.json.encode(event) + b"\n" for event in kept))
