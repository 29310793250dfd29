"""The loss terms equal plain numpy in float64, in value and gradient, whatever the mask and the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import as_numpy, difference, normal

from clara.core.losses import (
    alignment_loss,
    chunked_divergence,
    chunked_next_token_loss,
    contrastive_loss,
    next_token_loss,
)

seeds = st.integers(0, 2**31)
chunks = st.integers(1, 12)


class Case(NamedTuple):
    """Hidden states, a head, targets and a mask."""

    hidden: mx.array
    weight: mx.array
    targets: mx.array
    mask: mx.array

    @property
    def logits(self) -> mx.array:
        return self.hidden @ self.weight

    def head(self, rows: mx.array) -> mx.array:
        return rows @ self.weight.astype(rows.dtype)


def make_case(seed: int, shape: tuple[int, int] = (2, 4), vocabulary: int = 7, share: float = 0.5) -> Case:
    rng = np.random.default_rng(seed)
    targets, mask = rng.integers(0, vocabulary, shape, dtype=np.int32), rng.random(shape) < share
    return Case(normal(rng, *shape, 5), normal(rng, 5, vocabulary), mx.array(targets), mx.array(mask))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draws any mask: empty, full, or in between."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return make_case(draw(seeds), shape, draw(st.integers(1, 9)), draw(st.sampled_from([0.0, 0.3, 0.7, 1.1])))


def plain_loss(logits: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the summed cross-entropy and its gradient in the logits, softmax − one-hot, position by position."""
    total, grad = 0.0, np.zeros_like(logits)
    for place in zip(*np.nonzero(mask), strict=True):
        row = logits[place]
        top = row.max()
        log_sum = top + np.log(np.exp(row - top).sum())
        total += log_sum - row[targets[place]]
        grad[place] = np.exp(row - log_sum)
        grad[(*place, targets[place])] -= 1
    return total, grad


def plain(case: Case, logits: mx.array | None = None) -> tuple[float, np.ndarray]:
    rows = case.logits if logits is None else logits
    return plain_loss(as_numpy(rows), np.array(case.targets), np.array(case.mask))


def chunked(case: Case, chunk: int) -> tuple[mx.array, mx.array]:
    """Return the value of the chunked loss and its gradient in the hidden states."""
    return mx.value_and_grad(
        lambda hidden: chunked_next_token_loss(case.head, hidden, case.targets, case.mask, chunk)[0]
    )(case.hidden)


@given(cases())
def test_next_token_loss_equals_numpy(case: Case) -> None:
    total, _ = next_token_loss(case.logits, case.targets, case.mask)
    assert total.item() == pytest.approx(plain(case)[0], rel=1e-5, abs=1e-5)


@given(cases())
def test_the_gradient_of_next_token_loss_is_softmax_minus_one_hot(case: Case) -> None:
    grad = mx.grad(lambda logits: next_token_loss(logits, case.targets, case.mask)[0])(case.logits)
    np.testing.assert_allclose(as_numpy(grad), plain(case)[1], atol=1e-5)


@given(cases(), chunks)
def test_chunked_next_token_loss_equals_numpy(case: Case, chunk: int) -> None:
    total, _ = chunked_next_token_loss(case.head, case.hidden, case.targets, case.mask, chunk)
    assert total.item() == pytest.approx(plain(case)[0], rel=1e-5, abs=1e-5)


@given(cases(), chunks)
def test_the_gradient_of_the_chunked_loss_is_softmax_minus_one_hot_through_the_head(case: Case, chunk: int) -> None:
    expected = plain(case)[1] @ as_numpy(case.weight).T
    np.testing.assert_allclose(as_numpy(chunked(case, chunk)[1]), expected, atol=2e-5)


@given(cases(), chunks)
def test_chunked_and_whole_loss_have_equal_gradients(case: Case, chunk: int) -> None:
    whole = mx.grad(lambda hidden: next_token_loss(case.head(hidden), case.targets, case.mask)[0])(case.hidden)
    np.testing.assert_allclose(as_numpy(chunked(case, chunk)[1]), as_numpy(whole), atol=2e-5)


