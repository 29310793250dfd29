"""What every command ends with: its exit status, and a message instead of a traceback."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable

from clara.io.errors import ClaraError, short_of_memory
from clara.shell import stop_at_once

ADVICE = (
    "close what else holds memory of this device, take a smaller or quantised base, or give the command less at once"
)
"""What is said where memory is short and nothing better is known."""


def guarded(work: Callable[[], int], interrupted: str = "stopped", advice: str = ADVICE) -> int:
    """Return the exit status of a command's work: its own, 1 after a message to the user, 130 after Ctrl-C.

    interrupted: what is said after Ctrl-C; advice: where memory is short. What an output cannot show is escaped; an
    output that is closed or full ends the command without a traceback.
    """
    if signal.getsignal(signal.SIGINT) is stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = work()
        if sys.stdout:
            sys.stdout.flush()
        return status
    except ClaraError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        silence()
    except OSError as error:
        silence()
        print(f"error: {error}", file=sys.stderr)
    except (RuntimeError, MemoryError) as error:
        if not short_of_memory(error):
            raise
        print(f"error: out of memory ({one_line(str(error)) or type(error).__name__}); {advice}", file=sys.stderr)
    return 1


def one_line(text: str) -> str:
    """Return a text from outside as a terminal may show it: in one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def silence() -> None:
    """Send what is left for an output that failed to nowhere: Python would fail over it once more on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
