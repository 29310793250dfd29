"""A run's metrics as JSON Lines, one event a line, and its loss curve as a picture that any browser shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clara.io.errors import ClaraError
from clara.io.files import write_atomic

WIDTH, HEIGHT, MARGIN = 720, 360, 48


def append_event(path: Path, event: Mapping[str, Any]) -> None:
    """Add one event to a metrics file; the line is in the file when this returns."""
    try:
        with open(path, "ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")
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


def write_curve(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Write curves of (step, value) as an SVG picture, readable on light and dark grounds."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return
    top = max(value for _, value in points) * 1.05 or 1.0
    last = max(max(step for step, _ in points), 1)

    def at(step: float, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#777">',
        f'<text x="{MARGIN}" y="20" font-size="14">{title}</text>',
        f'<path d="M{at(0, top)} L{at(0, 0)} L{at(last, 0)}" fill="none" stroke="#777"/>',
    ]
    for i in range(5):
        x, y = at(last * i / 4, 0).split(",")
        parts.append(f'<text x="{x}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{round(last * i / 4)}</text>')
        x, y = at(0, top * i / 4).split(",")
        parts.append(f'<text x="{MARGIN - 6}" y="{y}" text-anchor="end" dy="4">{top * i / 4:.2f}</text>')
    colours = ("#3b7dd8", "#d8703b", "#3bab5f", "#a05fd0")
    for i, (name, curve) in enumerate(curves.items()):
        colour, line = colours[i % len(colours)], " ".join(at(*point) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(f'<text x="{WIDTH - MARGIN}" y="{36 + 16 * i}" text-anchor="end" fill="{colour}">{name}</text>')
    write_atomic(path, "\n".join([*parts, "</svg>", ""]).encode())
