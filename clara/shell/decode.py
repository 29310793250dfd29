"""Prompts to text with mlx-lm's own engine: one as a stream, many as a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import stream_generate
from mlx_lm.generate import BatchGenerator, generation_stream
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from clara.io.tokens import Tokenizer, decode


class Reply(NamedTuple):
    """What a model said, and what that took."""

    text: str
    finished: bool
    """Whether it ended by itself; otherwise it was cut at the most tokens allowed."""
    prompt_tokens: int
    tokens: int
    """Tokens generated, the end token not counted."""
    prefill: float
    """Seconds to the first token; of a batch, its share."""
    decode: float
    """Seconds after that, likewise."""
    cache_bytes: int
    """Keys and values that were kept at the end; of a batch 0, since its rows share one cache."""


class Piece(NamedTuple):
    """A part of a reply; the last one carries the whole."""

    text: str
    reply: Reply | None = None


def sampler_of(temperature: float) -> Any:
    """Return mlx-lm's sampler of a temperature; 0 takes the likeliest token."""
    return make_sampler(temp=temperature)


def stream(
    model: nn.Module, tokenizer: Tokenizer, prompt: Sequence[int], max_tokens: int, temperature: float = 0.0
) -> Iterator[Piece]:
    """Yield a reply piece by piece as it is generated, then an empty piece with the whole of it."""
    cache = make_prompt_cache(model)
    begun = time.perf_counter()
    texts, first, said = list[str](), 0.0, None
    for said in stream_generate(
        model, tokenizer.hf, list(prompt), max_tokens=max_tokens, sampler=sampler_of(temperature), prompt_cache=cache
    ):
        first = first or time.perf_counter() - begun
        texts.append(said.text)
        yield Piece(said.text)
    mx.synchronize(generation_stream)  # a token too many is on its way, with messages where the model is cut
    assert said is not None, "mlx-lm yields at least the end of a reply"
    finished = said.finish_reason == "stop"
    tokens = said.generation_tokens - finished
    whole = "".join(texts).strip()
    kept = sum(layer.nbytes for layer in cache)
    yield Piece("", Reply(whole, finished, len(prompt), tokens, first, time.perf_counter() - begun - first, kept))


def decode_batch(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[Reply]:
    """Return the greedy replies to prompts that are computed together; similar lengths waste least."""
    if not prompts:
        return []
    ends = [[token] for token in sorted(tokenizer.eos_ids)]
    size = len(prompts)
    generator = BatchGenerator(model, stop_tokens=ends, completion_batch_size=size, prefill_batch_size=size)
    uids = generator.insert([list(prompt) for prompt in prompts], [max_tokens] * size)
    ids: dict[int, list[int]] = {uid: [] for uid in uids}
    finished = set[int]()
    begun = time.perf_counter()
    try:
        with generator.stats() as stats:
            while responses := generator.next_generated():
                for each in responses:
                    if each.finish_reason == "stop":
                        finished.add(each.uid)
                    else:
                        ids[each.uid].append(each.token)
    finally:
        generator.close()
    first = stats.prompt_time
    rest = time.perf_counter() - begun - first
    return [
        Reply(
            decode(tokenizer, ids[uid]).strip(),
            uid in finished,
            len(prompt),
            len(ids[uid]),
            first / size,
            rest / size,
            0,
        )
        for uid, prompt in zip(uids, prompts, strict=True)
    ]
