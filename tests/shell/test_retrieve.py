"""Retrieval: candidates of either first stage, the reasoner's order, and what fits a model by default."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from stores import lamp, tiny_store

from clara.core.config import Relevance
from clara.core.search import fused, with_words
from clara.core.select import Lens, relevance_scores
from clara.io.memory_store.search import memories_of, search_memory, search_text, word_scores
from clara.io.memory_store.store import Store, opened_store
from clara.shell.answer import compress_questions, compress_texts
from clara.shell.retrieve import Found, Search, default_search, retrieve
from clara.shell.setup import Session
from clara.shell.stores import checkpoint_for, session_of

QUESTIONS = ["How does lamp number3 burn?", "Which lamps burn red?", "Which lamp is number7?"]
BM25, MEMORY, BOTH = (Search(stage, 10, 3, False) for stage in ("bm25", "memory", "both"))
Place = tuple[Session, Store]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Return the session and the store of a model that chooses two of its candidates."""
    path = tiny_store(tmp_path_factory.mktemp("store"), stage="end_to_end", retrieval={"top_k": 2})
    with opened_store(path, readonly=True) as store:
        yield session_of(checkpoint_for(path)), store
    mx.enable_compile()


def cosine(first: mx.array, second: mx.array) -> float:
    """Return the cosine of two arrays, flattened."""
    a, b = (np.array(each.astype(mx.float32)).astype(np.float64).ravel() for each in (first, second))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def texts(found: Found) -> list[str]:
    return [passage.text for passage in found.passages]


def test_words_alone_find_what_full_text_search_finds(place: Place) -> None:
    session, store = place
    for question, found in zip(QUESTIONS, retrieve(session, store, QUESTIONS, BM25), strict=True):
        hits = search_text(store, question, 3)
        assert found.scores == [hit.score for hit in hits]
        assert mx.array_equal(found.memory, memories_of(store, [hit.id for hit in hits]))
    assert texts(retrieve(session, store, QUESTIONS, BM25)[0])[0] == lamp(3).text


def test_memory_alone_finds_what_is_nearest_to_the_compressed_question(place: Place) -> None:
    session, store = place
    for i, found in enumerate(retrieve(session, store, QUESTIONS, MEMORY)):
        (hits,) = search_memory(store, compress_questions(session, QUESTIONS[i : i + 1]), 3)
        assert found.scores == pytest.approx([hit.score for hit in hits], abs=1e-5)
        assert len(found.passages) == 3


