"""Prompts to text with mlx-lm's own engine, one as a stream, many as a batch; or by a search with several beams."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm import stream_generate
from mlx_lm.generate import BatchGenerator, generation_stream
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from clara.core.beams import Search, best, extended, likeliest
from clara.core.collate import pad
from clara.io.tokens import Tokenizer, decode

PREFILL = 2048
"""Tokens of a prompt that are read at a time."""


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
    """Keys and values that were kept at the end, of all beams; of a batch 0, since its rows share one cache."""


class Piece(NamedTuple):
    """A part of a reply; the last one carries the whole."""

    text: str
    reply: Reply | None = None


def sampler_of(temperature: float) -> Any:
    """Return mlx-lm's sampler of a temperature; 0 takes the likeliest token."""
    return make_sampler(temp=temperature)


def stream(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    max_tokens: int,
    temperature: float = 0.0,
    beams: int = 1,
) -> Iterator[Piece]:
    """Yield a reply piece by piece as it is generated, then an empty piece with the whole of it.

    beams: of a search, in one piece, whatever the temperature; 1 for none.
    """
    if beams > 1:
        (reply,) = decode_beams(model, tokenizer, [prompt], max_tokens, beams)
        yield from (Piece(reply.text), Piece("", reply))
        return
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
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_tokens: int, beams: int = 1
) -> list[Reply]:
    """Return the replies to prompts, which are computed together; similar lengths waste least.

    beams: of a search, which finds likelier replies than the greedy ones; 1 for these.
    """
    if not prompts:
        return []
    if beams > 1:
        return decode_beams(model, tokenizer, prompts, max_tokens, beams)
    return decode_greedily(model, tokenizer, prompts, max_tokens)


def decode_greedily(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[Reply]:
    """Return the greedy replies to one prompt or more, computed together."""
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


def decode_beams(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_tokens: int, beams: int
) -> list[Reply]:
    """Return the replies to one prompt or more that a search with several beams finds, computed together."""
    begun = time.perf_counter()
    caches, logits = read_prompts(model, prompts)
    first = time.perf_counter() - begun
    searches = [Search()] * len(prompts)
    while any(search.live for search in searches):
        searches, parents = advanced(searches, logits, tokenizer.eos_ids, beams, max_tokens)
        if parents:
            for layer in caches:
                layer.filter(mx.array(parents))
            tokens = [[beam.tokens[-1]] for search in searches for beam in search.live]
            logits = model(mx.array(tokens), cache=caches)[:, -1]
            mx.eval(logits, [layer.state for layer in caches])
    share, rest = len(prompts), time.perf_counter() - begun - first
    kept = sum(layer.nbytes for layer in caches)
    return [
        Reply(
            decode(tokenizer, found.tokens).strip(),
            search.whole,
            len(prompt),
            len(found.tokens),
            first / share,
            rest / share,
            kept if share == 1 else 0,
        )
        for prompt, search in zip(prompts, searches, strict=True)
        for found in [best(search)]
    ]


def read_prompts(model: nn.Module, prompts: Sequence[Sequence[int]]) -> tuple[list[Any], mx.array]:
    """Return (a cache for each layer with a row for each prompt, float[P, V]: logits after its last token)."""
    alone = [make_prompt_cache(model) for _ in prompts]
    caches = [layers[0].merge(list(layers)) for layers in zip(*alone, strict=True)]
    lengths = [len(prompt) - 1 for prompt in prompts]
    width = max(lengths)
    padding = [width - length for length in lengths]
    rows = pad([prompt[:-1] for prompt in prompts], len(prompts), width)
    if any(padding):
        for layer in caches:
            layer.prepare(lengths=lengths, right_padding=padding)
    for start in range(0, width, PREFILL):
        model(rows[:, start : start + PREFILL], cache=caches)
        mx.eval([layer.state for layer in caches])
    if any(padding):
        for layer in caches:
            layer.finalize()
    logits = model(mx.array([prompt[-1:] for prompt in prompts]), cache=caches)[:, -1]
    mx.eval(logits, [layer.state for layer in caches])
    return caches, logits


def advanced(
    searches: Sequence[Search], logits: mx.array, ends: Collection[int], beams: int, max_tokens: int
) -> tuple[list[Search], list[int]]:
    """Return searches one token further, and which row each of their live beams continues.

    logits: float[R, V], a row for each live beam of each search, in order.
    """
    values, tokens = (np.array(each) for each in likeliest(logits, 2 * beams))
    further, parents, row = list[Search](), list[int](), 0
    for search in searches:
        count = len(search.live)
        found = [
            (place, int(token), float(value))
            for place in range(count)
            for token, value in zip(tokens[row + place], values[row + place], strict=True)
        ]
        if count:
            search, places = extended(search, found, ends, beams, max_tokens)
            parents += [row + place for place in places]
        further.append(search)
        row += count
    return further, parents
