"""Growth of memory: seen where there is some, and not where there is none."""

from __future__ import annotations

import mlx.core as mx
import pytest
from workbenches import called, tiny_bench

from clara.shell.benching.growth import (
    batches_of,
    compress_growth_work,
    lengths_of,
    order_of,
    shorter,
    steps_growth_work,
    watched,
)
from clara.shell.benching.shapes import SIZES


def test_what_is_kept_step_by_step_is_seen() -> None:
    kept = list[mx.array]()

    def leak(i: int) -> mx.array:
        kept.append(mx.full((250_000,), i))
        return kept[-1]

    found = watched(leak, 20)
    assert found["active_bytes_late"] - found["active_bytes_early"] == pytest.approx(18 * 1_000_000, rel=0.1)
    assert found["active_growth"] > 1 and found["peak_growth"] > 1 and found["resident_peak_growth"] >= 1


def test_what_is_let_go_is_no_growth() -> None:
    kept = mx.ones((1_000_000,))
    mx.eval(kept)
    found = watched(lambda i: mx.full((250_000,), i), 20)
    assert found["active_growth"] == pytest.approx(1, abs=0.05)
    assert found["peak_growth"] == pytest.approx(1, abs=0.05)


def test_every_length_comes_in_the_first_tenth_and_others_follow() -> None:
    order = order_of(lengths_of(100), 100)
    assert order[:6] == [0, 1, 2, 3, 4, 5] and len(order) == 100 and len(set(order[10:])) == 6
    assert (lengths_of(5), lengths_of(30), lengths_of(1000)) == (1, 3, 6)


def test_lengths_differ_and_the_longest_comes_first() -> None:
    with tiny_bench(growth_steps=30) as bench:
        widths = [batch.tokens.shape[1] for batch in batches_of(bench)]
        assert widths[0] == 64 and widths == sorted(set(widths), reverse=True) and len(widths) == 3


def test_a_short_size_still_has_room_for_its_slots() -> None:
    size = shorter(SIZES["tiny"], 0.01)
    assert size.document == 1 and size.decoder >= size.answer + size.memory_tokens + 1


def test_both_works_tell_what_was_held() -> None:
    with tiny_bench(growth_steps=10, rows=1) as bench:
        for work in (steps_growth_work(bench), compress_growth_work(bench)):
            assert called(work) == []
            assert work.once and work.facts(1.0)["active_growth"] == pytest.approx(1, abs=0.3)
