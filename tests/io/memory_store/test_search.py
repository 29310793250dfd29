"""Search in a store: exact by memory, BM25 by words, in one state of the store whatever a writer does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from numbered import HIDDEN, TOKENS, held, memory, passage, passages, tiny_info

from clara.core.config import Relevance
from clara.core.select import relevance_scores
from clara.io.corpus.passages import Passage
from clara.io.errors import ClaraError
from clara.io.memory_store import search as module
from clara.io.memory_store.removal import compact, delete_passages
from clara.io.memory_store.search import Hit, memories_of, passages_of, search_memory, search_text
from clara.io.memory_store.shards import shard_path
from clara.io.memory_store.store import (
    SHARDS,
    Store,
    add_passages,
    close_store,
    open_store,
    opened_store,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return a store of twenty passages, in four shards, open for writing."""
    with opened_store(tmp_path / "s", create=tiny_info()) as found:
        add_passages(found, passages(range(20)), memory(range(20)))
        yield found


def draw(seed: int, count: int) -> mx.array:
    """Return float32 normal numbers: memories of questions."""
    return mx.array(np.random.default_rng(seed).standard_normal((count, TOKENS, HIDDEN)).astype(np.float32))


@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@settings(max_examples=8)
@given(count=st.integers(1, 40), asked=st.integers(1, 5), k=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_search_by_memory_is_numpys_cosine(
    dtype: str, bits: int, count: int, asked: int, k: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    queries = draw(seed, asked)
    with opened_store(tmp_path_factory.mktemp("s") / "s", create=tiny_info(dtype=dtype, bits=bits)) as store:
        add_passages(store, passages(range(count)), draw(seed + 100, count))
        found = search_memory(store, queries, k)
        stored = np.array(memories_of(store, range(1, count + 1)).astype(mx.float32)).reshape(count, -1)
    wanted = np.array(queries).reshape(asked, -1).astype(np.float64)
    lengths = np.linalg.norm(wanted, axis=1)[:, None] * np.linalg.norm(stored.astype(np.float64), axis=1)
    cosine = wanted @ stored.T / lengths
    for hits, scores in zip(found, cosine, strict=True):
        assert len(hits) == min(k, count)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:k], atol=1e-6)
        np.testing.assert_allclose([scores[hit.id - 1] for hit in hits], [hit.score for hit in hits], atol=1e-6)


@pytest.mark.parametrize("relevance", get_args(Relevance))
def test_scores_are_those_that_the_reasoner_chooses_by(relevance: Relevance, store: Store) -> None:
    queries = draw(3, 2)
    for query, hits in zip(queries, search_memory(store, queries, 20, relevance), strict=True):
        candidates = memories_of(store, [hit.id for hit in hits])
        expected = np.array(relevance_scores(query[None], candidates[None], relevance)[0])
        np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-6)
        assert (len(hits), sorted(expected, reverse=True)) == (20, pytest.approx(expected, abs=1e-6))


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_a_late_search_is_of_all_memories_as_they_are_packed(bits: int, tmp_path: Path) -> None:
    queries = draw(0, 3)
    with opened_store(tmp_path / "s", create=tiny_info(bits=bits)) as store:
        add_passages(store, passages(range(30)), draw(100, 30))
        found = search_memory(store, queries, 4, "late")
        stored = memories_of(store, range(1, 31))
    scores = np.array(relevance_scores(queries, mx.repeat(stored[None], 3, axis=0), "late"))
    for hits, row in zip(found, scores, strict=True):
        assert [hit.id - 1 for hit in hits] == np.argsort(-row)[:4].tolist()
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1][:4], atol=1e-6)


def test_equal_memories_come_by_their_ids_and_empty_ones_score_zero(tmp_path: Path) -> None:
    with opened_store(tmp_path / "s", create=tiny_info()) as store:
        same = mx.concatenate([memory([1])] * 12 + [mx.zeros((2, TOKENS, HIDDEN)), -memory([1])])
        add_passages(store, passages(range(15)), same)
        delete_passages(store, hashes=[passage(3).hash])
        compact(store)
        (hits,) = search_memory(store, memory([1]), 15)
        assert [hit.id for hit in hits] == [1, 2, 3, *range(5, 16)]
        np.testing.assert_allclose([hit.score for hit in hits], [1] * 11 + [0, 0, -1], atol=1e-6)
        assert [hit.score for hit in search_memory(store, mx.zeros((1, TOKENS, HIDDEN)), 3)[0]] == [0, 0, 0]


