"""Ctrl-C: told once, at once the second time, and as before afterwards."""

from __future__ import annotations

import signal

import pytest

from clara.shell.interrupt import interruptible


def test_the_first_ctrl_c_is_told_and_the_second_stops(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible("batch") as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        assert "stopping after this batch; press Ctrl-C again to stop at once" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_was_before_is_back_after_an_error_too() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), interruptible("step"):
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before