def test_the_passages_come_with_their_memories(place: Place) -> None:
    session, store = place
    (found,) = retrieve(session, store, QUESTIONS[:1], BOTH)
    own = np.array(compress_texts(session, texts(found)))
    np.testing.assert_allclose(np.array(found.memory.astype(mx.float32)), own, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("stage", ["bm25", "memory", "both"])
def test_the_reasoner_puts_candidates_in_the_order_of_their_cosines(place: Place, stage: str) -> None:
    session, store = place
    for question in QUESTIONS:
        (found,) = retrieve(session, store, [question], Search(stage, 6, 4, True))  # type: ignore[arg-type]
        query = compress_questions(session, [question])[0]
        assert found.scores == pytest.approx([cosine(query, memory) for memory in found.memory], abs=1e-4)
        assert found.scores == sorted(found.scores, reverse=True)
        assert len(found.passages) == 4


@pytest.mark.parametrize("stage", ["bm25", "memory", "both"])
@pytest.mark.parametrize("rerank", [True, False])
@pytest.mark.parametrize("relevance", ["late", "pooled"])
def test_a_model_of_another_relevance_searches_and_chooses_by_it(
    place: Place, stage: str, rerank: bool, relevance: Relevance
) -> None:
    session, store = place
    how = msgspec.structs.replace(session.config.retrieval, relevance=relevance)
    rng, size = np.random.default_rng(0), store.info.hidden
    lens = Lens(mx.array(rng.standard_normal(size)), mx.array(rng.standard_normal((size, size))))
    trained = session._replace(
        config=msgspec.structs.replace(session.config, retrieval=how),
        params={**session.params, "relevance_center": lens.center, "relevance_map": lens.map},
    )
    (found,) = retrieve(trained, store, QUESTIONS[1:2], Search(stage, 10, 4, rerank))  # type: ignore[arg-type]
    scores = relevance_scores(compress_questions(session, QUESTIONS[1:2]), found.memory[None], relevance, lens)[0]
    expected = {"memory": True, "bm25": rerank, "both": rerank}[stage]
    assert (found.scores == pytest.approx(scores.tolist(), abs=1e-5)) == expected
    (other,) = retrieve(session, store, QUESTIONS[1:2], Search(stage, 10, 4, rerank))  # type: ignore[arg-type]
    assert (other.scores == pytest.approx(scores.tolist(), abs=1e-5)) is False


def test_the_reasoner_chooses_among_candidates_alone(place: Place) -> None:
    session, store = place
    (first,) = retrieve(session, store, QUESTIONS[1:2], BM25._replace(top_k=4))
    (found,) = retrieve(session, store, QUESTIONS[1:2], Search("bm25", 4, 4, True))
    assert sorted(texts(found)) == sorted(texts(first))
    (found,) = retrieve(session, store, QUESTIONS[1:2], Search("bm25", 1, 4, True))
    assert texts(found) == texts(first)[:1]


def test_words_count_as_much_as_the_reasoner_unless_told_otherwise(place: Place) -> None:
    session, store = place
    assert default_search(session).fuse
    for question in QUESTIONS:
        ways = [Search("memory", 10, 10, True, fuse) for fuse in (False, True)]
        (alone,), (both,) = (retrieve(session, store, [question], how) for how in ways)
        words = {hit.id: hit.score for hit in search_text(store, question, 10)}
        ids = [hit.id for hit in search_memory(store, compress_questions(session, [question]), 10)[0]]
        assert word_scores(store, question, ids) == [words.get(id_, 0.0) for id_ in ids]
        wanted = with_words(alone.scores, [words.get(id_, 0.0) for id_ in ids])
        assert both.scores == pytest.approx(sorted(wanted, reverse=True), abs=1e-3)
        assert texts(both)[0] == texts(alone)[int(np.argmax(wanted))]


def test_of_passages_without_a_word_of_the_question_none_scores_by_words(place: Place) -> None:
    _, store = place
    assert word_scores(store, "Zeppelin?", [1, 2]) == [0.0, 0.0] and word_scores(store, "", [1]) == [0.0]
    assert word_scores(store, QUESTIONS[0], []) == []


def test_without_a_reasoner_both_first_stages_count(place: Place) -> None:
    session, store = place
    for i, question in enumerate(QUESTIONS):
        (found,) = retrieve(session, store, [question], BOTH._replace(top_k=6))
        (memory,) = search_memory(store, compress_questions(session, [question]), 10)
        wanted = fused([[hit.id for hit in memory], [hit.id for hit in search_text(store, question, 10)]])[:6]
        assert found.scores == [score for _, score in wanted]
        assert mx.array_equal(found.memory, memories_of(store, [id_ for id_, _ in wanted]))
        (alone,) = retrieve(session, store, [question], MEMORY._replace(top_k=6))
        assert texts(alone) != texts(found) or i


def test_both_first_stages_together_name_each_passage_once(place: Place) -> None:
    session, store = place
    for found in retrieve(session, store, QUESTIONS, Search("both", 10, 20, True)):
        assert sorted(texts(found)) == sorted(lamp(i).text for i in range(10))


def test_questions_together_find_what_each_finds_alone(place: Place) -> None:
    session, store = place
    how = Search("both", 5, 3, True)
    for question, together in zip(QUESTIONS, retrieve(session, store, QUESTIONS, how), strict=True):
        (alone,) = retrieve(session, store, [question], how)
        assert texts(together) == texts(alone)
        assert together.scores == pytest.approx(alone.scores, abs=1e-5)
    assert retrieve(session, store, [], how) == []


def test_a_question_that_shares_no_word_finds_nothing_by_words(place: Place) -> None:
    session, store = place
    for how in (BM25, BM25._replace(rerank=True)):
        found, other = retrieve(session, store, ["Zeppelin?", QUESTIONS[0]], how)
        assert (found.passages, found.scores, found.memory.shape) == ([], [], (0, 4, 32))
        assert len(other.passages) == 3
    assert len(retrieve(session, store, ["Zeppelin?"], MEMORY)[0].passages) == 3


def test_the_default_search_is_what_a_model_was_trained_for(place: Place) -> None:
    session, _ = place
    assert default_search(session) == Search("bm25", 20, 2, True, True)
    adapters = {name: leaf for name, leaf in session.params["adapters"].items() if name != "reasoner"}
    config = type(session.config)(stage="pretrain", memory=session.config.memory, lora=session.config.lora)
    reader = session._replace(config=config, params={**session.params, "adapters": adapters})
    assert default_search(reader) == Search("bm25", 20, 1, False, True)