def test_an_empty_store_and_no_question_find_nothing(tmp_path: Path) -> None:
    with opened_store(tmp_path / "s", create=tiny_info()) as store:
        assert search_memory(store, draw(0, 2), 5) == [[], []] and search_text(store, "lamp", 5) == []
        add_passages(store, passages([1]), memory([1]))
        assert search_memory(store, draw(0, 0), 5) == [] and search_text(store, " ?!", 5) == []
        assert search_memory(store, draw(0, 0), 5, "late") == []
        assert search_memory(store, draw(0, 1), 0) == [[]] and search_text(store, "lamp", 0) == []
        assert memories_of(store, []).shape == (0, TOKENS, HIDDEN) and passages_of(store, []) == []


def test_questions_of_another_shape_are_refused(store: Store) -> None:
    with pytest.raises(ClaraError, match=r"questions of shape \(2, 16\); wanted \(2, 32\)"):
        search_memory(store, mx.zeros((1, 2, 16)), 1)


def test_words_are_ranked_by_bm25(tmp_path: Path) -> None:
    texts = ["a bell rings", "a bell, a bell, a bell", "the violet bell and many other words beside it", "nothing"]
    titles = ["", "", "Violet things", ""]
    with opened_store(tmp_path / "s", create=tiny_info()) as store:
        add_passages(
            store, [Passage(text=a, title=b) for a, b in zip(texts, titles, strict=True)], memory(range(len(texts)))
        )
        hits = search_text(store, "Who rang the VIOLET bell?", 10)
        assert [hit.id for hit in hits] == [3, 2, 1] and hits[0].score > hits[1].score > hits[2].score > 0
        assert search_text(store, "bell violet", 2) == search_text(store, "violet BELL bell", 3)[:2]
        assert [hit.id for hit in search_text(store, "things", 10)] == [3], "titles count"


def test_equal_scores_come_by_their_ids(store: Store) -> None:
    assert [hit.id for hit in search_text(store, "lamp", 7)] == list(range(1, 8))


def test_what_was_deleted_meanwhile_is_said(store: Store) -> None:
    delete_passages(store, hashes=[passage(4).hash])
    for work in (passages_of, memories_of):
        with pytest.raises(ClaraError, match="passage 5 was deleted meanwhile; search again"):
            work(store, [1, 5])


def test_a_shard_that_is_gone_for_good_is_said(store: Store) -> None:
    path = shard_path(store.path / SHARDS, 2)
    path.unlink()
    with pytest.raises(ClaraError, match=f"{path}: missing; restore it from a copy"):
        search_memory(store, memory([1]), 1)
    assert mx.array_equal(memories_of(store, [1, 20]).astype(mx.float32), memory([0, 19]))


def test_a_search_whose_shards_are_compacted_away_begins_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, reader, seen = module.map_rows, open_store(store.path, readonly=True), list[Path]()

    def map_rows(path: Path, form: Any) -> Any:
        if not seen:
            delete_passages(store, source="lamps1.pdf")
            compact(store)
        seen.append(path)
        return real(path, form)

    monkeypatch.setattr(module, "map_rows", map_rows)
    left = [number for number in range(20) if number % 3 != 1]
    assert [hits[0].id for hits in search_memory(reader, memory(left), 1)] == [number + 1 for number in left]
    assert seen[0] == shard_path(store.path / SHARDS, 1) and len(seen) == 4, "one of the old shards, three new ones"
    seen.clear()
    assert mx.array_equal(memories_of(reader, [1, 3, 19]).astype(mx.float32), memory([0, 2, 18]))
    close_store(reader)


