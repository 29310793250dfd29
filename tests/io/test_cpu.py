"""The BLAS that MLX uses on Linux: what is said about it, the renamed copy, and the products it computes."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clara.io import cpu
from clara.io.cpu import SLOW, renamed_openblas

linux = pytest.mark.skipif(sys.platform != "linux", reason="acts on Linux only")
packaged = pytest.mark.skipif(
    sys.platform != "linux" or importlib.util.find_spec("scipy_openblas32") is None,
    reason="needs Linux and the package scipy-openblas32 (pip install 'clara-mlx[cpu]')",
)
LINE = "import clara; from clara.io import cpu; print(cpu.preload())"
PRODUCTS = """
import clara, mlx.core as mx, numpy as np
mx.set_default_device(mx.cpu)
rng = np.random.default_rng(0)
for m, k, n in ((1, 7, 5), (33, 64, 17), (128, 200, 96)):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for left in (mx.array(a), mx.array(a.T.copy()).T):
        for right in (mx.array(b), mx.array(b.T.copy()).T):
            np.testing.assert_allclose(np.array(left @ right), exact, rtol=1e-5, atol=1e-4)
print(clara.io.cpu.preload())
"""


def run(code: str, **variables: str) -> str:
    """Return what a fresh Python prints; it must end well and write nothing to stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "CLARA_BLAS"} | variables
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.rstrip("\n")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder in which the renamed library is made once for this module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def before_mlx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return `preload`, to be called as if MLX had not been imported yet, with an empty cache and no CLARA_BLAS."""
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.delenv("CLARA_BLAS", raising=False)
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu, "keep_memory", lambda: None)
    return cpu.preload.__wrapped__


@pytest.mark.parametrize(("platform", "line"), [("darwin", "Accelerate"), ("win32", "MLX's own")])
def test_other_systems_are_left_alone(platform: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: pytest.fail("a library was loaded"))
    assert cpu.preload.__wrapped__() == line


@linux
def test_it_can_be_switched_off() -> None:
    assert run(LINE, CLARA_BLAS="off") == f"{SLOW} (CLARA_BLAS is off)"


@linux
def test_mlx_imported_first_is_said() -> None:
    assert run("import mlx.core; " + LINE) == f"{SLOW} (mlx.core was imported first)"


@linux
def test_a_named_library_that_is_missing_is_said_and_mlx_still_works() -> None:
    code = LINE + "; import mlx.core as mx; print((mx.ones((2, 3)) @ mx.ones((3, 2))).tolist())"
    line, product = run(code, CLARA_BLAS="/nowhere/libfast.so").splitlines()
    assert line.startswith(f"{SLOW} (") and "/nowhere/libfast.so" in line
    assert product == "[[3.0, 3.0], [3.0, 3.0]]"


@linux
def test_a_missing_package_is_said(before_mlx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    line = before_mlx()
    assert line.startswith(f"{SLOW} (") and "scipy-openblas32" in line


@packaged
def test_a_missing_patchelf_is_said(before_mlx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert before_mlx() == f"{SLOW} (patchelf is not installed)"


@packaged
def test_a_cache_that_cannot_be_made_is_said(before_mlx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "file" / "cache"))
    line = before_mlx()
    assert line.startswith(f"{SLOW} (") and "Not a directory" in line


@packaged
def test_a_copy_that_cannot_be_renamed_is_said_and_leaves_nothing_behind(
    before_mlx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: list[str], **_: Any) -> None:
        Path(command[command.index("--output") + 1]).write_bytes(b"half a library")
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fails)
    line = before_mlx()
    assert line.startswith(f"{SLOW} (") and "exit status 1" in line
    assert list(tmp_path.iterdir()) == []


@packaged
def test_a_copy_that_cannot_be_put_in_place_leaves_nothing_behind(
    before_mlx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    assert before_mlx() == f"{SLOW} ([Errno 28] No space left on device)"
    assert list(tmp_path.iterdir()) == []


@packaged
def test_the_renamed_copy_is_made_once_and_nothing_else_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLARA_CACHE", str(cache))
    copy = renamed_openblas()
    made = copy.stat()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was made again"))
    assert renamed_openblas() == copy
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert list(cache.iterdir()) == [copy]


@packaged
def test_the_renamed_copy_multiplies_under_the_plain_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLARA_CACHE", str(cache))
    product = ctypes.CDLL(str(renamed_openblas())).cblas_sgemm
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 5)))
    out = np.zeros((3, 5), dtype=np.float32)
    one, pointers = ctypes.c_float(1), [array.ctypes.data_as(ctypes.c_void_p) for array in (a, b, out)]
    row_major, as_it_is = 101, 111
    product(row_major, as_it_is, as_it_is, 3, 5, 4, one, pointers[0], 4, pointers[1], 5, one, pointers[2], 5)
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-6)


@packaged
def test_with_it_mlx_multiplies_like_numpy(cache: Path) -> None:
    line = run(PRODUCTS, CLARA_CACHE=str(cache))
    assert line.startswith("OpenBLAS ") and "threads" in line


@linux
def test_without_it_mlx_multiplies_like_numpy() -> None:
    assert run(PRODUCTS, CLARA_BLAS="off").startswith(SLOW)


@packaged
def test_mlx_takes_its_product_from_the_copy(cache: Path, tmp_path: Path) -> None:
    code = "import clara, mlx.core as mx; mx.eval(mx.matmul(mx.ones((9, 9)), mx.ones((9, 9)), stream=mx.cpu))"
    run(code, CLARA_CACHE=str(cache), LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(tmp_path / "bindings"))
    bound = [
        line
        for report in tmp_path.glob("bindings.*")
        for line in report.read_text(errors="replace").splitlines()
        if "`cblas_sgemm'" in line and "libmlx" in line.partition(" to ")[0]
    ]
    assert bound and all(str(cache) in line.partition(" to ")[2] for line in bound)


@packaged
def test_a_named_library_is_taken_and_named(cache: Path) -> None:
    copy = run("from clara.io.cpu import renamed_openblas; print(renamed_openblas())", CLARA_CACHE=str(cache))
    assert run(PRODUCTS, CLARA_BLAS=copy) == copy
