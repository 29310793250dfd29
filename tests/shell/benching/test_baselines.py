"""The other ways: the naive step has our loss, and mlx-lm's trains beside a base that stays as it is."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import assert_close, snapshot
from workbenches import called, tiny_bench

from clara.core.config import Stage
from clara.core.step import make_eval_step
from clara.shell.benching.baselines import everywhere, mlx_lm_work, naive_work
from clara.shell.benching.cases import NAIVE
from clara.shell.benching.shapes import stage_batch, start_params, step_config
from clara.shell.benching.steps import step_work


def test_logits_everywhere_change_no_loss() -> None:
    with tiny_bench() as bench:
        base, config = bench.base(), step_config(bench.size, bench.options, "pretrain")
        batch = stage_batch(base, bench.size, "pretrain", 2, 1)
        wide = everywhere(batch, base.layout.vocab_size)
        assert wide.targets.shape == (2, bench.size.decoder - 1) and int(wide.target_mask.sum()) == 2 * 32
        step, params = make_eval_step(base, config), start_params(base, config)
        assert_close(step(params, wide)["next_token"], step(params, batch)["next_token"], 1e-5)


@pytest.mark.parametrize("stage", NAIVE)
def test_the_naive_step_learns_the_same_and_costs_more(stage: Stage) -> None:
    with tiny_bench(candidates=6) as bench:
        naive, ours = naive_work(bench, stage), step_work(bench, stage)
        (_, first), (_, second) = called(naive), called(ours)
        assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)
        assert naive.counts["examples"] == ours.counts["examples"]
        assert naive.cost and ours.cost and naive.cost.flops > ours.cost.flops


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "compiled"])
def test_mlx_lm_s_step_trains_on_as_many_tokens_and_leaves_the_base_alone(compiled: bool) -> None:
    with tiny_bench(compiled) as bench:
        before = snapshot(bench.base().module)
        work = mlx_lm_work(bench)
        assert work.counts == step_work(bench, "pretrain").counts
        ((first, count), _), ((later, _), (module, *_)) = called(work), [called(work) for _ in range(30)][-1]
        assert int(count) == 2 * bench.size.answer and float(later) < float(first)
        trained = dict(tree_flatten(module))
        assert sum(name.endswith("lora_b") for name in trained) == 14
        assert all(bool(mx.any(leaf != 0)) for name, leaf in trained.items() if name.endswith("lora_b"))
        assert snapshot(bench.base().module) == before
