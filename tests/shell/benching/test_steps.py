"""Steps as the main job makes them: they train, and kept memories change no number."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import assert_close
from workbenches import called, tiny_bench

from clara.core.compress import compress
from clara.core.config import STAGES, Stage
from clara.core.flops import forward
from clara.core.types import Documents
from clara.shell.benching.shapes import positions, stage_batch, start_params, step_config
from clara.shell.benching.steps import BATCHES, compress_in_turn, compress_work, step_work


def metrics_of(work: Any) -> dict[str, float]:
    """Return the metrics of the next step."""
    _, metrics = called(work)
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_one_step_follows_the_other_and_is_compiled_where_that_is_wanted(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = list[Any]()
    monkeypatch.setattr(mx, "compile", lambda function: wrapped.append(function) or function)
    with tiny_bench(compiled) as bench:
        work = step_work(bench, "pretrain")
        (first, _), (second, _) = called(work), called(work)
        assert (int(first.step), int(second.step)) == (1, 2) and len(wrapped) == compiled


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_each_stage_moves_what_it_trains(stage: Stage) -> None:
    with tiny_bench(rows=1, candidates=6) as bench:
        work = step_work(bench, stage)
        assert work.cost is not None and work.cost.flops > 0
        assert 0 < metrics_of(work)["gradient_norm"] < float("inf")
        (before, _), (after, _) = called(work), called(work)
        moved = [
            not mx.array_equal(a, b)
            for (_, a), (_, b) in zip(tree_flatten(before.params), tree_flatten(after.params), strict=True)
        ]
        assert any(moved)


def test_kept_memories_give_the_loss_of_recompressed_documents_and_cost_less() -> None:
    with tiny_bench(rows=2, candidates=6) as bench:
        kept, anew = (step_work(bench, "end_to_end", cached=cached) for cached in (True, False))
        assert metrics_of(kept)["loss"] == pytest.approx(metrics_of(anew)["loss"], rel=1e-5)
        assert kept.cost and anew.cost and kept.cost.flops < anew.cost.flops
        assert kept.counts["examples"] == anew.counts["examples"] == 2


def test_tokens_are_all_positions() -> None:
    with tiny_bench(rows=2) as bench:
        batch = stage_batch(bench.base(), bench.size, "pretrain", 2, 1)
        assert step_work(bench, "pretrain").counts == {"examples": 2, "tokens": positions(batch)}


def test_documents_in_portions_have_the_memories_of_documents_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clara.shell.benching.steps.PORTION", 2)
    with tiny_bench() as bench:
        base, config = bench.base(), step_config(bench.size, bench.options, "pretrain")
        params = start_params(base, config)
        documents = stage_batch(base, bench.size, "pretrain", 5, 1).documents
        assert isinstance(documents, Documents)
        assert_close(
            compress_in_turn(base, config, params, documents), compress(base, config, params, documents).memory, 1e-5
        )


def test_several_batches_are_several_times_the_work_of_one() -> None:
    with tiny_bench(rows=1) as bench:
        one, many = compress_work(bench), compress_work(bench, BATCHES)
        assert {name: BATCHES * count for name, count in one.counts.items()} == many.counts
        assert one.cost and many.cost and many.cost.flops == BATCHES * one.cost.flops
        assert one.cost == forward(bench.shape(), 4, 59, 16)
        assert called(many).shape == (4, 8, 64)
