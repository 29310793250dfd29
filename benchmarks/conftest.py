"""Flags as `python -m clara.shell.bench` has them; `--size` is tiny here unless another one is given."""

from __future__ import annotations

import clara  # noqa: F401  # isort: skip  (its BLAS has to be there before MLX)

from collections.abc import Iterator

import pytest

from clara.shell.bench import matrix_result
from clara.shell.benching.cases import all_cases
from clara.shell.benching.options import SHOWN, BenchOptions, add_flags, destinations, to_bench_options
from clara.shell.benching.workbench import Workbench, workbench
from clara.shell.setup import prepare_device


def pytest_addoption(parser: pytest.Parser) -> None:
    add_flags(parser.getgroup("clara").addoption, without=SHOWN)


def options_of(config: pytest.Config) -> BenchOptions:
    given = {name: getattr(config.option, name) for name in destinations(SHOWN)}
    return to_bench_options({**given, "size": given["size"] or "tiny"})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = all_cases(options_of(metafunc.config))
    marked = [pytest.param(case, id=case.path, marks=pytest.mark.benchmark(group=case.group)) for case in cases]
    metafunc.parametrize("case", marked)


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Workbench]:
    options = options_of(request.config)
    with workbench(options, prepare_device(options.compile)) as found:
        yield found


@pytest.fixture(scope="session")
def matrix(bench: Workbench) -> float:
    """Return the floating-point operations per second of a matrix product."""
    return matrix_result(bench).flops_per_second
