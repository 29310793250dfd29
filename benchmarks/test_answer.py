"""Time to the first token of an answer: from memories that are kept, and from the documents' text on the same base."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from shapes import QUESTION, Setup

from clara.core.collate import document_slot_ids
from clara.core.generate import bind_generator

COMPRESSION = 16
"""Document tokens for each memory vector."""


@pytest.mark.parametrize("way", ["memory", "text"])
@pytest.mark.parametrize(
    "count", [pytest.param(n, marks=pytest.mark.benchmark(group=f"first token, {n} documents")) for n in (5, 20)]
)
def test_first_token(benchmark: Any, setup: Setup, count: int, way: str) -> None:
    rng = np.random.default_rng(0)
    layout = msgspec.structs.replace(setup.base.layout, num_memory_tokens=setup.size.document // COMPRESSION)
    asked = rng.integers(3, layout.vocab_size, QUESTION).tolist()
    if way == "memory":
        base = setup.base._replace(layout=layout)
        memory = mx.array(rng.standard_normal((count, layout.num_memory_tokens, base.special_embeddings.shape[1])))
        model = bind_generator(base, setup.config, setup.params, memory.astype(base.special_embeddings.dtype))
        prompt = [*(t for i in range(count) for t in document_slot_ids(i, layout)), *asked]
    else:
        model = setup.base.module
        prompt = [*rng.integers(3, layout.vocab_size, count * setup.size.document).tolist(), *asked]
    cache = make_prompt_cache(model)

    def first() -> None:
        cache[:] = make_prompt_cache(model)
        next(generate_step(mx.array(prompt), model, max_tokens=1, prompt_cache=cache))

    first()
    benchmark.pedantic(first, rounds=5, iterations=1)
    benchmark.extra_info |= {
        "device": str(mx.device_info().get("device_name", mx.default_device())),
        "prompt_tokens": len(prompt),
        "cache_mb": round(sum(layer.nbytes for layer in cache) / 1e6, 3),
    }
