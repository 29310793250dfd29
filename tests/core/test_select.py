"""Scores are cosines, choices and their gradient those of numpy in float64, and what is missing is never chosen."""

from __future__ import annotations

from typing import NamedTuple, get_args

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import as_numpy, assert_same, difference, normal

from clara.core.config import Relevance
from clara.core.scoring import mean_scores, precision_at_k, recall_at_k, reciprocal_rank
from clara.core.select import (
    RECALL_AT,
    Lens,
    pairwise_scores,
    ranking_terms,
    relevance_scores,
    select_memory,
    straight_through_top_k,
)

seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([0.02, 0.5])
shares = st.sampled_from([0.0, 1e-8, 0.3])
HOWS = get_args(Relevance)


class Case(NamedTuple):
    """Scores, which of them are of real candidates, how many to choose, and what comes back to the weights."""

    scores: mx.array
    mask: mx.array
    top_k: int
    upstream: mx.array

    def choose(self, temperature: float, share: float = 0.0) -> tuple[mx.array, mx.array]:
        return straight_through_top_k(self.scores, self.mask, self.top_k, temperature, share)

    def gradient(self, temperature: float, share: float = 0.0) -> mx.array:
        return mx.grad(
            lambda scores: (self._replace(scores=scores).choose(temperature, share)[0] * self.upstream).sum()
        )(self.scores)


@st.composite
def cases(draw: st.DrawFn, ties: bool = True) -> Case:
    """Draws a batch with any candidates missing, more or fewer than are to be chosen, scores all apart or often equal.

    All scores but those that are equal lie so far apart that float32 keeps their order.
    """
    batch, count, top_k = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 5))
    rng, share = np.random.default_rng(draw(seeds)), draw(st.sampled_from([0.4, 0.8, 1.1]))
    scores = np.stack([rng.permutation(count) for _ in range(batch)]) / 8 + rng.random() - 0.5
    if ties and draw(st.booleans()):
        scores = rng.integers(-2, 3, (batch, count)) / 2
    mask = mx.array(rng.random((batch, count)) < share)
    return Case(mx.array(scores.astype(np.float32)), mask, top_k, normal(rng, batch, top_k, count))


def plain_choice(case: Case, temperature: float, share: float) -> tuple[np.ndarray, list[list[int]], np.ndarray]:
    """Return weights, indices and the gradient of weights · upstream in the scores, one pick at a time, in float64."""
    scores, mask, upstream = as_numpy(case.scores), np.array(case.mask), as_numpy(case.upstream)
    weights, indices, grad = np.zeros(upstream.shape), [], np.zeros(scores.shape)
    for b, row in enumerate(scores):
        left, picks = [int(n) for n in np.nonzero(mask[b])[0]], []
        for k in range(case.top_k):
            if not left:
                picks.append(-1)
                continue
            best = max(left, key=lambda n: (row[n], -n))
            top = max(row[n] for n in left)
            soft = np.array([np.exp((s - top) / temperature) if mask[b, n] else 0 for n, s in enumerate(row)])
            soft[[n for n in picks if n >= 0]] *= share
            soft /= soft.sum()
            grad[b] += soft * (upstream[b, k] - soft @ upstream[b, k]) / temperature
            weights[b, k, best] = 1
            left.remove(best)
            picks.append(best)
        indices.append(picks)
    return weights, indices, grad


@given(cases(), temperatures, shares)
def test_choices_are_the_best_that_are_left_the_earlier_of_equals(case: Case, temperature: float, share: float) -> None:
    weights, indices, _ = plain_choice(case, temperature, share)
    own_weights, own_indices = case.choose(temperature, share)
    assert own_indices.tolist() == indices
    np.testing.assert_array_equal(as_numpy(own_weights), weights)


@given(cases(), temperatures, shares)
def test_the_gradient_is_that_of_a_softmax_of_what_is_left(case: Case, temperature: float, share: float) -> None:
    expected = plain_choice(case, temperature, share)[2]
    # A logit is a score over the temperature, and exact to 1e-7 of itself; so are probabilities, and the gradient.
    np.testing.assert_allclose(as_numpy(case.gradient(temperature, share)), expected, atol=2e-5 / temperature)


@given(cases(), temperatures, shares)
def test_a_missing_candidate_is_never_chosen_and_has_no_gradient(case: Case, temperature: float, share: float) -> None:
    mask, (weights, indices) = np.array(case.mask), case.choose(temperature, share)
    for row, picks in zip(mask, indices.tolist(), strict=True):
        real = [pick for pick in picks if pick >= 0]
        assert len(set(real)) == len(real) == min(case.top_k, row.sum())
        assert row[real].all()
    assert not np.array(weights).transpose(0, 2, 1)[~mask].any()
    assert not np.array(case.gradient(temperature, share))[~mask].any()