def test_a_search_sees_one_state_of_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, reader = module.map_rows, open_store(store.path, readonly=True)

    def map_rows(path: Path, form: Any) -> Any:
        delete_passages(store, source="lamps1.pdf")
        add_passages(store, passages(range(20, 30)), memory(range(20, 30)))
        return real(path, form)

    with monkeypatch.context() as patched:
        patched.setattr(module, "map_rows", map_rows)
        (hits,) = search_memory(reader, memory([3]), 99)
    assert sorted(hit.id for hit in hits) == list(range(1, 21))
    (hits,) = search_memory(reader, memory([3]), 99)
    assert len(hits) == 20 - 7 + 10
    close_store(reader)


class Model(RuleBasedStateMachine):
    """A store beside a dict of what should be in it: the number of each passage → its memory."""

    folder: Path
    """Where the next store is made."""

    def __init__(self) -> None:
        super().__init__()
        type(self).folder = self.folder.with_name(f"{int(self.folder.name) + 1}")
        self.store = open_store(self.folder, create=tiny_info())
        self.model: dict[int, mx.array] = {}
        self.sources: dict[int, str] = {}

    @rule(numbers=st.lists(st.integers(0, 30), max_size=8), shift=st.integers(0, 2), source=st.sampled_from("xyz"))
    def add(self, numbers: list[int], shift: int, source: str) -> None:
        memories = memory([number + 100 * shift for number in numbers])
        added = add_passages(self.store, [passage(number, source) for number in numbers], memories)
        new = {number: memories[i] for i, number in reversed(list(enumerate(numbers))) if number not in self.model}
        assert added == len(new)
        self.model |= new
        self.sources |= dict.fromkeys(new, source)

    @rule(numbers=st.lists(st.integers(0, 30), max_size=6))
    def delete(self, numbers: Sequence[int]) -> None:
        gone = set(numbers) & self.model.keys()
        assert delete_passages(self.store, hashes=[passage(number).hash for number in numbers]) == len(gone)
        self.model = {number: each for number, each in self.model.items() if number not in gone}

    @rule(source=st.sampled_from("xyz"))
    def delete_source(self, source: str) -> None:
        gone = {number for number in self.model if self.sources[number] == source}
        assert delete_passages(self.store, source=source) == len(gone)
        self.model = {number: each for number, each in self.model.items() if number not in gone}

    @rule()
    def compact(self) -> None:
        compact(self.store)
        assert compact(self.store) == 0

    @rule(readonly=st.booleans())
    def open_again(self, readonly: bool) -> None:
        close_store(self.store)
        if readonly:
            self.store = open_store(self.folder, readonly=True)
            self.holds()
            close_store(self.store)
        self.store = open_store(self.folder)

    @invariant()
    def holds(self) -> None:
        ids = held(self.store)
        assert ids.keys() == self.model.keys()
        found = passages_of(self.store, list(ids.values()))
        assert found == [passage(number, self.sources[number]) for number in ids]
        if ids:
            expected = mx.stack([self.model[number] for number in ids])
            assert mx.array_equal(memories_of(self.store, list(ids.values())).astype(mx.float32), expected)

    @rule(number=st.integers(0, 30), k=st.integers(1, 9))
    def search(self, number: int, k: int) -> None:
        ids = held(self.store)
        found = [hit.id for hit in search_text(self.store, f"number{number}", k)]
        assert found == ([ids[number]] if number in ids else [])
        (hits,) = search_memory(self.store, memory([number]), k)
        scores = {ids[each]: cosine(memory([number]), kept) for each, kept in self.model.items()}
        best = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        assert len(hits) == len(best)
        np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in best], atol=1e-6)
        np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.id] for hit in hits], atol=1e-6)

    def teardown(self) -> None:
        close_store(self.store)


def cosine(first: mx.array, second: mx.array) -> float:
    """Return the cosine of two memories."""
    one, other = (np.array(array).reshape(-1).astype(np.float64) for array in (first, second))
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_a_store_does_what_a_dict_would(tmp_path: Path) -> None:
    Model.folder = tmp_path / "0"
    run_state_machine_as_test(Model, settings=settings(max_examples=25, stateful_step_count=20))


def test_hits_are_plain_values(store: Store) -> None:
    hits = [search_text(store, "lamp", 1)[0], search_memory(store, memory([1]), 1)[0][0]]
    assert all(type(hit) is Hit and type(hit.id) is int and type(hit.score) is float for hit in hits)
    assert msgspec.json.encode(hits)
