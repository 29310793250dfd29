"""`--size tiny` (seconds on any machine, random weights) or `--size smollm2` (the shape of the built-in base).

`--rows N` makes batches of another size, `--passages N` stores.
"""

from __future__ import annotations

import clara  # noqa: F401  # isort: skip  (its BLAS has to be there before MLX)

import pytest
from shapes import SIZES, Setup, make_setup


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=sorted(SIZES), default="tiny", help="shapes to benchmark")
    parser.addoption("--rows", type=int, metavar="N", help="examples of a batch [2]")
    parser.addoption("--passages", type=int, metavar="N", help="passages of a store [1000, of smollm2 10000]")


@pytest.fixture(scope="session")
def setup(request: pytest.FixtureRequest) -> Setup:
    size, rows = SIZES[request.config.getoption("--size")], request.config.getoption("--rows")
    return make_setup(size._replace(rows=rows or size.rows))
