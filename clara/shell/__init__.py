"""Loops and entrypoints: each reads its arguments, calls io, loops over core, prints and saves."""

import os
import signal
import sys


def stop_at_once(number: int, frame: object) -> None:
    """End the process after Ctrl-C with a line and no traceback."""
    os.write(2, b"\nstopped\n")
    os._exit(130)


if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A module from here is being started as a command: until `guarded` takes over, it only imports what it needs.
    signal.signal(signal.SIGINT, stop_at_once)
