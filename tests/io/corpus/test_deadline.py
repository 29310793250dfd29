"""Time limits: what takes too long ends, whatever it catches, and what does not is left alone."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress

import pytest

from clara.io.corpus.deadline import OutOfTime, within


def spin() -> None:
    """Run for ever, past any exception."""
    while True:
        with suppress(Exception):
            while True:
                pass


def test_what_takes_too_long_ends() -> None:
    begun = time.perf_counter()
    with pytest.raises(OutOfTime), within(0.1):
        spin()
    assert 0.1 <= time.perf_counter() - begun < 1


def test_the_clock_rings_again_where_it_was_not_heard() -> None:
    heard = 0
    with pytest.raises(OutOfTime), within(0.05):
        try:
            spin()
        except OutOfTime:
            heard += 1
        spin()
    assert heard == 1


def test_what_ends_in_time_is_left_alone_and_so_is_what_comes_after() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with within(0.1):
        pass
    time.sleep(0.2)
    assert signal.getsignal(signal.SIGALRM) is before


def test_another_thread_runs_without_a_limit() -> None:
    done = []

    def work() -> None:
        with within(0.01):
            time.sleep(0.1)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