@given(cases(), chunks)
def test_the_count_is_the_number_of_kept_positions(case: Case, chunk: int) -> None:
    counts = [
        next_token_loss(case.logits, case.targets, case.mask)[1],
        chunked_next_token_loss(case.head, case.hidden, case.targets, case.mask, chunk)[1],
    ]
    assert [(count.dtype, count.item()) for count in counts] == [(mx.float32, np.array(case.mask).sum())] * 2


def test_the_chunked_gradient_scales_with_what_comes_after() -> None:
    case = make_case(0)
    halved = mx.grad(lambda hidden: chunked_next_token_loss(case.head, hidden, case.targets, case.mask, 3)[0] * 0.5)(
        case.hidden
    )
    assert difference(halved, 0.5 * chunked(case, 3)[1]) <= 1e-6


@pytest.mark.parametrize("chunk", [1, 3, 5, 7, 100])
def test_the_head_never_sees_more_positions_than_a_chunk(chunk: int) -> None:
    case, seen = make_case(0, (2, 5)), []

    def head(rows: mx.array) -> mx.array:
        seen.append(rows.shape)
        return case.head(rows)

    def loss(hidden: mx.array) -> mx.array:
        return chunked_next_token_loss(head, hidden, case.targets, case.mask, chunk)[0]

    mx.eval(mx.grad(loss)(case.hidden))
    assert max(rows[1] for rows in seen) == min(chunk, 10)
    assert sum(rows[1] for rows in seen) == 10


def whole_loss(case: Case) -> mx.array:
    return next_token_loss(case.logits, case.targets, case.mask)[0]


def chunked_loss(case: Case) -> mx.array:
    return chunked_next_token_loss(case.head, case.hidden, case.targets, case.mask, 3)[0]


@pytest.mark.parametrize("loss", [whole_loss, chunked_loss])
@given(case=cases())
def test_a_mask_equals_leaving_positions_out(loss: Callable[[Case], mx.array], case: Case) -> None:
    kept = mx.array(np.nonzero(np.array(case.mask).reshape(-1))[0])
    if kept.size == 0:
        assert loss(case).item() == 0.0
        return
    hidden, targets = case.hidden.reshape(1, -1, 5)[:, kept], case.targets.reshape(1, -1)[:, kept]
    alone = case._replace(hidden=hidden, targets=targets, mask=mx.ones(targets.shape, dtype=mx.bool_))
    assert loss(case).item() == pytest.approx(loss(alone).item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("loss", [whole_loss, chunked_loss])
@given(case=cases(), seed=seeds)
def test_what_is_masked_does_not_count(loss: Callable[[Case], mx.array], case: Case, seed: int) -> None:
    noise = 1e4 * normal(np.random.default_rng(seed), *case.hidden.shape)
    other = case._replace(hidden=mx.where(case.mask[..., None], case.hidden, noise))
    assert loss(other).item() == pytest.approx(loss(case).item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.1])
@pytest.mark.parametrize("kind", ["whole", "chunked"])
@given(seed=seeds)
def test_huge_logits_stay_finite_in_value_and_gradient(kind: str, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.choice([-1e30, -1e4, 0.0, 1e4], (2, 4, 6)).astype(np.float32)
    logits[..., 0] = rng.choice([-1e4, 1e4], (2, 4))
    targets, mask = mx.array(rng.integers(0, 6, (2, 4), dtype=np.int32)), mx.array(rng.random((2, 4)) < share)

    def loss(logits: mx.array) -> mx.array:
        if kind == "whole":
            return next_token_loss(logits, targets, mask)[0]
        return chunked_next_token_loss(lambda rows: rows, logits, targets, mask, 3)[0]

    value, grad = mx.value_and_grad(loss)(mx.array(logits))
    expected, slope = plain_loss(logits.astype(np.float64), np.array(targets), np.array(mask))
    # Eight positions, each as exact as float32 is at 1e4.
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=8e-3)
    np.testing.assert_allclose(as_numpy(grad), slope, atol=1e-5)


