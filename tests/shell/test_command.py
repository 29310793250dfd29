"""The end of every command: status and message, and no traceback whatever becomes of its output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clara.io.errors import ClaraError
from clara.shell import stop_at_once
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
        (
            RuntimeError("[malloc] Unable to\nallocate 9 bytes."),
            1,
            "error: out of memory ([malloc] Unable to allocate 9 bytes.); take less\n",
        ),
        (MemoryError(), 1, "error: out of memory (MemoryError); take less\n"),
    ],
)
def test_a_message_stands_for_an_exception(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: fails(error), "what was saved is intact", "take less") == status
    assert capsys.readouterr() == ("", message)


def test_the_status_of_the_work_is_its_own_and_other_errors_stay() -> None:
    assert [guarded(lambda: status) for status in (0, 2)] == [0, 2]  # noqa: B023
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="another"):
        guarded(lambda: fails(RuntimeError("another")))


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


PRESSED = "import signal\nsignal.raise_signal(signal.SIGINT)\n"


def run_module(module: str, first: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Return how a command ended that imports from the folder `first` before all others."""
    where = os.pathsep.join([str(first), *(str(Path(path).parent) for path in sys.modules["clara"].__path__[:1])])
    return subprocess.run(
        ["bash", "-c", f'{before}exec "$0" -m "$1" --help', sys.executable, f"clara.shell.{module}"],
        env={**os.environ, "PYTHONPATH": where},
        cwd=first,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("module", ["ask", "bench", "train"])
def test_ctrl_c_while_a_command_still_imports_ends_it_without_a_traceback(module: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(PRESSED)
    found = run_module(module, tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "\nstopped\n")


def test_ctrl_c_that_a_shell_has_switched_off_stays_off(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(PRESSED + "raise SystemExit(7)\n")
    assert run_module("ask", tmp_path, "trap '' INT; ").returncode == 7


def test_ctrl_c_is_an_interruption_again_once_the_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, stop_at_once)
    try:
        assert guarded(lambda: signal.raise_signal(signal.SIGINT) or 0) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    assert command("| head -1") == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said() -> None:
    status, errors = command("> /dev/full")
    assert status == 1 and errors == "error: [Errno 28] No space left on device\n"


def test_a_narrow_encoding_escapes_what_it_cannot_show() -> None:
    assert command("> /dev/null", PYTHONIOENCODING="ascii") == (0, "")
