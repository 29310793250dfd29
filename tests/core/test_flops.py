"""Operations and bytes: against sums by hand, and against one another where two ways must agree."""

from __future__ import annotations

import mlx.core as mx
import pytest
from tiny import MODEL_TYPES, TOP_K, choosing_examples, tiny_batch, tiny_config, tiny_module

from clara.core.config import Stage
from clara.core.flops import TRAINED_BYTES, Cost, Shape, decoding, forward, shape_of, stage_cost, total, training

WEIGHTS = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
WIDTHS = 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
SHAPE = Shape(
    weights=1000, widths=70, layers=3, attention=8, cached=6, hidden=10, vocabulary=50, block_bytes=1, head_bytes=2
)


def test_the_shape_is_read_from_the_module() -> None:
    shape = shape_of(tiny_module())
    assert shape[:7] == (WEIGHTS, WIDTHS, 2, 64, 2 * 2 * 16, 64, 128)
    assert shape.block_bytes == 4 * (WEIGHTS + 2 * 2 * 64) and shape.head_bytes == 4 * 64 * 128


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_architecture_tells_the_width_of_its_attention(model_type: str) -> None:
    shape = shape_of(tiny_module(model_type))
    assert (shape.attention, shape.cached, shape.layers, shape.hidden) == (4 * 16, 2 * 2 * 16, 2, 64)


def test_a_quantised_base_has_the_same_operations_and_fewer_bytes() -> None:
    plain, quantised = shape_of(tiny_module()), shape_of(tiny_module(quantized=True))
    assert quantised[:7] == plain[:7]
    assert quantised.block_bytes < plain.block_bytes / 4 and quantised.head_bytes < plain.head_bytes / 4


def test_a_pass_is_the_sum_of_its_products() -> None:
    cost = forward(SHAPE, rows=2, length=3, rank=4, logits=5)
    linears, adapters, head = 2 * 1000 * 6, 2 * 4 * 70 * 6, 2 * 10 * 50 * 5
    attention = 2 * 3 * sum(2 * 2 * 8 * seen for seen in (1, 2, 3))
    assert cost == Cost(linears + adapters + head + attention, 1 + 2 + 4 * 4 * 70)


def test_a_frozen_product_has_one_product_backward_and_a_trained_one_two() -> None:
    bare, adapted = forward(SHAPE, 2, 3, logits=5), forward(SHAPE, 2, 3, rank=4, logits=5)
    attention = 2 * 3 * 4 * 8 * (1 + 2 + 3)
    learnt = adapted.flops - bare.flops + attention
    assert training(SHAPE, 2, 3, 4, 5).flops == 2 * (bare.flops - attention) + 3 * learnt
    assert training(SHAPE, 2, 3, 4, 5).bytes == 2 * (1 + 2) + TRAINED_BYTES * 4 * 70


def test_no_logits_do_not_read_the_head() -> None:
    assert forward(SHAPE, 1, 1).bytes == 1 and training(SHAPE, 1, 1, 0).bytes == 2


def test_decoding_token_by_token_takes_the_operations_of_one_pass() -> None:
    steps = [decoding(SHAPE, context, rank=4) for context in range(7)]
    assert total(steps).flops == forward(SHAPE, 1, 7, rank=4, logits=7).flops


def test_decoding_reads_the_cache() -> None:
    grown = decoding(SHAPE, 9, width=2).bytes - decoding(SHAPE, 8, width=2).bytes
    assert grown == 6 * 3 * 2


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_reading_stage_trains_on_documents_and_rows(stage: Stage) -> None:
    batch, config = tiny_batch(), tiny_config(stage=stage)
    documents, rows = batch.documents.tokens.shape, batch.tokens.shape
    expected = [training(SHAPE, *documents, 4), training(SHAPE, *rows, 4, batch.targets.size)]
    assert stage_cost(SHAPE, config, batch) == total(expected)


def test_a_frozen_compressor_costs_a_forward_pass_and_kept_memories_cost_none() -> None:
    batch = tiny_batch(*choosing_examples(), top_k=TOP_K)
    config, joint = tiny_config(stage="end_to_end"), tiny_config(stage="end_to_end", train_compressor=True)
    shape = batch.documents.tokens.shape
    kept = stage_cost(SHAPE, config, batch._replace(documents=mx.zeros((shape[0], 4, 8))))
    assert stage_cost(SHAPE, config, batch) == total([kept, forward(SHAPE, *shape, 4)])
    assert stage_cost(SHAPE, joint, batch) == total([kept, training(SHAPE, *shape, 4)])


def test_retrieval_has_no_generator() -> None:
    batch = tiny_batch(*choosing_examples(), top_k=TOP_K)._replace(documents=mx.zeros((1, 4, 8)))
    assert batch.retrieval is not None
    questions = batch.retrieval.questions.tokens.shape
    assert stage_cost(SHAPE, tiny_config(stage="retrieval"), batch) == training(SHAPE, *questions, 4)
