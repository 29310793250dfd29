"""Answers with documents as memory and as text: the time to the first token, and tokens per second after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from clara.core.collate import document_slot_ids
from clara.core.flops import Cost, decoding, forward
from clara.core.generate import bind_generator
from clara.shell.benching.shapes import QUESTION, start_params, step_config
from clara.shell.benching.timing import Work
from clara.shell.benching.workbench import Workbench

Way = Literal["memory", "text"]

DOCUMENTS = (5, 20)
"""Documents of a prompt."""

TOKENS = 32
"""Tokens that are generated after the first."""


def prompt_of(bench: Workbench, way: Way, count: int) -> tuple[nn.Module, list[int]]:
    """Return (model, prompt): a question after the memories of documents, or after their text for the base itself."""
    base = bench.base()
    rng = np.random.default_rng(0)
    layout = msgspec.structs.replace(base.layout, num_memory_tokens=bench.size.stored)
    asked = rng.integers(3, layout.vocab_size, QUESTION).tolist()
    if way == "text":
        texts = rng.integers(3, layout.vocab_size, count * bench.size.document)
        return base.module, [*texts.tolist(), *asked]
    config = step_config(bench.size, bench.options, "pretrain")
    hidden = base.special_embeddings.shape[1]
    memory = mx.array(rng.standard_normal((count, bench.size.stored, hidden), dtype=np.float32)).astype(bench.dtype)
    mx.eval(memory)
    model = bind_generator(base._replace(layout=layout), config, start_params(base, config), memory)
    return model, [*(token for i in range(count) for token in document_slot_ids(i, layout)), *asked]


def begun(model: nn.Module, prompt: list[int], cache: list[Any], tokens: int) -> Iterator[Any]:
    """Return an answer, which starts with nothing in the cache, token by token."""
    cache[:] = make_prompt_cache(model)
    return generate_step(mx.array(prompt), model, max_tokens=tokens, prompt_cache=cache)


def first_token_work(bench: Workbench, way: Way, count: int) -> Work:
    """Return the reading of a prompt, to the first token of the answer."""
    model, prompt = prompt_of(bench, way, count)
    cache: list[Any] = []
    rank = bench.options.lora.rank if way == "memory" else 0
    return Work(
        lambda _: next(begun(model, prompt, cache, 1))[0],
        {"tokens": len(prompt)},
        before=mx.synchronize,
        cost=forward(bench.shape(), 1, len(prompt), rank, logits=1),
        facts=lambda _: {"prompt_tokens": len(prompt), "cache_bytes": sum(layer.nbytes for layer in cache)},
    )


def tokens_work(bench: Workbench, way: Way, count: int) -> Work:
    """Return the tokens after the first, greedily; the prompt is read before the clock starts."""
    model, prompt = prompt_of(bench, way, count)

    def ready() -> Iterator[Any]:
        answer = begun(model, prompt, [], TOKENS + 1)
        next(answer)
        mx.synchronize()
        return answer

    each = [
        decoding(bench.shape(), len(prompt) + i, bench.options.lora.rank if way == "memory" else 0)
        for i in range(1, TOKENS + 1)
    ]
    cost = Cost(sum(one.flops for one in each), sum(one.bytes for one in each))
    return Work(lambda answer: [token for token, _ in answer][-1], {"tokens": TOKENS}, before=ready, cost=cost)
