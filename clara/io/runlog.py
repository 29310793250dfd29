"""A run's metrics as JSON Lines, one event a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clara.io.files import write_atomic
from clara.io.jsonlog import append_lines, encode_lines, read_lines

METRICS = "metrics.jsonl"
"""Name of the file in a run's folder."""


def append_event(path: Path, event: Mapping[str, Any]) -> None:
    """Add one event to a metrics file; the line is in the file when this returns."""
    append_lines(path, [event], durable=False)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a metrics file; lines that a crash cut off are left out.

    Raises ClaraError where it cannot be read.
    """
    events = []
    for line in read_lines(path):
        try:
            events.append(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.DecodeError:
            continue
    return events


def drop_events_from(path: Path, step: int) -> None:
    """Remove events of steps after `step`: a run resumed from there will write them again."""
    kept = [event for event in read_events(path) if event.get("step", 0) <= step]
    write_atomic(path, encode_lines(kept))