@pytest.mark.parametrize("share", [0.0, 1e-8])
@pytest.mark.parametrize("padded", [0.0, 1.0, 1e4])
def test_the_worst_of_real_candidates_is_chosen_before_any_missing_one(padded: float, share: float) -> None:
    mask = mx.array([[True, False, True, False], [False, True, False, False]])
    case = Case(mx.where(mask, -1.0, padded), mask, 3, normal(np.random.default_rng(0), 2, 3, 4))
    weights, indices = case.choose(0.02, share)
    assert indices.tolist() == [[0, 2, -1], [1, -1, -1]]
    assert weights.sum(axis=-1).tolist() == [[1, 1, 0], [1, 0, 0]]
    grad = np.array(case.gradient(0.02, share))
    assert np.isfinite(grad).all() and not grad[~np.array(mask)].any()


def test_where_nothing_is_left_nothing_comes_back() -> None:
    case = Case(mx.zeros((1, 3)), mx.zeros((1, 3), dtype=mx.bool_), 2, mx.ones((1, 2, 3)))
    weights, indices = case.choose(0.02)
    assert (weights.tolist(), indices.tolist()) == ([[[0.0] * 3] * 2], [[-1, -1]])
    assert case.gradient(0.02).tolist() == [[0.0] * 3]


@given(cases(), temperatures)
def test_documents_that_were_taken_get_no_gradient_from_later_picks(case: Case, temperature: float) -> None:
    _, indices = case.choose(temperature)
    for k in range(case.top_k):
        later = case._replace(upstream=mx.where(mx.arange(case.top_k)[:, None] >= k, case.upstream, 0))
        grad = np.array(later.gradient(temperature))
        for row, picks in zip(grad, indices[:, :k].tolist(), strict=True):
            assert not row[[pick for pick in picks if pick >= 0]].any()


def test_a_taken_share_gives_taken_documents_a_gradient() -> None:
    case = Case(mx.array([[0.2, 0.1, 0.0]]), mx.ones((1, 3), dtype=mx.bool_), 2, mx.array([[[0.0] * 3, [1.0, 0, 0]]]))
    assert case.gradient(0.5).tolist()[0][0] == 0
    assert case.gradient(0.5, 1e-8).tolist()[0][0] > 0


@given(cases(ties=False), temperatures, shares, seeds)
def test_the_order_of_candidates_does_not_count(case: Case, temperature: float, share: float, seed: int) -> None:
    order = mx.array(np.random.default_rng(seed).permutation(case.scores.shape[1]))
    moved = Case(case.scores[:, order], case.mask[:, order], case.top_k, case.upstream[..., order])
    chosen = mx.where(moved.choose(temperature, share)[1] >= 0, order[moved.choose(temperature, share)[1]], -1)
    assert chosen.tolist() == case.choose(temperature, share)[1].tolist()
    grad = as_numpy(case.gradient(temperature, share))[:, np.array(order)]
    np.testing.assert_allclose(as_numpy(moved.gradient(temperature, share)), grad, atol=1e-6 / temperature)


def test_bfloat16_scores_are_chosen_in_float32() -> None:
    weights, indices = straight_through_top_k(mx.ones((1, 3), dtype=mx.bfloat16), mx.ones((1, 3)) > 0, 2, 0.02)
    assert (weights.dtype, indices.dtype) == (mx.float32, mx.int32)


@given(cases(), seeds)
def test_selected_memory_is_the_chosen_rows_bit_for_bit(case: Case, seed: int) -> None:
    batch, count = case.scores.shape
    memory = normal(np.random.default_rng(seed), batch, count, 2, 3)
    weights, indices = case.choose(0.02)
    expected = [
        [memory[b, pick] if pick >= 0 else mx.zeros((2, 3)) for pick in row] for b, row in enumerate(indices.tolist())
    ]
    assert_same(select_memory(weights, indices, memory), mx.stack([mx.stack(row) for row in expected]))


@given(cases(), seeds)
def test_the_gradient_of_selected_memory_is_that_of_weights_times_memory(case: Case, seed: int) -> None:
    rng, (batch, count) = np.random.default_rng(seed), case.scores.shape
    memory, upstream = normal(rng, batch, count, 2, 3), normal(rng, batch, case.top_k, 2, 3)
    weights, indices = case.choose(0.02)
    grads = mx.grad(lambda w, m: (select_memory(w, indices, m) * upstream).sum(), argnums=(0, 1))(weights, memory)
    above, flat = as_numpy(upstream), as_numpy(memory)
    np.testing.assert_allclose(as_numpy(grads[0]), np.einsum("bkmd,bnmd->bkn", above, flat), atol=1e-5)
    np.testing.assert_allclose(as_numpy(grads[1]), np.einsum("bkn,bkmd->bnmd", as_numpy(weights), above), atol=1e-5)


