"""The way of data: what training would draw, the same loss under any padding, and a share that the device waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from folders import write_records
from tiny import assert_close
from workbenches import called, tiny_bench

from clara.core.step import make_eval_step
from clara.io.dataset import training_batches
from clara.io.errors import ClaraError
from clara.shell.benching import feeding
from clara.shell.benching.feeding import (
    documents_of,
    drawn,
    feed_of,
    longest,
    loop_work,
    padded,
    padding_work,
    read_data,
    records_work,
)
from clara.shell.benching.shapes import start_params, step_config


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Return a file of eight records of many lengths."""
    return str(write_records(tmp_path / "lamps.jsonl", range(8)))


def test_the_batches_are_those_of_training(data: str) -> None:
    with tiny_bench(data=data, batches=3, rows=2) as bench:
        records, feed = feed_of(bench)
        names = [each.names for each in drawn(bench)]
        assert names == [each.names for each in training_batches(records, feed, 3)] and len(names) == 3
        assert feed_of(bench)[0] is records
        work = records_work(bench)
        assert work.counts["records"] == 6 and len(called(work)) == 3


def test_padding_changes_no_loss_but_the_widths(data: str) -> None:
    with tiny_bench(data=data) as bench:
        base, config = bench.base(), step_config(bench.size, bench.options, "pretrain")
        (batch,) = drawn(bench)[0].batches
        wide = padded(batch, *(width + 9 for width in longest(bench, [[batch]])))
        assert (
            documents_of(wide).tokens.shape[1] >= 48 + 3 + 8 + 9 and wide.tokens.shape[1] == batch.tokens.shape[1] + 9
        )
        step, params = make_eval_step(base, config), start_params(base, config)
        assert_close(step(params, wide), step(params, batch), 1e-5)


def test_buckets_and_fixed_padding_learn_from_the_same_tokens(data: str) -> None:
    with tiny_bench(data=data, batches=2) as bench:
        buckets, fixed = padding_work(bench, fixed=False), padding_work(bench, fixed=True)
        assert buckets.counts == fixed.counts and buckets.counts["records"] == 4
        assert 0 <= buckets.facts(1.0)["padding"] < fixed.facts(1.0)["padding"] < 1
        assert called(buckets) == called(fixed) == []


def test_the_device_waits_for_data_that_come_late(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*given: Any) -> Iterator[Any]:
        for each in training_batches(*given):
            time.sleep(0.4)
            yield each

    with tiny_bench(data=data, batches=2) as bench:
        monkeypatch.setattr(feeding, "training_batches", late)
        monkeypatch.setattr(feeding, "TURNS", 1)
        work = loop_work(bench)
        called(work)
        facts = work.facts(1.0)
        assert facts["seconds_ready"] > 0 and 0.2 < facts["waited_share"] < 1
        assert 1 > facts["idle_share"] >= 1 - facts["seconds_ready"] / 0.8, "the data alone take 0.8 s"


def test_the_device_hardly_waits_where_the_batches_are_there(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_bench(data=data, batches=2) as bench:
        ready = drawn(bench)
        monkeypatch.setattr(feeding, "training_batches", lambda *given: iter(ready))
        assert loop_work(bench).facts(1.0)["waited_share"] < 0.05


@pytest.mark.parametrize(("seconds", "loops"), [(1000.0, 1), (0.1, 1 + feeding.TURNS - 1)])
def test_a_loop_that_takes_long_is_not_done_again(
    seconds: float, loops: int, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def counted(*given: Any) -> Iterator[Any]:
        begun.append(1)
        return training_batches(*given)

    with tiny_bench(data=data, batches=1) as bench:
        work = loop_work(bench)
        monkeypatch.setattr(feeding, "training_batches", counted)
        called(work)
        assert 0 <= work.facts(seconds)["idle_share"] < 1 and len(begun) == loops


def test_bad_data_are_refused_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"docs": []}\n')
    with pytest.raises(ClaraError, match=r"bad\.jsonl"):
        read_data(str(tmp_path / "bad.jsonl"))


def test_memories_are_no_documents(data: str) -> None:
    with tiny_bench(data=data) as bench:
        (batch,) = drawn(bench)[0].batches
        with pytest.raises(ClaraError, match="wanted documents as tokens"):
            documents_of(batch._replace(documents=mx.zeros((1, 2, 3))))
