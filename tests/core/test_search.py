"""Exact search in blocks: stored words as numbers, products with packed rows, scores, and the best of all blocks."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core import search
from clara.core.search import (
    NOTHING,
    Packing,
    Rows,
    cosines,
    fused,
    late_interactions,
    merged,
    plain,
    pooled_cosines,
    product_of,
    taken,
    widened,
    with_words,
)

PACKINGS = [
    Packing(dtype, bits, group) for dtype in ("bfloat16", "float16") for bits, group in ((0, 0), (8, 64), (4, 32))
]
parametrize = pytest.mark.parametrize("packing", PACKINGS, ids=lambda p: f"{p.dtype}-{p.bits}")


def draw(seed: int, *shape: int) -> np.ndarray:
    """Return float32 normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def words(array: mx.array) -> np.ndarray:
    """Return the bits of 16-bit numbers."""
    return np.array(array.view(mx.uint16))


def packed(memory: np.ndarray, packing: Packing) -> tuple[Rows, np.ndarray]:
    """Return memories as stored, by mlx itself, and the numbers that these stand for, flattened."""
    array = mx.array(memory).astype(getattr(mx, packing.dtype))
    if packing.bits:
        levels, scales, biases = mx.quantize(array, group_size=packing.group_size, bits=packing.bits)
        whole = [part.astype(mx.float32) for part in (scales, biases)]
        array = mx.dequantize(levels, *whole, group_size=packing.group_size, bits=packing.bits)
        rows = Rows(np.array(levels), np.zeros(0), words(scales), words(biases))
    else:
        rows = Rows(words(array), np.zeros(0))
    plain = np.array(array.astype(mx.float32)).reshape(len(memory), -1).astype(np.float64)
    return rows._replace(norm=np.linalg.norm(plain, axis=1).astype(np.float32)), plain


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_pattern_of_16_bits_is_the_number_that_mlx_reads(dtype: str) -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    expected = np.array(mx.array(patterns).view(getattr(mx, dtype)).astype(mx.float32))
    finite = np.isfinite(expected)
    found = widened(patterns, dtype)
    assert found.dtype == np.float32 and finite.sum() > 60_000
    assert (found[finite].view(np.uint32) == expected[finite].view(np.uint32)).all()


@parametrize
@given(rows=st.integers(1, 9), tokens=st.integers(1, 3), queries=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_product_with_packed_rows_is_that_with_the_numbers_they_stand_for(
    packing: Packing, rows: int, tokens: int, queries: int, seed: int
) -> None:
    stored, plain = packed(draw(seed, rows, tokens, 64), packing)
    asked = draw(seed + 1, queries, tokens * 64)
    found = product_of(asked, packing)(stored)
    assert found.shape == (rows, queries)
    np.testing.assert_allclose(found, plain @ asked.T.astype(np.float64), atol=1e-4)


@parametrize
@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_cosines_do_not_depend_on_where_blocks_begin(
    packing: Packing, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = draw(1, 23, 2, 64)
    memory[5] = 0
    stored, plain = packed(memory, packing)
    asked = draw(2, 3, 128)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    asked[2] = 0
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 128 * block)
    found = cosines(stored, asked, packing)
    norm = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain @ asked.T / np.where(norm, norm, 1), atol=1e-6)
    assert (found[5] == 0).all() and (found[:, 2] == 0).all()


def test_a_block_is_never_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    real = search.widened
    monkeypatch.setattr(search, "widened", lambda words, dtype: seen.append(words.size * 4) or real(words, dtype))
    monkeypatch.setattr(search, "BLOCK_BYTES", 4096)
    stored, _ = packed(draw(0, 50, 2, 64), Packing("bfloat16"))
    cosines(stored, draw(1, 1, 128), Packing("bfloat16"))
    assert max(seen) == 4096 and sum(seen) == 50 * 128 * 4


def test_no_rows_have_no_cosines() -> None:
    stored = Rows(np.zeros((0, 2, 64), np.uint16), np.zeros(0, np.float32))
    assert cosines(stored, draw(0, 3, 128), Packing("bfloat16")).shape == (0, 3)
    assert late_interactions(stored, draw(0, 3, 128), Packing("bfloat16")).shape == (0, 3)


@parametrize
@given(rows=st.integers(1, 5), tokens=st.integers(1, 3), seed=st.integers(0, 99))
def test_plain_rows_are_the_numbers_that_mlx_reads(packing: Packing, rows: int, tokens: int, seed: int) -> None:
    stored, numbers = packed(draw(seed, rows, tokens, 128), packing)
    found = plain(stored, packing)
    assert (found.dtype, found.shape) == (np.float32, (rows, tokens, 128))
    np.testing.assert_allclose(found.reshape(rows, -1), numbers, atol=1e-6)


@parametrize
@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_late_interactions_are_sums_of_best_matches_wherever_blocks_begin(
    packing: Packing, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = draw(1, 23, 2, 64)
    memory[5], memory[6, 0] = 0, 0
    stored, numbers = packed(memory, packing)
    asked = draw(2, 3, 128)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    asked[2] = 0
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 128 * block)
    found = late_interactions(stored, asked, packing)
    vectors = numbers.reshape(23, 2, 64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors = vectors / np.where(lengths, lengths, 1)
    expected = np.einsum("qid,njd->nqij", asked.reshape(3, 2, 64), vectors).max(axis=-1).sum(axis=-1) / 2**0.5
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[5] == 0).all() and (found[:, 2] == 0).all()


