"""Memories of documents on disk: computed once by a frozen compressor, found again by the documents' content.

A folder for each compressor holds shards, one a batch of documents: `NAME.npy` with uint8, uint16 or uint32 words of
the memories, and `NAME.json` with their dtype, the documents' keys and a digest of the words. The second is written
last, so that a shard is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import msgspec
import numpy as np
from mlx.utils import tree_flatten
from msgspec import Struct

from clara.core.collate import Tokens
from clara.core.config import StepConfig
from clara.core.packing import ANCHORS
from clara.core.types import Base, Params
from clara.io.errors import ClaraError
from clara.io.files import write_atomic

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
"""What numpy calls the bits of an element of so many bytes; it does not know bfloat16."""


class Shard(Struct, frozen=True, kw_only=True):
    """What stands beside the memories of a batch of documents."""

    dtype: str
    """Of the memories, by MLX's name: float32, bfloat16."""
    keys: list[str]
    """The document of each row."""
    digest: str
    """Of the words, as `digest_of` has it."""


class Memories(NamedTuple):
    """The memories of one compressor, ready to be read."""

    folder: Path
    rows: dict[str, tuple[np.ndarray, int, str]]
    """Key of a document → (the words of its shard, on disk; row; dtype)."""


COMPRESSOR_LEAVES = ("memory_embeddings", *ANCHORS)
"""Parameters beside the adapter that a memory depends on."""


def document_key(tokens: Tokens) -> str:
    """Return the name of a document: 64 hexadecimal digits of its framed tokens."""
    return hashlib.sha256(np.asarray(tokens, dtype="<i4").tobytes()).hexdigest()


def compressor_fingerprint(
    base: Base, config: StepConfig, params: Params, base_fingerprint: str, exact: bool = True
) -> str:
    """Return 16 hexadecimal digits of all that the memory of given tokens depends on.

    exact: the base's own dtype included, which only rounding depends on, and which differs from device to device.
    """
    parts = {
        "adapter": params["adapters"]["compressor"],
        "inputs": {name: leaf for name, leaf in params.items() if name in COMPRESSOR_LEAVES},
        "special": {"embeddings": base.special_embeddings, "rms": base.embedding_rms},
    }
    dtypes = sorted({str(leaf.dtype) for _, leaf in tree_flatten(base.module.parameters())}) if exact else []
    # How anchors are pooled shows in the leaves: unsaid here, memories of before there was a choice stay valid.
    told = re.sub(r", anchor_(pooling|map_rank)=[^,)]+", "", repr(config.memory))
    text = f"({base_fingerprint!r}, {dtypes!r}, {told}, {config.lora.scale!r}, {base.layout!r})"
    digest = hashlib.sha256(text.encode())
    for name, leaf in sorted(tree_flatten(parts)):
        digest.update(f"\n{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(words_of(leaf).tobytes())
    return digest.hexdigest()[:16]


def words_of(array: mx.array) -> np.ndarray:
    """Return the bits of an array as numpy's unsigned words, in its shape."""
    words = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[array.dtype.size]
    return np.array(array.view(words))


def write_memories(folder: Path, documents: Sequence[Tokens], memory: mx.array) -> None:
    """Write the memories of some documents, float[n, M, D], as one shard. Raises ClaraError where that cannot be."""
    keys = [document_key(document) for document in documents]
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
    words = words_of(memory)
    buffer = io.BytesIO()
    np.save(buffer, words)
    shard = Shard(dtype=str(memory.dtype).rpartition(".")[2], keys=keys, digest=digest_of(words))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClaraError(f"{folder}: cannot be made ({error.strerror}); give another --memories") from error
    write_atomic(folder / f"{name}.npy", buffer.getvalue())
    write_atomic(folder / f"{name}.json", msgspec.json.encode(shard))


def open_memories(folder: Path) -> tuple[Memories, list[str]]:
    """Return the memories in a folder and what is wrong with shards that were left out; without a folder, none.

    Of a document that is in several shards the one of the first by name counts.
    """
    rows: dict[str, tuple[np.ndarray, int, str]] = {}
    problems = []
    for path in sorted(folder.glob("*.json")):
        try:
            shard = msgspec.json.decode(path.read_bytes(), type=Shard)
            words = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header ends numpy's reader in many ways
            problems.append(f"{path.with_suffix('.npy')}: {error}")
            continue
        if digest_of(words) != shard.digest or len(words) != len(shard.keys):
            problems.append(f"{path.with_suffix('.npy')}: its content is not what was saved (truncated or altered)")
            continue
        for row, key in enumerate(shard.keys):
            rows.setdefault(key, (words, row, shard.dtype))
    return Memories(folder, rows), problems


def digest_of(words: np.ndarray) -> str:
    """Return the SHA-256 of an array's type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(repr((words.dtype.str, words.shape)).encode())
    digest.update(np.ascontiguousarray(words).data)
    return digest.hexdigest()


def missing_batches(memories: Memories, batches: Sequence[Sequence[Tokens]]) -> list[Sequence[Tokens]]:
    """Return the batches with a document that is not there: whole, so that its company never depends on the past."""
    return [batch for batch in batches if any(document_key(document) not in memories.rows for document in batch)]


def length_batches(documents: Sequence[Tokens], batch_size: int) -> list[list[Tokens]]:
    """Return documents in batches of similar length, the shortest first; a function of the set of them alone."""
    order = sorted(documents, key=lambda document: (len(document), document))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def read_memories(memories: Memories, documents: Sequence[Tokens]) -> mx.array:
    """Return float[n, M, D]: the memories of documents. Raises KeyError where one is not there."""
    return read_rows(memories, [document_key(document) for document in documents])


def read_rows(memories: Memories, keys: Sequence[str]) -> mx.array:
    """Return float[n, M, D]: the memories of documents by their keys. Raises KeyError where one is not there."""
    found = [memories.rows[key] for key in keys]
    words = mx.array(np.stack([shard[row] for shard, row, _ in found]))
    return words.view(getattr(mx, found[0][2]))
