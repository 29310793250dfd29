"""Ranks: what is shared in which messages, what one of them alone does, and what is refused."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from clara.io.errors import ClaraError
from clara.shell import ranks as module
from clara.shell.ranks import (
    ALONE,
    Ranks,
    awaited,
    combined,
    dealt,
    exchanged,
    first,
    messages,
    progressing,
    require_even,
    require_same,
    share,
    told,
    totals,
)
from clara.shell.watch import Watch, start


class Doubling:
    """An engine of two ranks that both say the same."""

    def __init__(self) -> None:
        self.sent: list[tuple[mx.Dtype, int]] = []

    def all_sum(self, array: mx.array, group: Any) -> mx.array:
        self.sent.append((array.dtype, array.size))
        return array * 2

    def all_gather(self, array: mx.array, group: Any) -> mx.array:
        return mx.concatenate([array, array])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Doubling:
    """Return such an engine in MLX's place."""
    found = Doubling()
    monkeypatch.setattr(mx.distributed, "all_sum", found.all_sum)
    monkeypatch.setattr(mx.distributed, "all_gather", found.all_gather)
    return found


TWO = Ranks(1, 2)
CUT = TWO._replace(cut=True)


def test_one_rank_shares_nothing_and_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mx.distributed, "all_sum")
    monkeypatch.delattr(mx.distributed, "all_gather")
    tree = {"a": mx.array([1.0])}
    assert share(ALONE, tree) is tree and first(ALONE, tree) is tree
    assert exchanged(ALONE, {"x": 1}) == [{"x": 1}] and told(ALONE, "x") == "x" and totals(ALONE, [3, 4]) == [3, 4]
    assert dealt(ALONE, [1, 2, 3]) == [1, 2, 3] and ALONE.leads and ALONE.part == (0, 1)
    require_same(ALONE, {"x": 1}, "")
    require_even(ALONE, 7, 100, "data")


