"""A new process: how far it comes, and what is said where it fails."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from workbenches import called, tiny_bench

from clara.shell.benching import startup
from clara.shell.benching.options import BenchOptions
from clara.shell.benching.startup import begin, startup_work


def test_a_process_comes_as_far_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[Any]()
    monkeypatch.setattr(startup, "timed", lambda work: done.append(work.counts))
    monkeypatch.setattr(startup, "prepare_device", lambda compile: done.append(compile))
    options = msgspec.json.encode(BenchOptions(size="tiny", rows=1, compile="off")).decode()
    begin("import", options)
    assert done == []
    begin("load", options)
    assert done == ["off"]
    begin("first step", options)
    assert done[1:] == ["off", {"examples": 1, "tokens": 59 + 64}]


def test_the_work_is_a_process_of_its_own_with_the_same_options() -> None:
    with tiny_bench(rows=1) as bench:
        work = startup_work(bench, "load")
        assert work.once and called(work) == []


def test_a_process_that_fails_is_an_error_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "CODE", "import sys; print('one', file=sys.stderr); sys.exit('no base here')")
    with tiny_bench() as bench, pytest.raises(RuntimeError, match=r"^no base here$"):
        called(startup_work(bench, "import"))
