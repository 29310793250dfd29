"""Whether memory grows over many steps of varied lengths: what MLX and the process hold, early and at the end."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from clara.core.types import Batch, Documents
from clara.shell.benching.feeding import documents_of
from clara.shell.benching.shapes import Size, stage_batch, start_params, step_config
from clara.shell.benching.steps import advancing, make_job_compress, make_job_update
from clara.shell.benching.timing import Work
from clara.shell.benching.workbench import Workbench

LENGTHS = 6
"""Different lengths, at most: each compiled step is compiled once for each."""


def held() -> dict[str, float]:
    """Return what is held now and was held at most, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "active": mx.get_active_memory(),
        "peak": mx.get_peak_memory(),
        "resident_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def watched(step: Callable[[int], Any], steps: int) -> dict[str, float]:
    """Do steps, from 0 on; return what was held after a tenth of them, after all, and the second over the first."""
    early = dict[str, float]()
    mx.reset_peak_memory()
    for i in range(steps):
        mx.eval(step(i))
        if i + 1 == max(steps // 10, 1):
            early = held()
    late = held()
    return {
        **{f"{name}_bytes_early": value for name, value in early.items()},
        **{f"{name}_bytes_late": value for name, value in late.items()},
        **{f"{name}_growth": late[name] / early[name] for name in late if early[name]},
    }


def order_of(lengths: int, steps: int) -> list[int]:
    """Return which length each step has: each once, then drawn."""
    rng = np.random.default_rng(0)
    return [i if i < lengths else int(rng.integers(lengths)) for i in range(steps)]


def lengths_of(steps: int) -> int:
    """Return how many lengths a tenth of the steps can have."""
    return max(min(LENGTHS, steps // 10), 1)


def batches_of(bench: Workbench) -> list[Batch]:
    """Return a batch of each length, the longest first."""
    parts = lengths_of(bench.growth_steps)
    sizes = [shorter(bench.size, (parts - i) / parts) for i in range(parts)]
    return [stage_batch(bench.base(), size, "pretrain", bench.rows, 1) for size in sizes]


def shorter(size: Size, share: float) -> Size:
    """Return a size whose documents, rows and answers have a share of their length."""
    slots = size.memory_tokens + 1
    answer = max(int(size.answer * share), 1)
    return size._replace(
        document=max(int(size.document * share), 1),
        answer=answer,
        decoder=max(int(size.decoder * share), answer + slots),
    )


def steps_growth_work(bench: Workbench) -> Work:
    """Return many `pretrain` steps of varied lengths."""
    base, config = bench.base(), step_config(bench.size, bench.options, "pretrain")
    batches = batches_of(bench)
    order = order_of(len(batches), bench.growth_steps)
    advance = advancing(*make_job_update(base, config, start_params(base, config), bench.compiled))
    found = dict[str, float]()

    def call(_: Any) -> Any:
        found.update(watched(lambda i: advance([batches[order[i]]]), len(order)))
        return []

    return Work(call, {"steps": len(order)}, facts=lambda _: found, once=True)


def compress_growth_work(bench: Workbench) -> Work:
    """Return many batches of passages of varied lengths, compressed one after the other."""
    base, config = bench.base(), step_config(bench.size, bench.options, "pretrain")
    batches: list[Documents] = [documents_of(batch) for batch in batches_of(bench)]
    order = order_of(len(batches), bench.growth_steps)
    compress = make_job_compress(base, config, start_params(base, config))
    found = dict[str, float]()

    def call(_: Any) -> Any:
        found.update(watched(lambda i: compress(batches[order[i]]), len(order)))
        return []

    return Work(call, {"passages": len(order) * bench.rows}, facts=lambda _: found, once=True)
