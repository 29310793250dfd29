"""Answers from memory and from text: which model reads what, and how many tokens follow."""

from __future__ import annotations

import mlx.core as mx
import pytest
from workbenches import tiny_bench

from clara.core.flops import forward
from clara.shell.benching.answers import TOKENS, Way, first_token_work, prompt_of, tokens_work
from clara.shell.benching.shapes import QUESTION


def test_a_prompt_holds_a_few_slots_a_document_or_its_whole_text() -> None:
    with tiny_bench() as bench:
        model, memory = prompt_of(bench, "memory", 5)
        module, text = prompt_of(bench, "text", 5)
        assert len(memory) == 5 * (bench.size.stored + 1) + QUESTION and len(text) == 5 * 48 + QUESTION
        assert module is bench.base().module and model is not module
        assert sum(token >= bench.base().layout.first_slot for token in memory) == 5 * bench.size.stored
        assert max(text) < bench.base().layout.vocab_size


@pytest.mark.parametrize("way", ["memory", "text"])
def test_the_first_token_is_the_model_s_likeliest_each_time(way: Way) -> None:
    with tiny_bench() as bench:
        model, prompt = prompt_of(bench, way, 5)
        expected = int(mx.argmax(model(mx.array(prompt)[None])[0, -1]))
        work = first_token_work(bench, way, 5)
        assert [work.call(work.before()) for _ in range(2)] == [expected] * 2
        facts = work.facts(1.0)
        assert facts["prompt_tokens"] == len(prompt) and facts["cache_bytes"] > 0
        assert work.cost == forward(bench.shape(), 1, len(prompt), 16 if way == "memory" else 0, logits=1)


def test_text_leaves_more_in_the_cache_than_memory() -> None:
    with tiny_bench() as bench:
        found = {}
        for way in ("memory", "text"):
            work = first_token_work(bench, way, 20)
            work.call(work.before())
            found[way] = work.facts(1.0)["cache_bytes"]
        assert found["text"] > found["memory"]


def test_tokens_are_those_after_the_first() -> None:
    with tiny_bench() as bench:
        work = tokens_work(bench, "memory", 5)
        answer = work.before()
        assert len(list(answer)) == TOKENS == work.counts["tokens"]
        assert isinstance(work.call(work.before()), int)
