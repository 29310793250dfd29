"""Ctrl-C ends a long job after what it is at, so that what was done is kept."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def interruptible(what: str, out: TextIO | None = None) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; pressed twice, it stops the process at once.

    what: is finished first, such as "step". out: where that is said, where standard output has something else.
    """
    pressed = []

    def handle(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(f"\nstopping after this {what}; press Ctrl-C again to stop at once", file=out, flush=True)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
