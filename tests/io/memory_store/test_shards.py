"""Shards: safetensors files that others open at any time, filled row by row, durable when a row is named."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import memory

from clara.core.search import Packing, Rows, taken
from clara.io.base import _tensor_places
from clara.io.errors import ClaraError
from clara.io.memory_store import shards
from clara.io.memory_store.shards import (
    DATA,
    Form,
    append_rows,
    check_shard,
    header,
    map_rows,
    pack,
    shard_numbers,
    shard_path,
    size,
    tensors,
    unpack,
    write_rows,
)

PACKINGS = [Packing(dtype, bits, 32 if bits else 0) for dtype in ("bfloat16", "float16") for bits in (0, 8, 4)]
parametrize = pytest.mark.parametrize("packing", PACKINGS, ids=lambda p: f"{p.dtype}-{p.bits}")


def form_of(packing: Packing, rows: int = 5) -> Form:
    """Return the form of a tiny shard."""
    return Form(rows, 2, 32, packing)


def assert_same_rows(found: Rows, expected: Rows) -> None:
    """Assert that rows have the same bits."""
    for name, part in expected._asdict().items():
        assert (part is None) == (getattr(found, name) is None), name
        if part is not None:
            assert getattr(found, name).tobytes() == part.tobytes(), name


@parametrize
def test_rows_come_back_as_they_were_written_over_several_shards(packing: Packing, tmp_path: Path) -> None:
    form, rows = form_of(packing), pack(memory(range(13)), packing)
    places = append_rows(tmp_path, form, (0, form.rows), taken(rows, slice(7)))
    assert places == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1)]
    places += append_rows(tmp_path, form, (2, 2), taken(rows, slice(7, 13)))
    assert places[7:] == [(2, 2), (2, 3), (2, 4), (3, 0), (3, 1), (3, 2)]
    assert sorted(shard_numbers(tmp_path)) == [(number, shard_path(tmp_path, number)) for number in (1, 2, 3)]
    for i, (number, row) in enumerate(places):
        check_shard(shard_path(tmp_path, number), form)
        mapped = map_rows(shard_path(tmp_path, number), form)
        assert_same_rows(taken(mapped, slice(row, row + 1)), taken(rows, slice(i, i + 1)))


@parametrize
def test_any_reader_of_safetensors_opens_a_shard_that_is_not_full(packing: Packing, tmp_path: Path) -> None:
    form, rows = form_of(packing), pack(memory(range(3)), packing)
    path = shard_path(tmp_path, 1)
    write_rows(path, form, 0, rows)
    loaded: Any = mx.load(str(path))
    assert sorted(loaded) == sorted(name for name, part in rows._asdict().items() if part is not None)
    if packing.bits:
        parts = loaded["memory"], *(loaded[name].astype(mx.float32) for name in ("scales", "biases"))
        whole = mx.dequantize(*parts, group_size=packing.group_size, bits=packing.bits)
    else:
        whole = loaded["memory"]
        assert whole.dtype == getattr(mx, packing.dtype)
    assert mx.array_equal(whole[:3], unpack(rows, packing)) and whole.shape == (5, 2, 32)
    assert np.array(loaded["norm"]).tolist() == [*rows.norm.tolist(), 0, 0]
    ends = sorted((start, start + count) for _, _, _, start, count in _tensor_places(path))
    assert ends[0][0] == DATA and ends[-1][1] == path.stat().st_size == size(form)
    assert all(first[1] == second[0] for first, second in pairwise(ends)), "no gap"
    assert all(tensor.offset % np.dtype(tensor.dtype).itemsize == 0 for tensor in tensors(form).values())


def test_a_shard_takes_the_disk_that_its_rows_need(tmp_path: Path) -> None:
    form = Form(10_000, 2, 32, Packing("bfloat16"))
    write_rows(shard_path(tmp_path, 1), form, 0, pack(memory(range(3)), form.packing))
    found = shard_path(tmp_path, 1).stat()
    assert found.st_size == size(form) > 1_300_000 and found.st_blocks * 512 < 100_000


@parametrize
def test_packed_memories_are_near_what_they_were_and_know_their_length(packing: Packing) -> None:
    memories = mx.array(np.random.default_rng(0).standard_normal((6, 2, 32)).astype(np.float32))
    rows = pack(memories, packing)
    stored = np.array(unpack(rows, packing).astype(mx.float32)).reshape(6, -1).astype(np.float64)
    np.testing.assert_allclose(rows.norm, np.linalg.norm(stored, axis=1), rtol=1e-6)
    difference = np.linalg.norm(stored - np.array(memories).reshape(6, -1)) / np.linalg.norm(stored)
    assert 0 < difference < {0: 0.003, 8: 0.01, 4: 0.11}[packing.bits]
    assert unpack(rows, packing).dtype == (mx.float32 if packing.bits else getattr(mx, packing.dtype))


@given(st.lists(st.floats(width=32), min_size=64, max_size=64))
def test_plain_memories_are_those_of_mlx_itself(numbers: list[float]) -> None:
    memories = mx.array(numbers).reshape(1, 2, 32)
    for dtype in (mx.bfloat16, mx.float16):
        packing = Packing(str(dtype).rpartition(".")[2])
        assert mx.array_equal(unpack(pack(memories, packing), packing), memories.astype(dtype), equal_nan=True)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 70_000.0])
@parametrize
def test_the_length_tells_of_a_number_that_cannot_be_stored(number: float, packing: Packing) -> None:
    memories = np.array(memory(range(3)))
    memories[1, 0, 7] = number
    fits = number == 70_000 and packing.dtype == "bfloat16"
    assert np.isfinite(pack(mx.array(memories), packing).norm).tolist() == [True, fits, True]


def test_rows_are_flushed_and_so_is_the_name_of_a_new_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()
    for name in ("write_at", "flush", "sync"):
        real = getattr(shards, name)
        monkeypatch.setattr(shards, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    form = form_of(Packing("bfloat16"))
    append_rows(tmp_path, form, (0, form.rows), pack(memory([1]), form.packing))
    append_rows(tmp_path, form, (1, 1), pack(memory([2]), form.packing))
    assert calls == [*["write_at"] * 3, "flush", "sync", "write_at", "write_at", "flush"]


def test_a_system_that_writes_a_little_at_a_time_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, rows, real = form_of(Packing("float16")), pack(memory(range(4)), Packing("float16")), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, content, offset: real(handle, content[:7], offset))
    append_rows(tmp_path, form, (0, form.rows), rows)
    assert_same_rows(taken(map_rows(shard_path(tmp_path, 1), form), slice(4)), rows)


def test_rows_that_nobody_named_are_written_over(tmp_path: Path) -> None:
    form = form_of(Packing("bfloat16"))
    append_rows(tmp_path, form, (0, form.rows), pack(memory(range(5)), form.packing))
    wanted = pack(memory([7, 8]), form.packing)
    assert append_rows(tmp_path, form, (0, form.rows), wanted) == [(1, 0), (1, 1)]
    assert_same_rows(taken(map_rows(shard_path(tmp_path, 1), form), slice(2)), wanted)


def damage(path: Path, how: str, form: Form) -> str:
    """Damage a shard and return what is to be said of it."""
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
        return "missing; restore it from a copy"
    if how == "header":
        path.write_bytes(content.replace(b"BF16", b"BF15"))
        return "does not begin as a shard of this store"
    path.write_bytes({"cut": content[:-1], "empty": b"", "longer": content + b"\x00"}[how])
    return f"{path.stat().st_size:,} bytes, wanted {size(form):,} (truncated or altered)"


@pytest.mark.parametrize("how", ["missing", "header", "cut", "empty", "longer"])
def test_a_damaged_shard_is_refused_by_name(how: str, tmp_path: Path) -> None:
    form, path = form_of(Packing("bfloat16")), shard_path(tmp_path, 1)
    write_rows(path, form, 0, pack(memory([1]), form.packing))
    said = damage(path, how, form)
    with pytest.raises(ClaraError) as caught:
        check_shard(path, form)
    assert str(path) in str(caught.value) and said in str(caught.value)
    if how == "missing":
        with pytest.raises(FileNotFoundError):
            map_rows(path, form)
    elif how != "header":
        with pytest.raises(ClaraError, match=str(path)):
            map_rows(path, form)


def test_a_header_fits_its_page_whatever_the_form() -> None:
    for packing in PACKINGS:
        assert len(header(Form(10**9, 10**6, 32 * 10**6, packing))) == DATA


def test_other_files_beside_shards_are_none(tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_bytes(b"")
    (tmp_path / "000001.txt").write_bytes(b"")
    assert list(shard_numbers(tmp_path)) == []