@pytest.mark.parametrize("kind", ["whole", "chunked"])
def test_infinite_hidden_states_that_are_masked_leave_the_value_finite(kind: str) -> None:
    logits = mx.array([[[1.0, 2.0], [mx.inf, mx.inf]]])
    targets, mask = mx.array([[0, 0]]), mx.array([[True, False]])
    if kind == "whole":
        total, _ = next_token_loss(logits, targets, mask)
    else:
        total, _ = chunked_next_token_loss(lambda rows: rows, logits, targets, mask, 1)
    assert total.item() == pytest.approx(np.log(1 + np.e), rel=1e-6)


def test_bfloat16_hidden_states_give_a_float32_loss_of_their_own_logits() -> None:
    case = make_case(0)
    case = case._replace(hidden=case.hidden.astype(mx.bfloat16))
    total, count = chunked_next_token_loss(case.head, case.hidden, case.targets, case.mask, 3)
    assert (total.dtype, count.dtype) == (mx.float32, mx.float32)
    assert total.item() == pytest.approx(plain(case, case.head(case.hidden))[0], rel=1e-5)


def test_bfloat16_hidden_states_have_a_bfloat16_gradient() -> None:
    case = make_case(0)
    case = case._replace(hidden=case.hidden.astype(mx.bfloat16))
    grad = chunked(case, 3)[1]
    expected = plain(case, case.head(case.hidden))[1] @ as_numpy(case.weight).T
    assert grad.dtype == mx.bfloat16
    assert difference(grad, expected) <= 0.02


