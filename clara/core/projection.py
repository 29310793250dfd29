"""High-dimensional states: on the plane of their principal components, and whitened."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Projection(NamedTuple):
    """Rows on a plane."""

    places: np.ndarray
    """float64[n, 2]."""
    explained: tuple[float, float]
    """Share of the rows' variance along each of the two axes."""


def principal_plane(rows: np.ndarray) -> Projection:
    """Return rows: float[n, D] on the plane of their two principal components, centred.

    Of each component the coordinate of largest size is positive, so that equal rows give equal places. Without
    variance, or with one dimension, what is missing is zero.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    places = np.zeros((len(rows), 2))
    count = min(2, len(sizes))
    places[:, :count] = (left * sizes * signs)[:, :count]
    total = float((sizes**2).sum())
    shares = [float(size**2) / total if total else 0.0 for size in sizes[:2]]
    first, second = (*shares, 0.0, 0.0)[:2]
    return Projection(places, (first, second))


def nearness(memory: np.ndarray, documents: np.ndarray) -> tuple[float, float]:
    """Return the mean cosine of a memory state to its own document's state, and to those of the other documents.

    memory, documents: float[n, D], row by row of the same documents, n ≥ 2.
    """
    cosines = unit(memory) @ unit(documents).T
    own = float(np.trace(cosines)) / len(cosines)
    return own, float(cosines.sum() - np.trace(cosines)) / (len(cosines) * (len(cosines) - 1))


def whitening(rows: np.ndarray, share: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Return (center, map): float32[D], float32[D, D]: (rows − center) @ map varies alike in all directions.

    rows: float[n, D]. share: of the mean variance, added to that of every direction, so that directions in which rows
    hardly vary are not blown up. The map is symmetric and has a mean of 1 on its diagonal.
    """
    center = rows.mean(axis=0, dtype=np.float64)
    centred = rows - center
    sizes, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    sizes = np.maximum(sizes, 0)
    whitened = (axes / np.sqrt(sizes + share * sizes.mean() + 1e-12)) @ axes.T
    return center.astype(np.float32), (whitened / np.trace(whitened) * len(whitened)).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows: float[n, D] as float64 of length 1; a row of zeros stays one."""
    wide = rows.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
