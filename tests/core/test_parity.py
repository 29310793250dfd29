"""The original implementation's numbers, whatever the padding, the micro-batches and the compilation."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from reference import GOLDEN, STAGES, batch_of, gradient_of, load_reference
from tiny import as_numpy, difference, normal

from clara.core.compress import Compressed, compress
from clara.core.select import relevance_scores, straight_through_top_k
from clara.core.stages import documents_alignment, gather_memory, trained_leaves
from clara.core.step import make_train_step
from clara.core.types import Batch, StepResult

MULTIPLES = [1, 32, 128]
WAYS = [*MULTIPLES, "one by one", "compiled"]
LOSSES = {"pretrain": "next_token", "instruct": "next_token", "end_to_end": "next_token", "retrieval": "contrastive"}
READING, CHOOSING = ["stage1", "stage2_instruct"], ["stage3_end_to_end", "stage3_retrieval"]
ADAPTERS_WITH_GRADIENT = {
    "stage1": ("compressor", "generator"),
    "stage2_instruct": ("compressor", "generator"),
    "stage3_end_to_end": ("reasoner", "generator"),
    "stage3_retrieval": (),
}
"""The original switches adapters before the backward pass of its retrieval stage, and so has none there."""
reference = cache(load_reference)


@cache
def result(name: str, way: int | str) -> StepResult:
    """Return the step computed in one of `WAYS`: padded to a multiple, one example a micro-batch, or compiled.

    All parameters are differentiated, those that the stage freezes too: the original's question, too, is read through
    the memory embeddings.
    """
    golden = reference(name)
    train_step: Any = make_train_step(golden.base, golden.config)
    if way == "one by one":
        return train_step(golden.params, [batch_of(golden, examples=[example]) for example in golden.examples])
    if way == "compiled":
        return mx.compile(train_step)(golden.params, batch_of(golden))
    return train_step(golden.params, batch_of(golden, way))


@cache
def compressed(name: str, multiple: int) -> tuple[Batch, Compressed]:
    golden = reference(name)
    batch = batch_of(golden, multiple)
    return batch, compress(golden.base, golden.config, golden.params, batch.documents)


@cache
def query_and_scores(name: str, multiple: int) -> tuple[mx.array, mx.array]:
    """Return what the questions were compressed to, and how they score their candidates."""
    golden, (batch, done) = reference(name), compressed(name, multiple)
    questions = batch.retrieval.questions
    query = compress(golden.base, golden.config, golden.params, questions, adapter="reasoner").memory
    return query, relevance_scores(query, gather_memory(done.memory, batch.candidates))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STAGES)
def test_the_loss_is_the_originals(name: str, way: int | str) -> None:
    golden = reference(name)
    own = result(name, way).metrics[LOSSES[golden.config.stage]].item()
    assert own == pytest.approx(golden.expected["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", READING)
def test_the_alignment_loss_is_the_originals(name: str, way: int | str) -> None:
    expected = reference(name).expected["mse"].item()
    assert result(name, way).metrics["alignment"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize("name", CHOOSING)
def test_the_alignment_of_a_frozen_compressor_is_the_originals(name: str, multiple: int) -> None:
    batch, done = compressed(name, multiple)
    total, count = documents_alignment(done, batch)
    assert total.item() / count.item() == pytest.approx(reference(name).expected["mse"].item(), rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STAGES)
def test_adapter_gradients_are_the_originals(name: str, way: int | str) -> None:
    golden = reference(name)
    pairs = gradient_of(golden.expected, result(name, way).grads)
    errors = {name: difference(own, expected) for name, expected, own in pairs if name != "grad:memory_tokens"}
    assert len(errors) == 2 * sum(len(golden.params["adapters"][each]) for each in ADAPTERS_WITH_GRADIENT[name])
    assert {name: error for name, error in errors.items() if not error <= 1e-4} == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STAGES)
def test_the_memory_token_gradient_is_the_originals(name: str, way: int | str) -> None:
    golden = reference(name)
    if golden.base.module.args.tie_word_embeddings:
        return  # the original's then contains the share of its head, which has the same rows
    own = result(name, way).grads["memory_embeddings"]
    assert difference(own, golden.expected["grad:memory_tokens"]) <= 1e-4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CHOOSING)
def test_a_frozen_compressor_has_no_gradient(name: str, way: int | str) -> None:
    grads = result(name, way).grads["adapters"]["compressor"]
    assert [path for path, leaf in tree_flatten(grads) if mx.abs(leaf).max().item()] == []


@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize(("name", "entry"), [("stage1", "memory"), ("stage3_end_to_end", "docs_memory")])
def test_memory_is_the_originals(name: str, entry: str, multiple: int) -> None:
    batch, done = compressed(name, multiple)
    own, expected = as_numpy(gather_memory(done.memory, batch.candidates)), reference(name).expected[entry]
    expected = expected.reshape(len(own), -1, *own.shape[2:])
    assert np.abs(own[:, : expected.shape[1]] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("multiple", MULTIPLES)
def test_questions_are_compressed_and_score_as_in_the_original(multiple: int) -> None:
    expected = reference("stage3_end_to_end").expected
    query, scores = query_and_scores("stage3_end_to_end", multiple)
    own, candidates = as_numpy(query).reshape(expected["query"].shape), expected["scores"].shape[1]
    assert np.abs(own - expected["query"]).max() <= 1e-5 * np.abs(expected["query"]).max()
    np.testing.assert_allclose(as_numpy(scores)[:, :candidates], expected["scores"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize("name", CHOOSING)
def test_the_chosen_documents_are_the_originals(name: str, multiple: int) -> None:
    how, (batch, _) = reference(name).config.retrieval, compressed(name, multiple)
    _, scores = query_and_scores(name, multiple)
    _, chosen = straight_through_top_k(scores, batch.candidates >= 0, how.top_k, how.temperature, how.taken_share)
    assert chosen.tolist() == reference(name).expected["topk_idx"].tolist()


def test_the_straight_through_top_k_is_the_originals() -> None:
    with np.load(GOLDEN / "expected.npz") as file:
        expected = {name: file[f"topk/{name}"] for name in ("logits", "upstream", "weights", "indices", "grad")}
    logits, upstream = mx.array(expected["logits"]), mx.array(expected["upstream"])

    def choose(scores: mx.array) -> tuple[mx.array, mx.array]:
        everything = mx.ones(scores.shape, dtype=mx.bool_)
        return straight_through_top_k(scores, everything, expected["indices"].shape[1], 0.5, taken_share=1e-8)

    weights, indices = choose(logits)
    np.testing.assert_allclose(np.array(weights), expected["weights"], atol=1e-6)
    assert indices.tolist() == expected["indices"].tolist()
    assert difference(mx.grad(lambda scores: (choose(scores)[0] * upstream).sum())(logits), expected["grad"]) <= 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_the_retrieval_gradient_is_the_slope_of_the_loss(seed: int) -> None:
    golden, rng = reference("stage3_retrieval"), np.random.default_rng(seed)
    trained, frozen = trained_leaves(golden.config, golden.params)
    train_step, batch = make_train_step(golden.base, golden.config, frozen), batch_of(golden)
    grads = train_step(trained, batch).grads
    # Every number moves by a random length, but uphill, so that the slope is far above the loss's rounding.
    direction = tree_map(lambda g: mx.abs(normal(rng, *g.shape)) * mx.sign(g), grads)
    size = sum(mx.square(leaf).sum().item() for _, leaf in tree_flatten(direction)) ** 0.5
    slope = sum(
        (leaf * step).sum().item() / size
        for (_, leaf), (_, step) in zip(tree_flatten(grads), tree_flatten(direction), strict=True)
    )

    def loss_at(distance: float) -> float:
        return train_step(tree_map(lambda p, d: p + distance / size * d, trained, direction), batch).loss.item()

    # Scores are exact to 1e-7, so the loss to 1e-7 / 0.02: over 2 · 3e-3 that is 1e-3 beside a slope of about 30.
    assert slope > 3
    assert (loss_at(3e-3) - loss_at(-3e-3)) / 6e-3 == pytest.approx(slope, rel=1e-3)