def test_next_token_loss_of_bfloat16_logits_is_computed_in_float32() -> None:
    case = make_case(0)
    logits = case.logits.astype(mx.bfloat16)
    total, _ = next_token_loss(logits, case.targets, case.mask)
    assert total.dtype == mx.float32
    assert total.item() == pytest.approx(plain(case, logits)[0], rel=1e-5)


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1), seeds)
def test_alignment_loss_equals_numpy(rows: int, dim: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    memory, document, mask = normal(rng, rows, dim), normal(rng, rows, dim), rng.random(rows) < share
    total, count = alignment_loss(memory, document, mx.array(mask))
    squares = ((as_numpy(memory) - as_numpy(document)) ** 2).mean(axis=-1)
    assert total.item() == pytest.approx(squares[mask].sum(), rel=1e-5)
    assert count.item() == mask.sum()


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1), seeds)
def test_the_gradient_of_alignment_loss_equals_numpy(rows: int, dim: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    memory, document, mask = normal(rng, rows, dim), normal(rng, rows, dim), rng.random(rows) < share
    grads = mx.grad(lambda m, d: alignment_loss(m, d, mx.array(mask))[0], argnums=(0, 1))(memory, document)
    slope = np.where(mask[:, None], 2 / dim * (as_numpy(memory) - as_numpy(document)), 0)
    np.testing.assert_allclose(as_numpy(grads[0]), slope, atol=1e-5)
    np.testing.assert_allclose(as_numpy(grads[1]), -slope, atol=1e-5)


def test_alignment_loss_of_filler_rows_alone_is_zero_of_zero() -> None:
    total, count = alignment_loss(mx.full((2, 3), mx.inf), mx.zeros((2, 3)), mx.array([False, False]))
    assert (total.item(), count.item()) == (0.0, 0.0)


class Ranked(NamedTuple):
    """Scores of candidates, which of them are right, and which there are."""

    scores: mx.array
    positives: mx.array
    mask: mx.array

    def loss(self, temperature: float) -> tuple[mx.array, mx.array]:
        return contrastive_loss(self.scores, self.positives, self.mask, temperature)

    def gradient(self, temperature: float) -> mx.array:
        return mx.grad(lambda scores: self._replace(scores=scores).loss(temperature)[0])(self.scores)


@st.composite
def ranked(draw: st.DrawFn) -> Ranked:
    """Draws cosines with no, some or all candidates right, and any of them missing, right ones too."""
    rng, shape = np.random.default_rng(draw(seeds)), (draw(st.integers(1, 4)), draw(st.integers(1, 6)))
    right, there = (draw(st.sampled_from([0.0, 0.3, 0.7, 1.1])) for _ in range(2))
    masks = (mx.array(rng.random(shape) < share) for share in (right, there))
    return Ranked(mx.array(rng.uniform(-1, 1, shape).astype(np.float32)), *masks)


def plain_contrastive(case: Ranked, temperature: float) -> tuple[float, int, np.ndarray]:
    """Return the loss, its count and its gradient in the scores, one question at a time in float64."""
    scores, mask = as_numpy(case.scores), np.array(case.mask)
    right, total, count, grad = np.array(case.positives) & mask, 0.0, 0, np.zeros(scores.shape)
    for b in np.nonzero(right.any(axis=-1))[0]:
        weights = np.where(mask[b], np.exp((scores[b] - scores[b].max()) / temperature), 0)
        among, all_of = np.where(right[b], weights, 0), weights
        total -= np.log(among.sum() / all_of.sum())
        grad[b] = (all_of / all_of.sum() - among / among.sum()) / temperature
        count += 1
    return total, count, grad


@pytest.mark.parametrize("temperature", [0.02, 0.5])
@given(ranked())
def test_contrastive_loss_equals_numpy(temperature: float, case: Ranked) -> None:
    total, count = case.loss(temperature)
    expected, questions, grad = plain_contrastive(case, temperature)
    assert (count.dtype, count.item()) == (mx.float32, questions)
    # A logit is a score over the temperature, exact to 1e-7 of itself.
    assert total.item() == pytest.approx(expected, rel=1e-5, abs=1e-6 / temperature)
    np.testing.assert_allclose(as_numpy(case.gradient(temperature)), grad, atol=1e-5 / temperature)


@pytest.mark.parametrize("mask", [[True] * 3, [True, False, True], [False] * 3])
def test_a_question_without_a_positive_counts_nothing_and_has_a_zero_gradient(mask: list[bool]) -> None:
    missing = [not there for there in mask]
    case = Ranked(mx.array([[0.9, -0.2, 0.4]]), mx.array([missing]), mx.array([mask]))
    total, count = case.loss(0.02)
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert case.gradient(0.02).tolist() == [[0.0] * 3]


def test_questions_without_a_positive_leave_the_others_as_they_are() -> None:
    rng = np.random.default_rng(0)
    case = Ranked(normal(rng, 3, 4), mx.array([[0, 1, 0, 1], [0] * 4, [1, 0, 0, 0]]) > 0, mx.ones((3, 4)) > 0)
    alone = Ranked(*(each[mx.array([0, 2])] for each in case))
    assert [each.item() for each in case.loss(0.02)] == [each.item() for each in alone.loss(0.02)]
    assert difference(case.gradient(0.02)[mx.array([0, 2])], alone.gradient(0.02)) == 0
    assert not case.gradient(0.02)[1].any().item()


def test_where_every_candidate_is_right_there_is_nothing_to_learn() -> None:
    case = Ranked(normal(np.random.default_rng(0), 2, 4), mx.ones((2, 4)) > 0, mx.ones((2, 4)) > 0)
    total, count = case.loss(0.02)
    assert (total.item(), count.item()) == (0.0, 2.0)
    assert difference(case.gradient(0.02), mx.zeros((2, 4))) == 0


@pytest.mark.parametrize("other", [1e4, mx.inf])
def test_the_score_of_a_missing_candidate_does_not_count(other: float) -> None:
    mask = mx.array([[True, True, False]])
    case = Ranked(mx.array([[0.3, 0.2, 0.0]]), mx.array([[True, False, True]]), mask)
    changed = case._replace(scores=mx.where(mask, case.scores, other))
    assert changed.loss(0.02)[0].item() == case.loss(0.02)[0].item()
    assert changed.gradient(0.02).tolist() == case.gradient(0.02).tolist()
    assert changed.gradient(0.02).tolist()[0][2] == 0


def test_cosines_as_far_apart_as_can_be_stay_finite() -> None:
    case = Ranked(mx.array([[-1.0, 1.0, 1.0]]), mx.array([[True, False, False]]), mx.ones((1, 3)) > 0)
    assert case.loss(0.02)[0].item() == pytest.approx(100 + np.log(2), rel=1e-6)
    np.testing.assert_allclose(as_numpy(case.gradient(0.02)), [[-50, 25, 25]], rtol=1e-6)


def plain_divergence(case: Case, teacher: mx.array) -> tuple[float, np.ndarray]:
    """Return Σ p (log p − log q) over the mask, and its gradient in the student's logits, q − p."""
    wanted, found = (as_numpy(hidden @ case.weight) for hidden in (teacher, case.hidden))
    wanted, found = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (wanted, found))
    kept = np.array(case.mask)[..., None]
    return float((kept * np.exp(wanted) * (wanted - found)).sum()), kept * (np.exp(found) - np.exp(wanted))


