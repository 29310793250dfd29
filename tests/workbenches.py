"""A workbench of size tiny, whose numbers the tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from clara.shell.benching.options import BenchOptions
from clara.shell.benching.timing import Work
from clara.shell.benching.workbench import Workbench, workbench


@contextmanager
def tiny_bench(compiled: bool = False, **options: Any) -> Iterator[Workbench]:
    """Open a workbench with random weights that depend on nothing else."""
    mx.random.seed(0)
    with workbench(BenchOptions(size="tiny", **options), compiled) as bench:
        yield bench


def called(work: Work) -> Any:
    """Return what one call of a work returns, evaluated."""
    done = work.call(work.before())
    mx.eval(done)
    return done
