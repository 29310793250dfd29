"""The log of a run: events come back as written whatever a crash did to the last line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.io.errors import ClaraError
from clara.io.runlog import append_event, drop_events_from, read_events

values = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
events = st.lists(st.dictionaries(st.text(max_size=8), values, max_size=4), max_size=6)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that examples of hypothesis write over."""
    return tmp_path_factory.mktemp("runlog") / "metrics.jsonl"


def write(path: Path, steps: range) -> Path:
    """Return a metrics file with a held-out event before the first step and after the last one."""
    append_event(path, {"event": "heldout", "step": steps.start - 1})
    for step in steps:
        append_event(path, {"event": "step", "step": step, "loss": 1 / step})
    append_event(path, {"event": "heldout", "step": steps.stop - 1})
    return path


def steps(path: Path) -> list[tuple[str, int]]:
    """Return kind and step of each event of a file."""
    return [(event["event"], event["step"]) for event in read_events(path)]


@settings(max_examples=60)
@given(events=events)
def test_events_come_back_in_order_as_they_were_added(scratch: Path, events: list[dict[str, Any]]) -> None:
    scratch.unlink(missing_ok=True)
    for event in events:
        append_event(scratch, event)
    assert read_events(scratch) == events
    assert scratch.read_bytes().count(b"\n") == len(events) if events else not scratch.exists()


def test_a_float_of_32_bits_comes_back_exactly(tmp_path: Path) -> None:
    value = 0.12345678359270096  # a float32, as a float64 has it
    append_event(tmp_path / "m", {"loss": value})
    assert read_events(tmp_path / "m") == [{"loss": value}]


@pytest.mark.parametrize("kept", [1, 9, -2, -1])
def test_a_last_line_that_was_cut_off_is_left_out(kept: int, tmp_path: Path) -> None:
    path = write(tmp_path / "m", range(1, 3))
    whole, last = read_events(path), b'{"event":"step","step":3,"name":"\xc3\xa9"}'
    with open(path, "ab") as file:
        file.write(last[:kept])
    assert read_events(path) == whole


def test_a_line_cut_inside_a_character_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b'{"step":1}\n{"name":"\xc3')
    assert read_events(tmp_path / "m") == [{"step": 1}]


def test_no_file_holds_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "absent") == []


def test_going_back_to_a_step_drops_what_came_after_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m", range(1, 5))
    drop_events_from(path, 3)
    assert steps(path) == [("heldout", 0), ("step", 1), ("step", 2), ("step", 3)]
    drop_events_from(path, 4)
    assert len(read_events(path)) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_going_back_mends_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "m", range(1, 3))
    with open(path, "ab") as file:
        file.write(b'{"event":"st')
    drop_events_from(path, 1)
    append_event(path, {"event": "step", "step": 2})
    assert steps(path) == [("heldout", 0), ("step", 1), ("step", 2)]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=r"absent/m: cannot be written \(No such file or directory\)"):
        append_event(tmp_path / "absent" / "m", {})


def test_an_event_after_one_that_a_crash_cut_off_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_event(path, {"step": 1})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo')
    append_event(path, {"step": 3})
    append_event(path, {"step": 4})
    assert [event["step"] for event in read_events(path)] == [1, 3, 4]
