"""The bound generator reads memory slots from token ids, under mlx-lm's own caches and generation loops."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import make_prompt_cache
from tiny import (
    MEMORY_TOKENS,
    MODEL_TYPES,
    VOCABULARY,
    assert_same,
    difference,
    snapshot,
    tiny_base,
    tiny_batch,
    tiny_config,
    tiny_example,
    tiny_params,
)

from clara.core.bind import head, hidden_states
from clara.core.compress import compress, embed
from clara.core.generate import bind_generator, shift_slots
from clara.core.stages import gather_memory
from clara.core.types import Base, Params

CONFIG = tiny_config()
LENGTH = 12
"""Tokens to generate: with a prompt, more than gemma3's tiny sliding window holds."""
EXAMPLES = (tiny_example(0, (9, 4), 0, 6), tiny_example(1, (12,), 0, 1))


def memory_of(base: Base, params: Params) -> mx.array:
    """Return the memories of the documents of `EXAMPLES`, made by the compressor: float[2, N, M, D], zero for none."""
    batch = tiny_batch(*EXAMPLES)
    return gather_memory(compress(base, CONFIG, params, batch.documents).memory, batch.candidates)


def prompts() -> list[list[int]]:
    """Return the prompts of `EXAMPLES`, of different lengths, slots counted through the memories of both."""
    rows = tiny_batch(*EXAMPLES).tokens.tolist()
    return [row[: len(example.tokens)] for row, example in zip(rows, EXAMPLES, strict=True)]


def setting(model_type: str = "llama", quantized: bool = False) -> tuple[Base, Params, mx.array, nn.Module]:
    base = tiny_base(model_type, quantized)
    params = tiny_params(base, CONFIG)
    memory = memory_of(base, params)
    return base, params, memory, bind_generator(base, CONFIG, params, memory)


def by_hand(base: Base, params: Params, memory: mx.array, prompt: list[int]) -> mx.array:
    """Return the logits of a prompt whose embeddings were put together one token at a time."""
    flat, first = memory.reshape(-1, memory.shape[-1]), base.layout.first_slot
    rows = [flat[t - first] if t >= first else embed(base, mx.array([[t]]))[0, 0] for t in prompt]
    generator = params["adapters"]["generator"]
    return head(base.module)(hidden_states(base.module, mx.stack(rows)[None], generator, scale=CONFIG.lora.scale))


def greedy(model: nn.Module, prompt: list[int]) -> list[int]:
    """Return the likeliest continuation, every token from the whole sequence anew."""
    tokens = list(prompt)
    for _ in range(LENGTH):
        tokens.append(mx.argmax(model(mx.array([tokens]))[0, -1]).item())
    return tokens[len(prompt) :]


def batched(model: nn.Module, prompts: list[list[int]]) -> list[list[int]]:
    generator = BatchGenerator(model, max_tokens=LENGTH)
    tokens: dict[int, list[int]] = {uid: [] for uid in generator.insert(prompts)}
    while responses := generator.next_generated():
        for response in responses:
            tokens[response.uid].append(response.token)
    generator.close()
    return list(tokens.values())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("quantized", [False, True])
def test_logits_equal_those_of_memory_placed_by_hand(model_type: str, quantized: bool) -> None:
    base, params, memory, model = setting(model_type, quantized)
    for prompt in prompts():
        assert difference(model(mx.array([prompt])), by_hand(base, params, memory, prompt)) <= 1e-5


def test_every_slot_takes_its_own_row_of_the_memory() -> None:
    base, params, memory, model = setting()
    prompt, _ = prompts()
    slots = [token - base.layout.first_slot for token in prompt if token >= base.layout.first_slot]
    assert slots == list(range(2 * MEMORY_TOKENS))
    plain = model(mx.array([prompt]))[0, -1]
    for slot in slots:
        shift = mx.zeros_like(memory.reshape(-1, memory.shape[-1])).at[slot].add(mx.array(1.0))
        changed = bind_generator(base, CONFIG, params, memory + shift.reshape(memory.shape))
        assert difference(changed(mx.array([prompt]))[0, -1], plain) > 1e-4


def test_memory_of_documents_that_a_prompt_does_not_name_does_not_count() -> None:
    base, params, memory, model = setting()
    prompt, _ = prompts()
    other = mx.concatenate([memory[:1], memory[1:] + 1])
    assert_same(bind_generator(base, CONFIG, params, other)(mx.array([prompt])), model(mx.array([prompt])))


def test_logits_cover_the_vocabulary_of_the_base_alone() -> None:
    *_, model = setting()
    assert model(mx.array([prompts()[0]])).shape[-1] == VOCABULARY


def test_uint32_and_int32_prompts_are_one() -> None:
    *_, model = setting()
    (prompt, _) = prompts()
    assert_same(model(mx.array([prompt], dtype=mx.uint32)), model(mx.array([prompt], dtype=mx.int32)))


def test_generating_leaves_the_base_untouched() -> None:
    base, _, _, model = setting("gemma3_text")
    before = snapshot(base.module)
    batched(model, prompts())
    assert snapshot(base.module) == before


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_cache_token_by_token_gives_the_logits_of_the_whole_prompt(model_type: str) -> None:
    *_, model = setting(model_type)
    for prompt in prompts():
        cache = make_prompt_cache(model)
        steps = [model(mx.array([[token]]), cache=cache) for token in prompt]
        assert difference(mx.concatenate(steps, axis=1), model(mx.array([prompt]))) <= 1e-4


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_generate_step_is_greedy_decoding(model_type: str) -> None:
    *_, model = setting(model_type)
    for prompt in prompts():
        own = [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=LENGTH)]
        assert own == greedy(model, prompt)


def test_generate_step_may_cut_a_prompt_between_the_slots_of_a_document() -> None:
    *_, model = setting()
    prompt, _ = prompts()
    own = [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=LENGTH, prefill_step_size=3)]
    assert own == greedy(model, prompt)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_batch_of_prompts_of_different_lengths_is_greedy_decoding_of_each(model_type: str) -> None:
    *_, model = setting(model_type)
    assert len({len(prompt) for prompt in prompts()}) == 2
    assert batched(model, prompts()) == [greedy(model, prompt) for prompt in prompts()]


def test_answers_depend_on_the_memory() -> None:
    base, params, memory, model = setting()
    other = bind_generator(base, CONFIG, params, memory[::-1])
    assert [greedy(other, prompt) for prompt in prompts()] != [greedy(model, prompt) for prompt in prompts()]


def test_slots_never_appear_among_the_tokens_of_an_answer() -> None:
    *_, model = setting()
    assert np.max(batched(model, prompts())) < VOCABULARY


@pytest.mark.parametrize("documents", [0, 1, 3])
def test_shifted_slots_stand_that_many_documents_further_on(documents: int) -> None:
    base, params, memory, _ = setting()
    prompt = prompts()[0]
    shifted = shift_slots(prompt, base.layout, documents)
    first = base.layout.first_slot
    assert [t for t in shifted if t < first] == [t for t in prompt if t < first]
    assert [t - documents * MEMORY_TOKENS for t in shifted if t >= first] == [t for t in prompt if t >= first]
    flat = memory.reshape(-1, *memory.shape[2:])
    before = mx.concatenate([mx.ones((documents, *flat.shape[1:])), flat])
    moved = bind_generator(base, CONFIG, params, before)(mx.array([shifted]))
    assert_same(moved, bind_generator(base, CONFIG, params, flat)(mx.array([prompt])))
