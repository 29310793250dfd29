"""The cases of `python -m clara.shell.bench` under pytest-benchmark; choose some with -k, as in `-k step/pretrain`."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from clara.io.errors import short_of_memory
from clara.shell.benching.cases import Case
from clara.shell.benching.timing import summarise, timed
from clara.shell.benching.workbench import Workbench


def test_case(benchmark: Any, bench: Workbench, case: Case, matrix: float) -> None:
    try:
        work = case.prepare(bench)
        first = 0.0 if work.once else timed(work)
        mx.reset_peak_memory()
        benchmark.pedantic(
            lambda given: mx.eval(work.call(given)),
            setup=lambda: ((work.before(),), {}),
            rounds=1 if work.once or first > bench.options.seconds else bench.options.rounds,
        )
    except (RuntimeError, MemoryError) as error:
        if not short_of_memory(error):
            raise
        pytest.skip(f"out of memory: {error}")
    taken = benchmark.stats.stats.data
    result = summarise(work, case.group, case.name, taken, first, mx.get_peak_memory(), matrix)
    shown = ("rates", "peak_bytes", "flops_per_second", "matrix_share", "bytes_per_second", "facts", "first_seconds")
    benchmark.extra_info |= {name: getattr(result, name) for name in shown}
    benchmark.extra_info["device"] = str(mx.device_info().get("device_name", mx.default_device()))
