"""One fixed hypothesis profile, one seed, and the fast BLAS before MLX."""

from __future__ import annotations

import clara  # noqa: F401  # isort: skip  (its BLAS has to be there before MLX)

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "clara",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("clara")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    mx.random.seed(0)