def test_a_tree_comes_back_in_its_shape_with_the_sums(engine: Doubling) -> None:
    tree = {
        "a": mx.arange(6).reshape(2, 3).astype(mx.float32),
        "b": (mx.array(5), {"c": mx.array([[1.5]]), "d": mx.array([7, 8])}),
    }
    found = share(TWO, tree)
    assert found["a"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert found["b"][0].item() == 10 and found["b"][0].shape == ()
    assert found["b"][1]["c"].tolist() == [[3.0]] and found["b"][1]["d"].tolist() == [14, 16]
    assert sorted(engine.sent, key=str) == sorted([(mx.float32, 7), (mx.int32, 3)], key=str)


def test_what_is_shared_may_be_compiled(engine: Doubling) -> None:
    found = mx.compile(lambda tree: share(TWO, tree))({"a": mx.array([1.0, 2.0]), "b": mx.array(3)})
    assert found["a"].tolist() == [2.0, 4.0] and found["b"].item() == 6


@pytest.mark.parametrize("shape", [(), (2,), (1, 3)])
def test_no_message_has_fewer_elements_than_there_are_ranks(shape: tuple[int, ...], engine: Doubling) -> None:
    found = share(Ranks(5, 512), mx.ones(shape, mx.int32))
    assert found.shape == shape and (found == 2).all().item() and engine.sent == [(mx.int32, 512)]
    assert totals(Ranks(5, 512), [3, 4]) == [6, 8] and engine.sent[1:] == [(mx.int32, 512)]


def test_what_a_step_computes_is_summed_where_each_rank_has_a_base(engine: Doubling) -> None:
    found = combined(TWO, ((mx.array(1.0), {"next_token": mx.array(2.0)}), {"lora_a": mx.array([3.0])}))
    assert (found[0][0].item(), found[0][1]["next_token"].item(), found[1]["lora_a"].item()) == (2, 4, 6)


def test_ranks_that_have_one_base_together_sum_the_gradients_of_adapters_alone(engine: Doubling) -> None:
    grads = {"lora_a": mx.array([3.0]), "lora_b": mx.array([4.0, 5.0]), "anchor": mx.array([6.0])}
    found = combined(CUT, ((mx.array(1.0), {"next_token": mx.array(2.0)}), grads))
    assert type(found) is tuple and found[0][0].item() == 1 and found[0][1]["next_token"].item() == 2
    assert {name: leaf.tolist() for name, leaf in found[1].items()} == {
        "lora_a": [6.0],
        "lora_b": [8.0, 10.0],
        "anchor": [6.0],
    }
    assert engine.sent == [(mx.float32, 3)]
    pair = {"lora_a": mx.array([1.0]), "lora_b": mx.array([2.0])}
    tree = combined(CUT, {"adapters": {"generator": {"model.layers.0": pair}}, "memory_embeddings": mx.array([3.0])})
    assert tree["adapters"]["generator"]["model.layers.0"]["lora_b"].item() == 4
    assert tree["memory_embeddings"].item() == 3


def test_ranks_that_have_one_base_together_all_do_the_same() -> None:
    assert CUT.part == (0, 1) and dealt(CUT, [1, 2, 3]) == [1, 2, 3]
    require_even(CUT, 7, 100, "data")


def test_small_arrays_travel_together_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MESSAGE_BYTES", 40)
    arrays = [mx.zeros(size, kind) for size, kind in
              ((4, mx.float32), (10, mx.float32), (1, mx.int32), (6, mx.float32), (2, mx.float32))]  # fmt: skip
    assert messages(arrays) == [[0, 3], [1], [2], [4]]


def test_other_ranks_parameters_give_way_to_those_of_rank_0(engine: Doubling) -> None:
    assert first(Ranks(1, 2), {"a": mx.array([3.0])})["a"].tolist() == [0.0]
    assert first(Ranks(0, 2), {"a": mx.array([3.0])})["a"].tolist() == [6.0]


@pytest.mark.parametrize("value", [None, {}, {"x": [1.5, float("inf")], "y": "ü" * 300}, [[1, "a"], [2, "b"]]])
def test_plain_values_are_exchanged_as_they_are(value: Any, engine: Doubling) -> None:
    assert exchanged(TWO, value) == [value, value]


def test_totals_are_whole_numbers(engine: Doubling) -> None:
    assert totals(TWO, [2**24 + 1, 0]) == [2**25 + 2, 0]


def test_each_item_is_dealt_to_one_rank() -> None:
    assert [dealt(Ranks(rank, 3), list("abcdefg")) for rank in range(3)] == [list("adg"), list("be"), list("cf")]


def test_a_rank_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [{"x": 1, "y": "a"}, {"x": 1, "y": "a"}, {"x": 1, "y": "b"}]
    monkeypatch.setattr(module, "exchanged", lambda ranks, value: said)
    with pytest.raises(ClaraError, match=r"^y: 'b' on rank 2, but 'a' on rank 0; all want one$"):
        require_same(Ranks(0, 3), {}, "all want one")


def test_a_batch_that_does_not_divide_is_refused() -> None:
    require_even(Ranks(0, 4), 8, 100, "data.jsonl")
    require_even(Ranks(0, 4), 9, 8, "data.jsonl")
    with pytest.raises(ClaraError, match=r"^--batch-size 10; 4 ranks want a --batch-size that divides by 4$"):
        require_even(Ranks(0, 4), 10, 100, "data.jsonl")
    said = "^data.jsonl: has 6 records, which is all of a batch; 4 ranks want .* divides by 4, at most 6$"
    with pytest.raises(ClaraError, match=said):
        require_even(Ranks(0, 4), 8, 6, "data.jsonl")


@pytest.fixture
def watch() -> Watch:
    """Return a watch without connections."""
    return start(0, 1, {}, 60.0)


def test_progress_is_noted_and_so_is_waiting(watch: Watch) -> None:
    ranks, seen = ALONE._replace(watch=watch), []

    def steps() -> Any:
        for i in range(2):
            seen.append(watch.pulses[0].waiting)
            yield i

    assert list(progressing(ranks, [5, 6])) == [5, 6] and watch.pulses[0].ticks == 2
    waits = [watch.pulses[0].waiting for _ in awaited(ranks, steps())]
    assert (seen, waits) == ([True, True], [False, False]) and watch.pulses[0].ticks > 3


def test_nobody_waits_any_more_after_an_error(watch: Watch) -> None:
    with pytest.raises(KeyError), module.waiting(ALONE._replace(watch=watch)):
        raise KeyError
    assert not watch.pulses[0].waiting


def test_values_of_several_lengths_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter([np.array([[1], [3]]), np.array([[0xC0, 0, 0], [0xA2, 0x6F, 0x6B]], np.uint8)])
    monkeypatch.setattr(module, "gather", lambda ranks, row: next(rows))
    assert exchanged(TWO, "ok") == [None, "ok"]
