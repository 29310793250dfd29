"""What ranks send each other is a whole gradient, and next to nothing."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from workbenches import called, tiny_bench

from clara.shell.benching import sums
from clara.shell.benching.shapes import start_params, step_config
from clara.shell.ranks import Ranks


def test_a_step_sends_as_many_bytes_as_its_adapters_have(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = list[Ranks]()
    monkeypatch.setattr(sums, "share", lambda ranks, arrays: sent.append(ranks) or arrays)
    with tiny_bench() as bench:
        base = bench.base()
        params = start_params(base, step_config(bench.size, bench.options, "pretrain"))
        wanted = sum(leaf.size for _, leaf in tree_flatten(params))
        work = sums.gradient_work(bench)
        found = called(work)
        assert work.counts == {"bytes": 4 * wanted} and sum(leaf.size for leaf in found.values()) == wanted
        assert sums.message_work(bench).counts == {"bytes": 4} and sent == [bench.ranks]
        assert all(leaf.dtype == mx.float32 for leaf in found.values())
