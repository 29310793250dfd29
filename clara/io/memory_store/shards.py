"""Shards of memories: safetensors files of a fixed number of rows, made whole at once and filled row by row.

The header comes first and the file has its full size from the start, sparse, so that any reader of safetensors opens
it at any time. Which of its rows hold a memory, whoever owns the shard knows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import msgspec
import numpy as np

from clara.core.search import Packing, Rows, taken, widened
from clara.io.errors import ClaraError
from clara.io.files import flush, reason, sync
from clara.io.memories import words_of

DATA = 4096
"""Where the tensors begin: the header is filled up with blanks to a page."""

SHARD_ROWS = 2**16
"""Rows of a shard, at most."""

GROUPS = (64, 32)
"""Elements that share a scale, where memories are quantised: the first of these that divides D."""

LAST = "restore it from a copy of the store, or compress the corpus into a new one"

Place = tuple[int, int]
"""Number of a shard, counted from 1, and row in it."""


class Form(NamedTuple):
    """The shape of a shard."""

    rows: int
    num_memory_tokens: int
    hidden: int
    packing: Packing


class Tensor(NamedTuple):
    """One tensor of a shard."""

    kind: str
    """Its dtype, as safetensors calls it."""
    dtype: type
    """What numpy reads it as."""
    shape: tuple[int, ...]
    """Of one row."""
    offset: int
    """Its first byte in the file."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def make_form(num_memory_tokens: int, hidden: int, dtype: str, bits: int, most_bytes: int) -> Form:
    """Return the form of shards of that many bytes at most; bits: 0 for memories that are not quantised.

    Raises ClaraError where memories cannot be stored so.
    """
    if dtype not in ("float16", "bfloat16"):
        raise ClaraError(f"dtype {dtype}: wanted float16 or bfloat16")
    if bits not in (0, 4, 8):
        raise ClaraError(f"bits {bits}: wanted 8 or 4, or 0 for memories that are not quantised")
    group = next((size for size in GROUPS if hidden % size == 0), 0) if bits else 0
    if bits and not group:
        raise ClaraError(
            f"bits {bits}: memories are quantised in groups of {' or '.join(map(str, GROUPS))} numbers, which do not "
            f"divide the base's hidden size {hidden}; leave bits out"
        )
    form = Form(1, num_memory_tokens, hidden, Packing(dtype, bits, group))
    return form._replace(rows=min(max(most_bytes // row_bytes(form), 1), SHARD_ROWS))


def tensors(form: Form) -> dict[str, Tensor]:
    """Return the tensors of a shard, by their names in `Rows`, in the order of their bytes: larger elements first."""
    (dtype, bits, group), tokens = form.packing, form.num_memory_tokens
    half = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    parts: dict[str, tuple[str, type, tuple[int, ...]]] = {"norm": ("F32", np.float32, ())}
    if bits:
        parts["memory"] = ("U32", np.uint32, (tokens, form.hidden * bits // 32))
        parts |= {name: (half, np.uint16, (tokens, form.hidden // group)) for name in ("scales", "biases")}
    else:
        parts["memory"] = (half, np.uint16, (tokens, form.hidden))
    found, offset = {}, DATA
    for name, part in parts.items():
        found[name] = Tensor(*part, offset)
        offset += form.rows * found[name].row_bytes
    return found


def row_bytes(form: Form) -> int:
    """Return the bytes of a row in all tensors."""
    return sum(tensor.row_bytes for tensor in tensors(form).values())


def header(form: Form) -> bytes:
    """Return the first bytes of a shard, up to its tensors."""
    entries = {
        name: {
            "dtype": tensor.kind,
            "shape": (form.rows, *tensor.shape),
            "data_offsets": (tensor.offset - DATA, tensor.offset - DATA + form.rows * tensor.row_bytes),
        }
        for name, tensor in tensors(form).items()
    }
    return (DATA - 8).to_bytes(8, "little") + msgspec.json.encode(entries).ljust(DATA - 8)


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of a shard."""
    return folder / f"{number:06d}.safetensors"


def pack(memory: mx.array, packing: Packing) -> Rows:
    """Return memories, float[n, M, D], as they are stored. One with a number that cannot be has an infinite norm."""
    memory = memory.astype(getattr(mx, packing.dtype))
    if packing.bits:
        levels, *parts = mx.quantize(memory, group_size=packing.group_size, bits=packing.bits)
        rows = Rows(np.array(levels), np.zeros(0), *map(words_of, parts))
    else:
        rows = Rows(words_of(memory), np.zeros(0))
    stored = unpack(rows, packing).astype(mx.float32)
    norm = mx.sqrt(mx.sum(stored * stored, axis=(1, 2)))
    return rows._replace(norm=np.array(mx.where(mx.isfinite(memory).all(axis=(1, 2)), norm, mx.inf)))


def unpack(rows: Rows, packing: Packing) -> mx.array:
    """Return float[n, M, D]: memories as they were stored, of their dtype; float32 where they were quantised."""
    if not packing.bits:
        return mx.array(rows.memory).view(getattr(mx, packing.dtype))
    scales, biases = (mx.array(widened(part, packing.dtype)) for part in (rows.scales, rows.biases))
    return mx.dequantize(mx.array(rows.memory), scales, biases, group_size=packing.group_size, bits=packing.bits)


def append_rows(folder: Path, form: Form, last: Place, rows: Rows) -> list[Place]:
    """Write rows into the shards of a folder and return their places; they are durable then.

    last: the shard that is filled at present, and how many of its rows are; new ones follow it. Raises OSError.
    """
    (number, filled), count = last, len(rows.norm)
    places: list[Place] = []
    while len(places) < count:
        if filled == form.rows:
            number, filled = number + 1, 0
        room = min(form.rows - filled, count - len(places))
        write_rows(shard_path(folder, number), form, filled, taken(rows, slice(len(places), len(places) + room)))
        places += [(number, row) for row in range(filled, filled + room)]
        filled += room
    return places


def write_rows(path: Path, form: Form, start: int, rows: Rows) -> None:
    """Write rows of one shard, from row `start` on; with row 0 the shard begins to be. Raises OSError."""
    handle = os.open(path, os.O_RDWR | (0 if start else os.O_CREAT), 0o644)
    try:
        if start == 0:
            write_at(handle, header(form), 0)
            os.ftruncate(handle, size(form))
        for name, tensor in tensors(form).items():
            write_at(handle, np.ascontiguousarray(getattr(rows, name)).data, tensor.offset + start * tensor.row_bytes)
        flush(handle)
    finally:
        os.close(handle)
    if start == 0:
        sync(path.parent)


def write_at(handle: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of the content at a place in an open file. Raises OSError."""
    left = memoryview(content).cast("B")
    while left:
        done = os.pwrite(handle, left, offset)
        left, offset = left[done:], offset + done


def size(form: Form) -> int:
    """Return the bytes of a shard."""
    return DATA + form.rows * row_bytes(form)


def map_rows(path: Path, form: Form) -> Rows:
    """Return all rows of a shard, mapped into memory. Raises FileNotFoundError, and ClaraError for other failures."""
    try:
        content = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ClaraError(f"{path}: cannot be read ({error})") from error
    require_size(path, len(content), form)
    parts: dict[str, np.ndarray] = {
        name: content[tensor.offset : tensor.offset + form.rows * tensor.row_bytes]
        .view(tensor.dtype)
        .reshape(form.rows, *tensor.shape)
        for name, tensor in tensors(form).items()
    }
    return Rows(**parts)


def check_shard(path: Path, form: Form) -> None:
    """Raise ClaraError, naming the file, where a shard is missing, truncated, or not of this form."""
    try:
        with open(path, "rb") as file:
            begins, found = file.read(DATA), os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise ClaraError(f"{path}: missing; {LAST}") from error
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({reason(error)})") from error
    require_size(path, found, form)
    if begins != header(form):
        raise ClaraError(f"{path}: does not begin as a shard of this store does (altered); {LAST}")


def require_size(path: Path, found: int, form: Form) -> None:
    """Raise ClaraError where a shard has another size than its form says."""
    if found != size(form):
        raise ClaraError(f"{path}: {found:,} bytes, wanted {size(form):,} (truncated or altered); {LAST}")


def shard_numbers(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield (number, file) of each shard in a folder."""
    for path in folder.glob("*.safetensors"):
        if path.stem.isdecimal():
            yield int(path.stem), path
