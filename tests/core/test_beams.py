"""Beam search: the likeliest tokens, and with room for all of them the best of all replies that there are."""

from __future__ import annotations

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import as_numpy, normal

from clara.core.beams import LENGTH_POWER, Beam, Search, best, extended, likeliest

END, WORDS = 0, 3
seeds = st.integers(0, 2**31)


def table(seed: int) -> np.ndarray:
    """Return log-probabilities of the next of 3 tokens, END among them, after each of 3."""
    logits = 2 * np.random.default_rng(seed).standard_normal((WORDS, WORDS))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def searched(chain: np.ndarray, width: int, most: int) -> Search:
    """Return the search, over, in a language whose next token depends on the last alone; it begins after token 1."""
    search = Search()
    while search.live:
        found = [
            (place, token, float(chain[beam.tokens[-1] if beam.tokens else 1, token]))
            for place, beam in enumerate(search.live)
            for token in range(WORDS)
        ]
        search, parents = extended(search, found, {END}, width, most)
        assert len(parents) == len(search.live) <= width
    return search


def reply_score(chain: np.ndarray, words: tuple[int, ...]) -> float:
    """Return the log-probability of a whole reply."""
    return float(sum(chain[a, b] for a, b in itertools.pairwise((1, *words, END))))


@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 12), seeds)
def test_the_likeliest_tokens_are_those_of_a_full_sort(rows: int, vocabulary: int, count: int, seed: int) -> None:
    logits = 3 * normal(np.random.default_rng(seed), rows, vocabulary)
    values, tokens = map(as_numpy, likeliest(logits, count))
    plain = as_numpy(logits).astype(np.float64)
    every = plain - np.log(np.exp(plain).sum(axis=-1, keepdims=True))
    assert values.shape == tokens.shape == (rows, min(count, vocabulary))
    np.testing.assert_allclose(values, np.take_along_axis(every, tokens.astype(np.int64), axis=-1), atol=1e-5)
    np.testing.assert_allclose(np.sort(values)[:, ::-1], np.sort(every)[:, ::-1][:, :count], atol=1e-5)


def test_log_probabilities_of_bfloat16_are_float32() -> None:
    values, tokens = likeliest(mx.zeros((1, 4), dtype=mx.bfloat16), 2)
    assert (values.dtype, tokens.dtype) == (mx.float32, mx.int32)
    np.testing.assert_allclose(as_numpy(values), math.log(0.25), atol=1e-6)


@given(seeds)
def test_with_room_for_all_the_best_of_all_replies_is_found(seed: int) -> None:
    chain, most = table(seed), 4
    every = [words for length in range(most) for words in itertools.product(range(1, WORDS), repeat=length)]
    greatest = max(reply_score(chain, words) / (len(words) + 1) ** LENGTH_POWER for words in every)
    search = searched(chain, 64, most)
    found = best(search)
    assert search.whole and found.score == pytest.approx(reply_score(chain, found.tokens))
    assert found.score / (len(found.tokens) + 1) ** LENGTH_POWER == pytest.approx(greatest)


@given(st.integers(1, 8), seeds)
def test_one_beam_is_greedy(most: int, seed: int) -> None:
    chain, words = table(seed), [1]
    while len(words) <= most and (following := int(chain[words[-1]].argmax())) != END:
        words.append(following)
    search = searched(chain, 1, most)
    assert best(search).tokens == tuple(words[1:])
    assert search.whole == (len(words) <= most)


@given(st.integers(1, 5), st.integers(1, 6), seeds)
def test_every_reply_has_its_own_score_and_none_is_there_twice(width: int, most: int, seed: int) -> None:
    chain = table(seed)
    search = searched(chain, width, most)
    assert len({beam.tokens for beam in search.ended}) == len(search.ended) > 0
    if search.whole:
        assert all(beam.score == pytest.approx(reply_score(chain, beam.tokens)) for beam in search.ended)
    else:
        assert all(len(beam.tokens) == most for beam in search.ended)


def test_a_longer_reply_wins_where_each_of_its_tokens_is_as_likely() -> None:
    short, long = Beam(-2.0, (1,)), Beam(-2.5, (1, 2, 3))
    assert best(Search((), (short, long))) == long


def test_of_equal_scores_the_first_beam_and_the_lower_token_come_first() -> None:
    search = Search((Beam(-1.0, (2,)), Beam(-1.0, (1,))))
    found = [(1, 1, -0.5), (0, 2, -0.5), (0, 1, -0.5), (1, 2, -0.5)]
    further, parents = extended(search, found, {END}, 2, 9)
    assert ([beam.tokens for beam in further.live], parents) == ([(2, 1), (2, 2)], [0, 0])


def test_a_reply_that_two_tokens_end_is_there_once() -> None:
    found = [(0, 0, -1.0), (0, 1, -2.0), (0, 2, -3.0)]
    further, _ = extended(Search((Beam(-1.0, (5,)),)), found, {0, 1}, 3, 9)
    assert further.ended == (Beam(-2.0, (5,)),)
