"""Shapes of the sizes: positions as the issue of speed has them, and no padding anywhere."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from clara.core.config import STAGES, Layout, Stage
from clara.core.measure import measure_base, storage_formats
from clara.core.types import Base, Documents
from clara.shell.benching.options import BenchOptions
from clara.shell.benching.shapes import (
    QUESTION,
    REPLY,
    SIZES,
    TOP_K,
    positions,
    random_layout,
    random_module,
    stage_batch,
    start_params,
    step_config,
    to_base,
)


def base_of(name: str) -> Base:
    """Return a base of a size's layout without its weights."""
    size = SIZES[name]
    rows = size.model["vocab_size"]
    layout = Layout(vocab_size=rows, num_memory_tokens=size.memory_tokens, prefix=(rows, 1), suffix=(2,))
    return Base(nn.Module(), layout, mx.zeros((2, 4)), mx.zeros(()))


@pytest.mark.parametrize("name", ["smollm2", "mistral7b", "mistral7b-4bit"])
def test_a_pretrain_row_has_267_document_and_512_decoder_positions_350_of_them_answer(name: str) -> None:
    batch = stage_batch(base_of(name), SIZES[name], "pretrain", 2, 20)
    assert isinstance(batch.documents, Documents)
    assert (batch.documents.tokens.shape, batch.tokens.shape, batch.targets.shape) == ((2, 267), (2, 512), (2, 350))
    assert positions(batch) == 2 * (267 + 512)


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_in_a_batch_is_padding(stage: Stage) -> None:
    size, base = SIZES["tiny"], base_of("tiny")
    batch = stage_batch(base, size, stage, 3, 20)
    assert isinstance(batch.documents, Documents)
    assert batch.target_mask.all() and (batch.candidates >= 0).all()
    assert (batch.documents.lengths == size.document + 3).all()
    assert batch.documents.tokens.shape[1] == size.document + 3 + size.memory_tokens
    assert batch.documents.tokens.shape[0] == 3 * {"pretrain": 1, "instruct": TOP_K}.get(stage, 20)


def test_a_choosing_row_has_slots_for_the_chosen_a_question_and_a_reply() -> None:
    size = SIZES["tiny"]
    batch = stage_batch(base_of("tiny"), size, "end_to_end", 2, 20)
    assert batch.retrieval is not None
    assert batch.tokens.shape == (2, TOP_K * (size.memory_tokens + 1) + QUESTION + REPLY)
    assert positions(batch) == 2 * (20 * 59 + batch.tokens.shape[1] + QUESTION + 3 + size.memory_tokens)


def test_fewer_candidates_than_are_chosen_make_a_shorter_row() -> None:
    size = SIZES["tiny"]
    batch = stage_batch(base_of("tiny"), size, "end_to_end", 1, 3)
    assert batch.tokens.shape == (1, 3 * (size.memory_tokens + 1) + QUESTION + REPLY)


def test_random_weights_are_frozen_and_of_the_dtype_or_quantised_where_the_size_says_so() -> None:
    plain = random_module(SIZES["tiny"], mx.bfloat16)
    packed = random_module(SIZES["tiny"]._replace(bits=4), mx.bfloat16)
    assert storage_formats(plain) == ("bfloat16",) and storage_formats(packed) == ("4 bits, groups of 64, affine",)
    assert tree_flatten(plain.trainable_parameters()) == []
    assert measure_base(plain).parameters == measure_base(packed).parameters


def test_weights_are_never_all_there_before_they_are_quantised() -> None:
    size = SIZES["tiny"]._replace(bits=4, model={**SIZES["tiny"].model, "num_hidden_layers": 32, "hidden_size": 128})
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    module = random_module(size, mx.float32)
    whole = 4 * measure_base(module).parameters
    assert mx.get_peak_memory() - held < whole / 2


def test_parameters_fit_the_stage() -> None:
    size = SIZES["tiny"]
    module = random_module(size, mx.float32)
    base = to_base(module, random_layout(module, size))
    options = BenchOptions(size="tiny")
    names = {stage: set(start_params(base, step_config(size, options, stage))["adapters"]) for stage in STAGES}
    assert names["pretrain"] == {"compressor", "generator"}
    assert names["end_to_end"] == {"compressor", "generator", "reasoner"}
    assert start_params(base, step_config(size, options, "pretrain"))["memory_embeddings"].shape == (8, 64)
