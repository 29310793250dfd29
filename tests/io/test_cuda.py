"""What the CUDA driver is told about freed memory, by a driver that notes it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from clara.io import cuda
from clara.io.cuda import keep_kernels, keep_memory, launch_plainly


class Driver:
    """A driver whose calls succeed until the one that is to fail."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuDeviceGetDefaultMemPool":
                arguments[0]._obj.value = 77
            if name == "cuMemPoolSetAttribute":
                pool, attribute, value = arguments
                self.told = (pool.value, attribute, value._obj.value)
            return int(name == self.failing)

        return call


CALLS = ["cuInit", "cuDeviceGet", "cuDeviceGetDefaultMemPool", "cuMemPoolSetAttribute"]


def test_the_default_pool_is_told_to_keep_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver if name == cuda.DRIVER else None)
    assert keep_memory()
    assert driver.called == CALLS and driver.told == (77, 4, 2**64 - 1)


@pytest.mark.parametrize("failing", CALLS)
def test_a_call_that_fails_ends_it_without_an_error(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(failing)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert not keep_memory()
    assert driver.called == CALLS[: CALLS.index(failing) + 1]


def test_without_a_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER", "no-such-library.so.1")
    assert not keep_memory()


@pytest.mark.parametrize(("given", "wanted"), [(None, "0"), ("1", "1")])
def test_graphs_are_left_out_unless_they_are_asked_for(
    given: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_USE_CUDA_GRAPHS", given or "")
    if given is None:
        monkeypatch.delenv("MLX_USE_CUDA_GRAPHS")
    launch_plainly()
    assert os.environ["MLX_USE_CUDA_GRAPHS"] == wanted


def test_kernels_are_kept_in_the_cache_by_the_release_of_mlx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path))
    monkeypatch.delenv("MLX_PTX_CACHE_DIR", raising=False)
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": "sm_90"})
    found = keep_kernels()
    assert found == tmp_path / f"kernels-mlx-{mx.__version__}-sm_90"
    assert os.environ["MLX_PTX_CACHE_DIR"] == str(found)


def test_a_folder_for_kernels_that_was_given_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "own"))
    assert keep_kernels() == tmp_path / "own"
