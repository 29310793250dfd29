"""Search by words: scores against the formulas written out plainly, order, and texts of any kind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.lexical import best, bm25_scores, build_index, terms, tfidf_scores

TEXTS = ["The red lamp", "A lamp, a lamp and a lamp", "Blue doors", ""]
words = st.lists(st.sampled_from(["lamp", "Lamp", "door", "red", "blue", "of"]), max_size=8).map(" ".join)


def plain_bm25(texts: Sequence[str], query: str, k1: float, b: float) -> list[float]:
    """Return BM25 as its formula says it, term by term."""
    bags = [Counter(terms(text)) for text in texts]
    mean = max(sum(bag.total() for bag in bags) / len(bags), 1.0)
    scores = []
    for bag in bags:
        score = 0.0
        for term in terms(query):
            df = sum(term in other for other in bags)
            idf = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
            score += idf * bag[term] * (k1 + 1) / (bag[term] + k1 * (1 - b + b * bag.total() / mean))
        scores.append(score)
    return scores


def plain_cosine(texts: Sequence[str], query: str) -> list[float]:
    """Return TF-IDF cosines over dense vectors."""
    bags = [Counter(terms(text)) for text in texts]
    vocabulary = sorted(set().union(*bags))
    idf = {term: 1 + math.log((1 + len(bags)) / (1 + sum(term in bag for bag in bags))) for term in vocabulary}

    def vector(bag: Counter[str]) -> np.ndarray:
        return np.array([(1 + math.log(bag[term])) * idf[term] if bag[term] else 0.0 for term in vocabulary])

    asked = vector(Counter(terms(query)))
    pairs = [(asked @ vector(bag), np.linalg.norm(asked) * np.linalg.norm(vector(bag))) for bag in bags]
    return [float(dot / norm) if norm else 0.0 for dot, norm in pairs]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The LAMP's red-hot; 3.14 m", ["the", "lamp", "s", "red", "hot", "3", "14", "m"]),
        ("snake_case Ünïcode ΣΑΣ", ["snake", "case", "ünïcode", "σας"]),
        ("红灯 is かな", ["红", "灯", "is", "か", "な"]),
        ("\0 — …", []),
    ],
)
def test_terms_are_words_in_lower_case(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@given(texts=st.lists(words, min_size=1, max_size=6), query=words, k1=st.floats(0, 3), b=st.floats(0, 1))
def test_bm25_is_its_formula(texts: list[str], query: str, k1: float, b: float) -> None:
    found = bm25_scores(build_index(texts), query, k1, b)
    # Where k1 is 0, a text without the term is 0 / 0 in the formula.
    np.testing.assert_allclose(found, plain_bm25(texts, query, max(k1, 1e-12), b), rtol=1e-6, atol=1e-12)


@given(texts=st.lists(words, min_size=1, max_size=6), query=words)
def test_tfidf_is_the_cosine_of_dense_vectors(texts: list[str], query: str) -> None:
    np.testing.assert_allclose(
        tfidf_scores(build_index(texts), query), plain_cosine(texts, query), rtol=1e-9, atol=1e-12
    )


def test_rare_words_count_more_and_long_texts_less() -> None:
    index = build_index(["lamp red", "lamp blue", "lamp blue and so on and on", "door blue"])
    red, lamp = bm25_scores(index, "red"), bm25_scores(index, "lamp")
    assert red[0] > lamp[0] > lamp[2] > lamp[3] == 0


@pytest.mark.parametrize("score", [bm25_scores, tfidf_scores])
@pytest.mark.parametrize("texts", [TEXTS, [""], []])
def test_a_query_without_a_known_term_scores_nothing(score: object, texts: list[str]) -> None:
    assert callable(score)
    assert score(build_index(texts), "zeppelin ?").tolist() == [0.0] * len(texts)


def test_a_text_is_its_own_best_match() -> None:
    index = build_index(TEXTS)
    for i, text in enumerate(TEXTS[:3]):
        assert best(tfidf_scores(index, text), 1) == [(i, pytest.approx(1.0))]


@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=12), k=st.integers(-1, 14))
def test_the_best_are_those_of_a_plain_sort(scores: list[float], k: int) -> None:
    ranked = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))
    assert best(np.array(scores), k) == [(i, scores[i]) for i in ranked[: max(k, 0)]]


@given(st.lists(st.text(max_size=30), max_size=4), st.text(max_size=30))
def test_any_text_can_be_indexed_and_asked(texts: list[str], query: str) -> None:
    index = build_index(texts)
    for scores in (bm25_scores(index, query), tfidf_scores(index, query)):
        assert scores.shape == (len(texts),) and np.isfinite(scores).all() and (scores >= 0).all()
    assert index.lengths.tolist() == [len(terms(text)) for text in texts]
