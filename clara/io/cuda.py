"""How MLX should work on a CUDA device: what it keeps, and how it launches what a training step is made of."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from pathlib import Path

import mlx.core as mx

from clara.io.download import cache_folder

DRIVER = "libcuda.so.1"
RELEASE_THRESHOLD = 4
"""`CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`: bytes of freed memory that a pool keeps when the device is waited for."""


def keep_memory(ordinal: int = 0) -> bool:
    """Tell the driver to keep what MLX frees on a device of this process; return whether it does.

    MLX allocates from the device's default pool, which by default gives all free memory back to the system whenever
    somebody waits for the device: with lengths that vary, gigabytes a step would be unmapped and mapped again. The
    pool splits and joins blocks, as MLX's own cache, which keeps exact sizes, does not.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return False
    device, pool, most = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64(2**64 - 1)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), ordinal) == 0
        and driver.cuDeviceGetDefaultMemPool(ctypes.byref(pool), device) == 0
        and driver.cuMemPoolSetAttribute(pool, RELEASE_THRESHOLD, ctypes.byref(most)) == 0
    )


def launch_plainly() -> None:
    """Have MLX launch kernels one by one rather than as graphs, if not told otherwise; before its first operation.

    It records 20 operations at a time as a graph and keeps 400 of them. A training step has more, so that each is made
    anew: on small bases that takes longer than it saves, and their memory is the device's.
    """
    os.environ.setdefault("MLX_USE_CUDA_GRAPHS", "0")


def keep_kernels() -> Path:
    """Return the folder in which MLX keeps kernels that it builds for fused operations: CLaRa's cache, if not told so.

    A training step has some thirty of them, of five seconds each. MLX's own choice is the folder for temporary files.
    Kernels are of one release of MLX and one architecture of devices; where MLX cannot load one, the folder can go.
    """
    device = mx.device_info().get("architecture", "cpu")
    own = cache_folder() / f"kernels-mlx-{importlib.metadata.version('mlx')}-{device}"
    return Path(os.environ.setdefault("MLX_PTX_CACHE_DIR", str(own)))