def teacher_of(case: Case, seed: int) -> mx.array:
    return normal(np.random.default_rng(seed), *case.hidden.shape)


def divergence(case: Case, teacher: mx.array, chunk: int) -> tuple[mx.array, mx.array]:
    """Return the chunked divergence and its gradient in the student's hidden states."""
    return mx.value_and_grad(lambda hidden: chunked_divergence(case.head, hidden, teacher, case.mask, chunk)[0])(
        case.hidden
    )


@given(cases(), chunks, seeds)
def test_divergence_equals_numpy_in_value_and_gradient(case: Case, chunk: int, seed: int) -> None:
    teacher = teacher_of(case, seed)
    total, grad = divergence(case, teacher, chunk)
    expected, logits_grad = plain_divergence(case, teacher)
    assert total.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(as_numpy(grad), logits_grad @ as_numpy(case.weight).T, atol=2e-5)


@given(cases(), chunks)
def test_divergence_counts_kept_positions_and_is_zero_of_equal_states(case: Case, chunk: int) -> None:
    total, count = chunked_divergence(case.head, case.hidden, case.hidden, case.mask, chunk)
    assert total.item() == 0 and count.item() == np.array(case.mask).sum()
    assert mx.abs(divergence(case, case.hidden, chunk)[1]).max().item() < 1e-6


def test_a_teacher_has_no_gradient() -> None:
    case = make_case(0)
    grad = mx.grad(lambda taught: chunked_divergence(case.head, case.hidden, taught, case.mask, 3)[0])(
        teacher_of(case, 1)
    )
    assert mx.abs(grad).max().item() == 0


@given(cases(), seeds)
def test_a_masked_divergence_is_that_of_what_is_kept(case: Case, seed: int) -> None:
    teacher = teacher_of(case, seed)
    wild = mx.where(case.mask[..., None], teacher, 1e4)
    assert divergence(case, wild, 3)[0].item() == divergence(case, teacher, 3)[0].item()


def test_bfloat16_states_give_a_float32_divergence_and_a_bfloat16_gradient() -> None:
    case = make_case(0)
    half = case._replace(hidden=case.hidden.astype(mx.bfloat16))
    total, grad = divergence(half, teacher_of(case, 1).astype(mx.bfloat16), 3)
    assert (total.dtype, grad.dtype) == (mx.float32, mx.bfloat16)
    assert total.item() == pytest.approx(plain_divergence(case, teacher_of(case, 1))[0], rel=0.05)
