"""The end of every command: status and message, and no traceback whatever becomes of its output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clara.io.errors import ClaraError
from clara.shell.command import guarded

PROGRAM = """
import sys
from clara.shell.command import guarded
sys.exit(guarded(lambda: [print("p. 3\\u20134", "x" * 99) for _ in range(5000)] and 0))
"""


def fails(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ClaraError("f.jsonl:2: bad"), 1, "error: f.jsonl:2: bad\n"),
        (KeyboardInterrupt(), 130, "\nwhat was saved is intact\n"),
    ],
)
def test_a_message_stands_for_an_exception(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: fails(error), "what was saved is intact") == status
    assert capsys.readouterr() == ("", message)


def test_the_status_of_the_work_is_its_own_and_other_errors_stay() -> None:
    assert [guarded(lambda: status) for status in (0, 2)] == [0, 2]  # noqa: B023
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def command(out: str, **environment: str) -> tuple[int, str]:
    """Return (status, errors) of the program with its output in a shell's `out`, such as "| head -1"."""
    script = f'"$0" -c "$1" {out}; exit "${{PIPESTATUS[0]}}"'
    where = os.pathsep.join(map(str, Path(sys.modules["clara"].__path__[0]).parents[:1]))
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, PROGRAM],
        env={**os.environ, "PYTHONPATH": where, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    assert command("| head -1") == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said() -> None:
    status, errors = command("> /dev/full")
    assert status == 1 and errors == "error: [Errno 28] No space left on device\n"


def test_a_narrow_encoding_escapes_what_it_cannot_show() -> None:
    assert command("> /dev/null", PYTHONIOENCODING="ascii") == (0, "")