@pytest.mark.parametrize("questions", [1, 90])
def test_late_interactions_keep_blocks_and_their_products_as_small_as_they_may_be(
    questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()
    real = search.plain
    monkeypatch.setattr(search, "plain", lambda rows, how: seen.append(len(rows.norm)) or real(rows, how))
    monkeypatch.setattr(search, "BLOCK_BYTES", 4096)
    stored, _ = packed(draw(0, 50, 2, 64), Packing("bfloat16"))
    late_interactions(stored, draw(1, questions, 128), Packing("bfloat16"))
    # 64 numbers a vector, or 2 products with each question; two vectors a row; four bytes a number.
    assert max(seen) == max(4096 // (2 * 4 * max(64, 2 * questions)), 1) and sum(seen) == 50


@parametrize
def test_some_rows_are_taken_with_all_their_parts(packing: Packing) -> None:
    stored, plain = packed(draw(4, 6, 2, 64), packing)
    asked = draw(5, 2, 128)
    which = np.array([4, 0, 4])
    found = product_of(asked, packing)(taken(stored, which))
    np.testing.assert_allclose(found, plain[which] @ asked.T, atol=1e-4)


@given(
    blocks=st.lists(st.lists(st.integers(-3, 3), max_size=12), max_size=6),
    k=st.integers(0, 9),
    seed=st.integers(0, 9),
)
def test_the_best_of_blocks_are_the_best_of_all_whatever_ties(blocks: list[list[int]], k: int, seed: int) -> None:
    ids = np.random.default_rng(seed).permutation(sum(map(len, blocks)))
    best, first = NOTHING, 0
    for block in blocks:
        scores = np.array(block, dtype=np.float32)
        best = merged(best, scores, ids[first : first + len(block)], k)
        first += len(block)
    flat = [score for block in blocks for score in block]
    expected = sorted(zip(flat, ids.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))[:k]
    assert list(zip(best.scores.tolist(), best.ids.tolist(), strict=True)) == expected


def test_relevance_and_words_count_alike_whatever_their_scales() -> None:
    found = with_words([0.91, 0.93, 0.92], [0.0, 0.0, 30.0])
    wanted = np.array([-1, 1, 0]) * 1.5**0.5 + np.array([-1, -1, 2]) / 2**0.5
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert with_words([], []) == [] and with_words([3.0], [2.0]) == [0.0]


@given(
    st.lists(st.tuples(st.integers(-99, 99), st.integers(0, 99)), min_size=1, max_size=8),
    st.floats(0.5, 100),
    st.floats(-10, 10),
)
def test_fused_scores_do_not_depend_on_the_scale_of_either(
    pairs: list[tuple[int, int]], scale: float, shift: float
) -> None:
    relevance, words = (np.array(each, dtype=np.float64) for each in zip(*pairs, strict=True))
    found = with_words(relevance.tolist(), words.tolist())
    np.testing.assert_allclose(with_words((relevance * scale + shift).tolist(), words.tolist()), found, atol=1e-6)
    np.testing.assert_allclose(found, with_words(words.tolist(), relevance.tolist()), atol=1e-12)
    assert np.isfinite(found).all() and abs(np.mean(found)) < 1e-9


def test_ranks_are_fused_by_the_sum_of_their_reciprocals() -> None:
    assert fused([[7, 8], [8, 9]], 1) == [(8, 1 / 3 + 1 / 2), (7, 1 / 2), (9, 1 / 3)]
    assert fused([]) == fused([[], []]) == []


@given(st.lists(st.lists(st.integers(0, 20), unique=True, max_size=9), max_size=3), st.randoms())
def test_fused_ranks_name_each_id_once_and_know_no_order_of_rankings(rankings: list[list[int]], draw: Any) -> None:
    found = fused(rankings)
    assert {id_ for id_, _ in found} == {id_ for ranking in rankings for id_ in ranking}
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    other = draw.sample(rankings, len(rankings))
    assert [id_ for id_, _ in fused(other)] == [id_ for id_, _ in found] or len(rankings) > 2
    if len(rankings) == 1:
        assert [id_ for id_, _ in found] == rankings[0]


@parametrize
@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize("seen", [False, True], ids=["plain", "through a lens"])
def test_pooled_cosines_are_those_of_means_wherever_blocks_begin(
    packing: Packing, block: int, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = draw(1, 23, 2, 64)
    memory[5] = 0
    stored, numbers = packed(memory, packing)
    lens = (draw(3, 64), draw(4, 64, 64)) if seen else None
    asked = draw(2, 3, 64)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 128 * block)
    means = numbers.reshape(23, 2, 64).mean(axis=1)
    means = (means - lens[0]) @ lens[1] if lens else means
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    expected = means / np.where(lengths, lengths, 1) @ asked.T
    expected[5] = 0
    np.testing.assert_allclose(pooled_cosines(stored, asked, packing, lens), expected, atol=1e-5)