def test_selected_memory_keeps_the_dtype_of_memory() -> None:
    weights, indices = straight_through_top_k(mx.zeros((1, 3)), mx.ones((1, 3)) > 0, 2, 0.02)
    assert select_memory(weights, indices, mx.ones((1, 3, 2, 4), dtype=mx.bfloat16)).dtype == mx.bfloat16


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), seeds)
def test_scores_are_the_cosines_of_flattened_memories(batch: int, count: int, memory: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, documents = normal(rng, batch, memory, dim), 5 * normal(rng, batch, count, memory, dim)
    flat, other = as_numpy(query).reshape(batch, 1, -1), as_numpy(documents).reshape(batch, count, -1)
    cosines = (flat * other).sum(axis=-1) / np.linalg.norm(flat, axis=-1) / np.linalg.norm(other, axis=-1)
    np.testing.assert_allclose(as_numpy(relevance_scores(query, documents)), cosines, atol=1e-6)


def naive_late_scores(query: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Return how B questions score their N candidates by late interaction, one vector at a time, in float64."""
    out = np.zeros(memory.shape[:2])
    for b, n in np.ndindex(*out.shape):
        whole = np.linalg.norm(query[b]) or 1
        lengths = [np.linalg.norm(vector) or 1 for vector in memory[b, n]]
        for vector in query[b]:
            matches = [vector @ other / length for other, length in zip(memory[b, n], lengths, strict=True)]
            out[b, n] += max(matches) / whole / len(query[b]) ** 0.5
    return out


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), seeds)
def test_late_scores_are_sums_of_best_matches(batch: int, count: int, memory: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, documents = 3 * normal(rng, batch, memory, dim), 5 * normal(rng, batch, count, memory, dim)
    expected = naive_late_scores(as_numpy(query), as_numpy(documents))
    np.testing.assert_allclose(as_numpy(relevance_scores(query, documents, "late")), expected, atol=1e-6)


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([1.0, -1.0]), seeds)
def test_late_scores_reach_one_and_minus_one_and_no_further(tokens: int, dim: int, sign: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    direction = normal(rng, dim)
    query = mx.repeat(direction[None, None], tokens, axis=1)
    same = sign * mx.abs(normal(rng, 1, 1, tokens, 1)) * direction
    assert relevance_scores(query, same, "late").item() == pytest.approx(sign, abs=1e-5)
    scores = relevance_scores(normal(rng, 4, tokens, dim), normal(rng, 4, 9, tokens, dim), "late")
    assert mx.abs(scores).max().item() <= 1 + 1e-6


def test_the_order_of_a_documents_memory_vectors_does_not_count_to_late_scores() -> None:
    rng = np.random.default_rng(0)
    query, memory = normal(rng, 2, 4, 8), normal(rng, 2, 3, 4, 8)
    turned = memory[:, :, mx.array([2, 0, 3, 1])]
    assert difference(relevance_scores(query, turned, "late"), relevance_scores(query, memory, "late")) <= 1e-6
    assert difference(relevance_scores(query, turned), relevance_scores(query, memory)) > 0.1


def test_the_gradient_of_late_scores_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(4)
    case, upstream = (normal(rng, 2, 3, 4), normal(rng, 2, 3, 3, 4)), normal(rng, 2, 3)
    grads = mx.grad(lambda q, m: (relevance_scores(q, m, "late") * upstream).sum(), argnums=(0, 1))(*case)
    for place, grad in enumerate(grads):
        expected = np.zeros(grad.shape)
        for at in np.ndindex(*grad.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [as_numpy(each) for each in case]
                moved[place][at] += step
                ends.append((naive_late_scores(*moved) * as_numpy(upstream)).sum())
            expected[at] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(as_numpy(grad), expected, atol=1e-5)


@pytest.mark.parametrize("how", HOWS)
def test_a_memory_of_zeros_scores_zero_with_a_finite_gradient(how: Relevance) -> None:
    query, memory = normal(np.random.default_rng(0), 1, 2, 3), mx.zeros((1, 4, 2, 3))
    value, grads = mx.value_and_grad(lambda q, m: relevance_scores(q, m, how).sum(), argnums=(0, 1))(query, memory)
    assert value.item() == 0
    assert all(mx.isfinite(grad).all().item() for grad in grads)
    none = mx.zeros_like(query)
    value, grad = mx.value_and_grad(lambda q: relevance_scores(q, memory + 1, how).sum())(none)
    assert value.item() == 0 and mx.isfinite(grad).all().item()


@pytest.mark.parametrize("how", HOWS)
def test_bfloat16_memories_are_scored_in_float32(how: Relevance) -> None:
    rng = np.random.default_rng(0)
    query, memory = (normal(rng, *shape).astype(mx.bfloat16) for shape in ((2, 4, 64), (2, 5, 4, 64)))
    scores = relevance_scores(query, memory, how)
    assert scores.dtype == mx.float32
    assert difference(scores, relevance_scores(query.astype(mx.float32), memory.astype(mx.float32), how)) == 0


@pytest.mark.parametrize("how", HOWS)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 3), st.integers(1, 6), seeds)
def test_pairwise_scores_are_those_of_every_question_with_every_document(
    how: Relevance, batch: int, count: int, memory: int, dim: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    query, documents = normal(rng, batch, memory, dim), normal(rng, count, memory, dim)
    expected = relevance_scores(query, mx.broadcast_to(documents[None], (batch, *documents.shape)), how)
    np.testing.assert_allclose(as_numpy(pairwise_scores(query, documents, how)), as_numpy(expected), atol=1e-6)


@settings(max_examples=100)
@given(cases(), st.floats(0.1, 1), st.integers(1, 9), seeds)
def test_ranking_terms_are_the_scores_of_ranked_lists(case: Case, share: float, top_k: int, seed: int) -> None:
    mask, positives = np.array(case.mask), np.random.default_rng(seed).random(case.mask.shape) < share
    rows = []
    for scores, real, right in zip(as_numpy(case.scores), mask, positives & mask, strict=True):
        ranked, wanted = sorted(np.nonzero(real)[0].tolist(), key=lambda n: (-scores[n], n)), np.nonzero(right)[0]
        if wanted.size:
            found = {f"recall_at_{k}": recall_at_k(ranked, wanted.tolist(), k) for k in RECALL_AT}
            precision, mrr = precision_at_k(ranked, wanted.tolist(), top_k), reciprocal_rank(ranked, wanted.tolist())
            rows.append(found | {f"precision_at_{top_k}": precision, "mrr": mrr})
    terms = ranking_terms(case.scores, mx.array(positives), case.mask, top_k)
    assert {count.item() for _, count in terms.values()} == {len(rows)}
    means = {name: total.item() / len(rows) for name, (total, _) in terms.items() if rows}
    assert means == pytest.approx(mean_scores(rows), abs=1e-6)


def test_of_equal_scores_the_earlier_candidate_ranks_first() -> None:
    scores, everything = mx.array([[0.5, 0.5, 0.9, 0.5]]), mx.ones((1, 4)) > 0
    firsts = [1 / ranking_terms(scores, mx.arange(4)[None] == n, everything, 2)["mrr"][0].item() for n in range(4)]
    assert firsts == pytest.approx([2, 3, 1, 4])


def test_without_a_positive_ranking_terms_are_zero_of_zero() -> None:
    nothing = mx.zeros((2, 3), dtype=mx.bool_)
    terms = ranking_terms(mx.zeros((2, 3)), nothing, ~nothing, 5)
    assert [(total.item(), count.item()) for total, count in terms.values()] == [(0, 0)] * 5
    assert terms.keys() == {"recall_at_1", "recall_at_3", "recall_at_5", "precision_at_5", "mrr"}


def test_pooled_scores_are_cosines_of_mean_memories_through_the_lens() -> None:
    rng = np.random.default_rng(0)
    query, memory = normal(rng, 3, 4, 6), normal(rng, 3, 5, 4, 6)
    lens = Lens(normal(rng, 6), normal(rng, 6, 6))
    asked, stored = (
        (as_numpy(each).mean(axis=-2) - as_numpy(lens.center)) @ as_numpy(lens.map) for each in (query, memory)
    )
    lengths = np.linalg.norm(asked, axis=-1)[:, None] * np.linalg.norm(stored, axis=-1)
    expected = np.einsum("bd,bnd->bn", asked, stored) / lengths
    np.testing.assert_allclose(as_numpy(relevance_scores(query, memory, "pooled", lens)), expected, atol=1e-5)
    wide = pairwise_scores(query, memory[0], "pooled", lens)
    np.testing.assert_allclose(as_numpy(wide)[0], expected[0], atol=1e-5)


def test_through_a_lens_a_memory_of_zeros_still_scores_zero() -> None:
    rng = np.random.default_rng(0)
    lens = Lens(normal(rng, 6), normal(rng, 6, 6))
    query, memory = normal(rng, 1, 4, 6), mx.zeros((1, 2, 4, 6))
    assert as_numpy(relevance_scores(query, memory, "pooled", lens)).tolist() == [[0.0, 0.0]]
    grad = mx.grad(lambda lens: relevance_scores(query, memory, "pooled", Lens(*lens)).sum())(tuple(lens))
    assert all(mx.isfinite(leaf).all() for leaf in grad)
