"""Errors of memory are known by what MLX says on each device."""

from __future__ import annotations

import pytest

from clara.io.errors import short_of_memory


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (RuntimeError("[malloc] Unable to allocate 9 bytes."), True),
        (RuntimeError("cudaMallocAsync failed: out of memory"), True),
        (RuntimeError("Insufficient Memory (kIOGPUCommandBufferCallbackErrorOutOfMemory)"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_an_error_of_memory_is_known_by_what_it_says(error: Exception, short: bool) -> None:
    assert short_of_memory(error) is short
