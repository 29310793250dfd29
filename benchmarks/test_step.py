"""Step throughput: stage `pretrain`, compiled and not, and its parts; `end_to_end` with memories kept or computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from shapes import Setup, choosing

from clara.core.compress import compress
from clara.core.config import OptimizerConfig
from clara.core.optim import adamw
from clara.core.stages import trained_leaves
from clara.core.step import make_train_step, make_update
from clara.core.types import TrainState


def run(benchmark: Any, setup: Setup, work: Callable[[], Any]) -> None:
    """Time work to its last array; note the positions that one call covers and its peak memory."""
    mx.eval(work())
    mx.reset_peak_memory()
    benchmark.pedantic(lambda: mx.eval(work()), rounds=3, iterations=1)
    documents = setup.batch.documents
    positions = setup.batch.tokens.size + (0 if isinstance(documents, mx.array) else documents.tokens.size)
    benchmark.extra_info |= {
        "device": str(mx.device_info().get("device_name", mx.default_device())),
        "mlx": mx.__version__,
        "positions": positions,
        "positions_per_second": round(positions / benchmark.stats.stats.median),
        "peak_gb": round(mx.get_peak_memory() / 1e9, 3),
    }


@pytest.mark.benchmark(group="pretrain step with optimizer")
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_update(benchmark: Any, setup: Setup, compiled: bool) -> None:
    optimizer = adamw(OptimizerConfig(), total_steps=1000)
    update = make_update(make_train_step(setup.base, setup.config), optimizer)
    state = TrainState(setup.params, optimizer.init(setup.params), mx.array(0))
    mx.eval(state)
    step = mx.compile(update) if compiled else update
    run(benchmark, setup, lambda: step(state, setup.batch))


@pytest.mark.benchmark(group="gradients alone")
def test_train_step(benchmark: Any, setup: Setup) -> None:
    train_step = make_train_step(setup.base, setup.config)
    run(benchmark, setup, lambda: train_step(setup.params, setup.batch))


@pytest.mark.benchmark(group="compress")
def test_compress(benchmark: Any, setup: Setup) -> None:
    run(benchmark, setup, lambda: compress(setup.base, setup.config, setup.params, setup.batch.documents).memory)


@pytest.mark.benchmark(group="end_to_end step with optimizer, 20 candidates a question")
@pytest.mark.parametrize("cached", [True, False], ids=["from cached memories", "documents compressed anew"])
def test_end_to_end(benchmark: Any, setup: Setup, cached: bool) -> None:
    setup = choosing(setup, cached)
    trained, frozen = trained_leaves(setup.config, setup.params)
    optimizer = adamw(OptimizerConfig(), total_steps=1000)
    update = make_update(make_train_step(setup.base, setup.config, frozen), optimizer)
    state = TrainState(trained, optimizer.init(trained), mx.array(0))
    mx.eval(state)
    run(benchmark, setup, lambda: update(state, setup.batch))
