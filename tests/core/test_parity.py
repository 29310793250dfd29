"""The original implementation's numbers, whatever the padding, the micro-batches and the compilation."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from reference import GOLDEN, Reference, batch_of, gradient_of, load_reference
from tiny import as_numpy, difference

from clara.core.collate import collate
from clara.core.compress import compress
from clara.core.step import make_train_step
from clara.core.types import Batch, StepResult

STAGES = [
    pytest.param(stage, checkpoint, id=stage)
    for stage, checkpoint in [("stage1", "checkpoint_stage1"), ("stage2_instruct", "checkpoint_stage2_instruct")]
    if (GOLDEN / checkpoint).is_dir()
]
MULTIPLES = [1, 32, 128]
WAYS = [*MULTIPLES, "one by one", "compiled"]
reference = cache(load_reference)


def one_by_one(golden: Reference) -> list[Batch]:
    return [collate([example], golden.base.layout, mx.random.key(0)) for example in golden.examples]


@cache
def result(stage: str, checkpoint: str, way: int | str) -> StepResult:
    """Return the step computed in one of `WAYS`: padded to a multiple, one example a micro-batch, or compiled."""
    golden = reference(stage, checkpoint)
    train_step: Any = make_train_step(golden.base, golden.config)
    if way == "one by one":
        return train_step(golden.params, one_by_one(golden))
    if way == "compiled":
        return mx.compile(train_step)(golden.params, batch_of(golden))
    return train_step(golden.params, batch_of(golden, way))


def test_there_is_something_to_compare_with() -> None:
    assert STAGES


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("metric", "name"), [("next_token", "loss"), ("alignment", "mse")])
@pytest.mark.parametrize(("stage", "checkpoint"), STAGES)
def test_losses_are_the_originals(stage: str, checkpoint: str, metric: str, name: str, way: int | str) -> None:
    expected = reference(stage, checkpoint).expected[name].item()
    assert result(stage, checkpoint, way).metrics[metric].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("stage", "checkpoint"), STAGES)
def test_adapter_gradients_are_the_originals(stage: str, checkpoint: str, way: int | str) -> None:
    golden = reference(stage, checkpoint)
    pairs = gradient_of(golden.expected, result(stage, checkpoint, way).grads)
    errors = {name: difference(own, expected) for name, expected, own in pairs if name != "grad:memory_tokens"}
    trained = 2 * sum(len(golden.params["adapters"][name]) for name in ("compressor", "generator"))
    assert len(errors) == trained
    assert {name: error for name, error in errors.items() if not error <= 1e-4} == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("stage", "checkpoint"), STAGES)
def test_the_memory_token_gradient_is_the_originals(stage: str, checkpoint: str, way: int | str) -> None:
    golden = reference(stage, checkpoint)
    if golden.base.module.args.tie_word_embeddings:
        return  # the original's then contains the share of its head, which has the same rows
    own = result(stage, checkpoint, way).grads["memory_embeddings"]
    assert difference(own, golden.expected["grad:memory_tokens"]) <= 1e-4


@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize(("stage", "checkpoint"), STAGES)
def test_memory_is_the_originals(stage: str, checkpoint: str, multiple: int) -> None:
    golden = reference(stage, checkpoint)
    expected = golden.expected.get("memory")
    if expected is None:
        return  # the golden numbers hold the memory of the first stage only
    documents = batch_of(golden, multiple).documents
    own = as_numpy(compress(golden.base, golden.config, golden.params, documents).memory)
    assert np.abs(own - expected.reshape(own.shape)).max() <= 1e-5 * np.abs(expected).max()
