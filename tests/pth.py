"""Reads PyTorch's `.pth` files without PyTorch: plain tensors only, and no code of the file is ever run."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {"FloatStorage": np.float32, "LongStorage": np.int64, "HalfStorage": np.float16}


def rebuild(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """Return a tensor as numpy sees it."""
    item = storage.itemsize
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, [s * item for s in stride])
    return view.copy()


class Tensors(pickle.Unpickler):
    """Resolves the few names that a tensor needs and refuses every other."""

    archive: zipfile.ZipFile
    root: str

    def find_class(self, module: str, name: str) -> Any:
        """Return our own stand-in for a known name."""
        known = {
            "_rebuild_tensor_v2": rebuild,
            "_rebuild_parameter": lambda tensor, *_: tensor,
            "_rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "OrderedDict": collections.OrderedDict,
        }
        known |= {storage: dtype for storage, dtype in STORAGES.items()}
        if name not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")
        return known[name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return the flat numbers of a storage."""
        _, dtype, key, _, _ = pid
        return np.frombuffer(self.archive.read(f"{self.root}/data/{key}"), dtype=dtype)


def load_pth(path: Path) -> dict[str, Any]:
    """Return the nested dict of arrays in a `.pth` file."""
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        reader = Tensors(io.BytesIO(archive.read(name)))
        reader.archive, reader.root = archive, name.rsplit("/", 1)[0]
        return reader.load()
