"""Search by words: an inverted index of texts, and BM25 and TF-IDF scores of a query against all of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Chinese characters and Japanese kana are terms of their own: no space tells where a word ends.
_TERM = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


class LexicalIndex(NamedTuple):
    """An inverted index of n texts with V terms and P postings, a posting being a term in a text."""

    vocabulary: dict[str, int]
    """Each term's number."""
    begins: np.ndarray
    """int64[V + 1]: where the postings of each term begin; the last is their number."""
    texts: np.ndarray
    """int32[P]: the text of each posting; of each term in ascending order."""
    counts: np.ndarray
    """int32[P]: how often the term is in it."""
    lengths: np.ndarray
    """int32[n]: the terms of each text."""
    norms: np.ndarray
    """float64[n]: the length of each text's TF-IDF vector."""


def terms(text: str) -> list[str]:
    """Return the terms of a text: words of letters and digits, in lower case; single characters of Chinese."""
    return _TERM.findall(text.lower())


def build_index(texts: Iterable[str]) -> LexicalIndex:
    """Return the index of texts, which are numbered as they come."""
    vocabulary: dict[str, int] = {}
    rows = [
        np.fromiter((vocabulary.setdefault(term, len(vocabulary)) for term in terms(text)), np.int64) for text in texts
    ]
    lengths = np.array([len(row) for row in rows], np.int32)
    count = max(len(rows), 1)
    numbers = np.concatenate([np.zeros(0, np.int64), *rows])
    postings, counts = np.unique(numbers * count + np.repeat(np.arange(len(rows)), lengths), return_counts=True)
    term_of, text_of = np.divmod(postings, count)
    begins = np.searchsorted(term_of, np.arange(len(vocabulary) + 1))
    weights = _tf(counts) * _smooth_idf(len(rows), np.diff(begins))[term_of]
    norms = np.sqrt(np.bincount(text_of, weights**2, len(rows)))
    return LexicalIndex(vocabulary, begins, text_of.astype(np.int32), counts.astype(np.int32), lengths, norms)


def bm25_scores(index: LexicalIndex, query: str, k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Return float64[n]: the BM25 score of each text for a query; 0 where they share no term.

    The sum over the query's terms, repeated ones too, of idf · tf · (k1 + 1) / (tf + k1 · (1 - b + b · length / mean
    length)), with idf = ln(1 + (n - df + 0.5) / (df + 0.5)), which is never negative.
    Source: Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", section 3.5; the 1
    within the logarithm as in Apache Lucene.
    """
    scores = np.zeros(len(index.lengths))
    saturation = k1 * (1 - b + b * index.lengths / max(index.lengths.mean(), 1.0)) if len(scores) else scores
    for term, times in Counter(terms(query)).items():
        texts, counts = _postings(index, term)
        idf = np.log1p((len(scores) - len(texts) + 0.5) / (len(texts) + 0.5))
        scores[texts] += times * idf * counts * (k1 + 1) / (counts + saturation[texts])
    return scores


def tfidf_scores(index: LexicalIndex, query: str) -> np.ndarray:
    """Return float64[n] in [0, 1]: the cosine of each text's and the query's TF-IDF vectors.

    A term weighs (1 + ln tf) · (1 + ln((1 + n) / (1 + df))); terms that no text has do not count.
    Source: Manning et al. 2008, "Introduction to Information Retrieval", sections 6.3 and 6.4.1; the idf smoothed as in
    scikit-learn, so that a term of every text still counts.
    """
    scores = np.zeros(len(index.lengths))
    squares = 0.0
    for term, times in Counter(term for term in terms(query) if term in index.vocabulary).items():
        texts, counts = _postings(index, term)
        idf = _smooth_idf(len(scores), np.array(len(texts)))
        weight = _tf(np.array(times)) * idf
        scores[texts] += weight * _tf(counts) * idf
        squares += float(weight) ** 2
    norms = index.norms * np.sqrt(squares)
    return np.divide(scores, norms, out=scores, where=norms > 0)


def best(scores: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Return (text, score) of the k best scores that are above 0, best first; of equal scores the earlier text."""
    k = min(k, len(scores))
    if k < 1:
        return []
    least = np.partition(scores, -k)[-k]
    found = np.flatnonzero((scores >= least) & (scores > 0))
    order = found[np.argsort(-scores[found], kind="stable")][:k]
    return list(zip(order.tolist(), scores[order].tolist(), strict=True))


def _postings(index: LexicalIndex, term: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts that have a term and how often each has it."""
    number = index.vocabulary.get(term)
    if number is None:
        return index.texts[:0], index.counts[:0]
    place = slice(index.begins[number], index.begins[number + 1])
    return index.texts[place], index.counts[place]


def _tf(counts: np.ndarray) -> np.ndarray:
    """Return how much a term weighs that is in a text so often."""
    return 1 + np.log(counts)


def _smooth_idf(total: int, frequencies: np.ndarray) -> np.ndarray:
    """Return how much terms weigh that so many of all texts have."""
    return 1 + np.log((1 + total) / (1 + frequencies))
