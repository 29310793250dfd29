"""What several ranks send each other: the sum of a gradient, and of so little that only the way there counts."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from clara.core.packing import pack, packing_of
from clara.core.stages import trained_leaves
from clara.shell.benching.shapes import start_params, step_config
from clara.shell.benching.timing import Work
from clara.shell.benching.workbench import Workbench
from clara.shell.ranks import share


def gradient_work(bench: Workbench) -> Work:
    """Return the sum of what `pretrain` sends in a step, its gradient, over all ranks."""
    base = bench.base()
    config = step_config(bench.size, bench.options, "pretrain")
    trained, _ = trained_leaves(config, start_params(base, config))
    return sum_work(bench, pack(packing_of(trained), trained))


def message_work(bench: Workbench) -> Work:
    """Return the sum of a number of each rank."""
    return sum_work(bench, {"number": mx.zeros((1,))})


def sum_work(bench: Workbench, arrays: Mapping[str, mx.array]) -> Work:
    """Return the sum of arrays over all ranks; what counts are the bytes that one rank has of them."""
    mx.eval(arrays)
    return Work(lambda _: share(bench.ranks, arrays), {"bytes": sum(each.nbytes for each in arrays.values())})
