"""A time limit around code that is not ours and may never end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(BaseException):
    """The time of a block is over. No Exception, since a parser may go on after those."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block once it has run so long, and again every second.

    Python can be stopped so in the main thread only: in another the block runs without a limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    running = True

    def ring(*_: Any) -> None:
        if running:
            raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
