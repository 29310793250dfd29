"""States on a plane: what principal components promise, and how near memories are to documents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.core.projection import nearness, principal_plane, unit, whitening


def drawn(seed: int, count: int, size: int) -> np.ndarray:
    """Return normal numbers, float32, of unequal spread."""
    return (np.random.default_rng(seed).normal(size=(count, size)) * np.arange(1, size + 1)).astype(np.float32)


@settings(max_examples=40)
@given(seed=st.integers(0, 99), count=st.integers(2, 12), size=st.integers(2, 9))
def test_the_plane_agrees_with_the_covariance(seed: int, count: int, size: int) -> None:
    rows = drawn(seed, count, size)
    plane = principal_plane(rows)
    variances = np.sort(np.linalg.eigvalsh(np.cov(rows.astype(np.float64).T)))[::-1]
    assert plane.places.var(axis=0, ddof=1) == pytest.approx(variances[:2], abs=1e-6 * variances[0])
    assert plane.explained == pytest.approx(variances[:2] / variances.sum(), abs=1e-6)
    assert np.abs(plane.places.mean(axis=0)).max() < 1e-6 * max(np.abs(rows).max(), 1)


def test_rows_on_a_plane_keep_their_distances() -> None:
    flat = drawn(3, 7, 2).astype(np.float64)
    turned = flat @ np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0].T
    places = principal_plane(turned).places
    assert np.linalg.norm(places[0] - places[1:], axis=1) == pytest.approx(np.linalg.norm(flat[0] - flat[1:], axis=1))
    assert sum(principal_plane(turned).explained) == pytest.approx(1)


def test_moving_all_rows_or_repeating_the_work_changes_no_place() -> None:
    rows = drawn(1, 6, 4)
    assert np.array_equal(principal_plane(rows).places, principal_plane(rows).places)
    assert principal_plane(rows + 8).places == pytest.approx(principal_plane(rows).places, abs=1e-4)


def test_without_variance_everything_is_at_the_centre() -> None:
    plane = principal_plane(np.ones((4, 3), np.float32))
    assert np.array_equal(plane.places, np.zeros((4, 2))) and plane.explained == (0.0, 0.0)
    line = principal_plane(np.array([[1.0], [3.0]])).places
    assert line == pytest.approx(np.array([[-1.0, 0.0], [1.0, 0.0]]))


def test_nearness_is_of_directions() -> None:
    memory, documents = np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    own, other = nearness(memory, documents)
    assert own == pytest.approx((1 + 0.5**0.5) / 2) and other == pytest.approx((0.5**0.5 + 0) / 2)


def test_rows_of_length_one() -> None:
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


@pytest.mark.parametrize("size", [1, 5])
def test_whitened_rows_vary_alike_in_all_directions(size: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, size)) @ rng.normal(size=(size, size)) + 7
    center, weights = whitening(rows, share=0.0)
    seen = (rows - center) @ weights
    covariance = seen.T @ seen / len(rows)
    np.testing.assert_allclose(covariance, covariance[0, 0] * np.eye(size), atol=1e-4 * covariance[0, 0])
    np.testing.assert_allclose(weights, weights.T, atol=1e-6)
    assert (center.dtype, weights.dtype) == (np.float32, np.float32)
    assert np.diagonal(weights).mean() == pytest.approx(1.0)


def test_rows_without_variance_are_whitened_by_the_identity() -> None:
    center, weights = whitening(np.full((3, 4), 2.0))
    np.testing.assert_allclose(center, np.full(4, 2.0))
    np.testing.assert_allclose(weights, np.eye(4), atol=1e-6)
