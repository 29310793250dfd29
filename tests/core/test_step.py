"""A training step is a pure function; accumulation, compilation and padding change nothing; a shape is traced once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from reference import STAGES, batch_of, load_reference
from tiny import (
    HIDDEN,
    JOINT,
    MEMORY_TOKENS,
    TOP_K,
    as_text,
    assert_close,
    assert_same,
    choosing_examples,
    difference,
    normal,
    snapshot,
    tiny_adapter,
    tiny_base,
    tiny_batch,
    tiny_config,
    tiny_example,
    tiny_params,
)

from clara.core.collate import Example
from clara.core.compress import compress
from clara.core.config import CHOOSING, LossConfig, OptimizerConfig, StepConfig
from clara.core.optim import adamw
from clara.core.packing import pack, packing_of
from clara.core.stages import trained_leaves
from clara.core.step import make_eval_step, make_train_step, make_update
from clara.core.types import Base, Batch, Params, StepResult, Teacher, TrainState

UNEVEN = (1, 40, 2, 17, 3)
"""Answer lengths of the five examples that are cut into micro-batches."""
EXAMPLES = tuple(tiny_example(i, (9, 4, 12)[: 1 + i % 3], answer) for i, answer in enumerate(UNEVEN))
BASE = tiny_base(num_hidden_layers=1)
ANCHORED = tiny_config(anchored=True)
WITHOUT_ALIGNMENT = tiny_config(loss=LossConfig(alignment_weight=0.0))
WHOLE_RETRIEVAL = LossConfig(next_token_weight=0.0, contrastive_weight=1.0)
CONFIGS = {
    "pretrain": tiny_config(),
    "distillation": tiny_config(loss=LossConfig(distillation_weight=0.5)),
    "anchored": ANCHORED,
    "instruct": tiny_config(stage="instruct"),
    "retrieval": tiny_config(stage="retrieval"),
    "retrieval, whole": tiny_config(stage="retrieval", loss=WHOLE_RETRIEVAL, train_compressor=True),
    "end_to_end": tiny_config(stage="end_to_end"),
    "joint": tiny_config(stage="end_to_end", anchored=True, loss=JOINT, train_compressor=True),
}
RANKING = {"recall_at_1", "recall_at_3", "recall_at_5", f"precision_at_{TOP_K}", "mrr"}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def step(
    batches: Batch | list[Batch], config: StepConfig | None = None, base: Base = BASE, params: Params | None = None
) -> StepResult:
    """Return a step of what the stage trains; of params where they are given."""
    config = config or tiny_config()
    trained, frozen = trained_leaves(config, tiny_params(base, config))
    return make_train_step(base, config, frozen)(params or trained, batches)


def stage_batch(config: StepConfig, *examples: Example, **how: Any) -> Batch:
    """Return examples as a batch of the stage; five uneven ones, or four with candidates, where none are given."""
    if config.stage in CHOOSING:
        return tiny_batch(*(examples or choosing_examples()), top_k=TOP_K, **how)
    read = examples or EXAMPLES
    return tiny_batch(*(map(as_text, read) if config.loss.distillation_weight else read), **how)


def cut(labels: list[int], config: StepConfig | None = None) -> list[Batch]:
    """Return examples of the stage as one micro-batch for each label."""
    config = config or tiny_config()
    examples = choosing_examples() if config.stage in CHOOSING else EXAMPLES
    parts = [[e for e, own in zip(examples, labels, strict=False) if own == label] for label in sorted(set(labels))]
    return [stage_batch(config, *part) for part in parts]


@every_config
@settings(max_examples=12)
@given(labels=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_accumulation_over_any_split_equals_the_whole_batch(config: StepConfig, labels: list[int]) -> None:
    (whole,) = cut([0] * len(labels), config)
    assert_close(step(cut(labels, config), config), step(whole, config), 1e-5)


def test_accumulation_is_not_the_mean_of_micro_batch_means() -> None:
    parts = cut([0, 1, 1, 1, 1])
    whole, alone = step(parts), [step(part) for part in parts]
    means = tree_map(lambda *leaves: sum(leaves) / len(leaves), *(each.grads for each in alone))
    assert abs(sum(each.loss.item() for each in alone) / 2 - whole.loss.item()) > 0.01
    assert all(difference(mean, dict(tree_flatten(whole.grads))[name]) > 0.1 for name, mean in tree_flatten(means))


def test_a_micro_batch_without_answers_changes_nothing_but_its_alignment() -> None:
    silent = tiny_batch(tiny_example(9, answer=0))
    expected = step(tiny_batch(*EXAMPLES), WITHOUT_ALIGNMENT)
    assert_close(step([tiny_batch(*EXAMPLES), silent], WITHOUT_ALIGNMENT), expected, 1e-5)


def test_a_micro_batch_without_positives_changes_nothing_of_retrieval() -> None:
    config, (first, second, silent, last) = CONFIGS["retrieval"], choosing_examples()
    assert not silent.positives
    expected = step([stage_batch(config, first, second, last)], config)
    assert_close(step([stage_batch(config, first, second, last), stage_batch(config, silent)], config), expected, 1e-5)


@every_config
def test_the_gradient_is_the_slope_of_the_loss(config: StepConfig) -> None:
    (params, _), batch = trained_leaves(config, tiny_params(BASE, config)), stage_batch(config)
    grads, rng = step(batch, config).grads, np.random.default_rng(3)
    # What is chosen does not move with the scores: their gradient is straight through, the generator's alone a slope.
    moving = "generator" if config.stage == "end_to_end" else ""
    # Each leaf moves by a share of its own gradient's direction, so that no part of the sum drowns in another.
    direction = tree_map_with_path(
        lambda path, g: (moving in path) * (g / mx.linalg.norm(g) + 0.02 * normal(rng, *g.shape) / g.size**0.5), grads
    )
    slope = sum((grad * dict(tree_flatten(direction))[name]).sum().item() for name, grad in tree_flatten(grads))

    def loss_at(distance: float) -> float:
        return step(batch, config, params=tree_map(lambda p, d: p + distance * d, params, direction)).loss.item()

    assert (loss_at(5e-4) - loss_at(-5e-4)) / 1e-3 == pytest.approx(slope, rel=2e-3)


@every_config
def test_every_trained_leaf_has_a_gradient_and_no_other(config: StepConfig) -> None:
    grads = step(stage_batch(config), config).grads
    norms = {name: mx.linalg.norm(leaf).item() for name, leaf in tree_flatten(grads)}
    trained, _ = trained_leaves(config, tiny_params(BASE, config))
    assert norms.keys() == dict(tree_flatten(trained)).keys()
    assert [name for name, norm in norms.items() if not norm > 0] == []


@every_config
def test_freezing_leaves_changes_neither_loss_nor_the_gradient_of_the_others(config: StepConfig) -> None:
    params, batch = tiny_params(BASE, config), stage_batch(config)
    free = make_train_step(BASE, config)(params, batch)
    trained, _ = trained_leaves(config, free.grads)
    assert_close(step(batch, config), free._replace(grads=trained), 1e-6)
    assert_close(
        make_eval_step(BASE, config)(params, batch),
        make_eval_step(BASE, config, params)({"adapters": {}}, batch),
        0,
    )


def test_a_train_step_changes_neither_params_nor_base_nor_batch() -> None:
    base, config = tiny_base(), tiny_config(dropout=0.3)
    params, batches = tiny_params(base, config), cut([0, 1, 1, 0, 2])
    everything = [base, params, batches]
    before = snapshot(everything)
    mx.eval(make_train_step(base, config)(params, batches))
    assert snapshot(everything) == before


def test_a_train_step_is_a_function_of_its_arguments() -> None:
    config = tiny_config(dropout=0.3)
    params, train_step = tiny_params(BASE, config), make_train_step(BASE, config)
    first = train_step(params, tiny_batch(key=1))
    mx.eval(train_step(params, tiny_batch(*EXAMPLES, key=2)))
    assert_same(train_step(params, tiny_batch(key=1)), first)


def test_dropout_follows_the_key_of_the_batch() -> None:
    config = tiny_config(dropout=0.3)
    assert abs(step(tiny_batch(key=1), config).loss.item() - step(tiny_batch(key=2), config).loss.item()) > 1e-3


# On a CPU, MLX builds every fused kernel with g++, about a second each and once for a machine. Tests of compiled
# results are therefore few and share the golden base with test_parity.py; those that count traces ask for none.


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_compiled_accumulation_equals_uncompiled(name: str) -> None:
    base, config, params, *_ = golden = load_reference(name)
    parts = [batch_of(golden, examples=part) for part in (golden.examples[:1], golden.examples[1:])]
    trained, frozen = trained_leaves(config, params)
    train_step = make_train_step(base, config, frozen)
    assert_close(mx.compile(train_step)(trained, parts), train_step(trained, parts), 5e-5)


def test_a_compiled_step_of_frozen_leaves_and_memories_equals_the_uncompiled() -> None:
    base, config, params, *_ = golden = load_reference("stage3_retrieval")
    trained, frozen = trained_leaves(config, params)
    batch, train_step = batch_of(golden), make_train_step(base, config, frozen)
    batch = batch._replace(documents=compress(base, config, params, batch.documents).memory)
    assert_close(mx.compile(train_step)(trained, batch), train_step(trained, batch), 5e-5)


def test_a_compiled_step_draws_dropout_by_the_key_of_the_batch() -> None:
    base, config, params, *_ = golden = load_reference("stage1")
    lora = msgspec.structs.replace(config.lora, dropout=0.3)
    train_step = make_train_step(base, msgspec.structs.replace(config, lora=lora))
    compiled, batch = mx.compile(train_step), batch_of(golden)
    losses = []
    for seed in (1, 2, 1):
        keyed = batch._replace(key=mx.random.key(seed))
        losses.append(compiled(params, keyed).loss.item())
        assert losses[-1] == pytest.approx(train_step(params, keyed).loss.item(), rel=1e-5)
    assert losses[0] == losses[2]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.slow
def test_the_compiled_loss_of_anchored_memory_equals_the_uncompiled() -> None:
    base, config, params, *_ = golden = load_reference("stage1")
    memory = msgspec.structs.replace(config.memory, anchored=True)
    train_step = make_train_step(base, msgspec.structs.replace(config, memory=memory))
    params = {**params, "anchor_gain": mx.full((HIDDEN,), 0.4)}
    loss = mx.compile(train_step)(params, batch_of(golden)).loss
    assert loss.item() == pytest.approx(train_step(params, batch_of(golden)).loss.item(), rel=1e-5)


@pytest.mark.slow
def test_a_compiled_step_beside_a_teacher_equals_the_uncompiled() -> None:
    base, config, params, *_ = golden = load_reference("stage1")
    config = msgspec.structs.replace(config, loss=LossConfig(distillation_weight=0.5))
    rows, where, _, mask = batch_of(golden)[2:6]
    batch = batch_of(golden)._replace(teacher=Teacher(rows, where, mask))
    teacher = tree_map(lambda leaf: 2 * leaf, params["adapters"]["compressor"])
    mx.eval(teacher)
    train_step = make_train_step(base, config, {"adapters": {"teacher": teacher}})
    assert train_step(params, batch).metrics["distillation"].item() > 0
    assert_close(mx.compile(train_step)(params, batch), train_step(params, batch), 5e-5)


def test_packed_parameters_are_taught_alike() -> None:
    config = CONFIGS["distillation"]
    trained, _ = trained_leaves(config, tiny_params(BASE, config))
    read = {"adapters": {"teacher": tiny_adapter(BASE.module, seed=9, rank=3)}}
    packing, batch = packing_of(trained), stage_batch(config)
    packed = make_train_step(BASE, config, read, packing=packing)(pack(packing, trained), batch)
    plain = make_train_step(BASE, config, read)(trained, batch)
    assert_close(packed.metrics, plain.metrics, 1e-6)
    assert_close(packed.grads, pack(packing, plain.grads), 1e-5)
    alone = make_train_step(BASE, config)(trained, batch).metrics["distillation"].item()
    assert abs(alone - plain.metrics["distillation"].item()) > 0.01


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """Return the function and a list that grows by one with every call of it in Python."""
    calls: list[int] = []

    def counting(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return counting, calls


def test_a_hundred_updates_of_one_shape_are_traced_once() -> None:
    config, optimizer = tiny_config(dropout=0.1), adamw(OptimizerConfig(), 100)
    params = tiny_params(BASE, config)
    train_step, calls = counted(make_train_step(BASE, config))
    update = mx.compile(make_update(train_step, optimizer))
    state = TrainState(params, optimizer.init(params), mx.array(0))
    batches = [tiny_batch(tiny_example(i, (5,), 3), key=i) for i in range(5)]
    for i in range(100):
        state, _ = update(state, batches[i % 5])
    assert len(calls) == 1


@every_config
def test_batches_of_one_shape_are_traced_once(config: StepConfig) -> None:
    trained, frozen = trained_leaves(config, tiny_params(BASE, config))
    train_step, calls = counted(make_train_step(BASE, config, frozen))
    compiled = mx.compile(train_step)
    for key in range(4):
        compiled(trained, stage_batch(config, key=key))
    assert len(calls) == 1


def test_candidates_of_4_to_20_have_four_shapes() -> None:
    config = CONFIGS["retrieval"]
    trained, frozen = trained_leaves(config, tiny_params(BASE, config))
    train_step, calls = counted(make_train_step(BASE, config, frozen))
    compiled = mx.compile(train_step)
    for count in range(4, 21):
        one = tiny_example(count, (9,) * count, top_k=TOP_K, positives=(1,))._replace(tokens=(), roles=())
        memory = mx.zeros((20, MEMORY_TOKENS, HIDDEN))
        compiled(trained, stage_batch(config, one)._replace(documents=memory))
    assert len(calls) == 4


def test_a_second_shape_is_one_more_trace() -> None:
    config = tiny_config()
    params = tiny_params(BASE, config)
    train_step, calls = counted(make_train_step(BASE, config))
    compiled = mx.compile(train_step)
    for answer in (3, 30, 3, 30):
        compiled(params, tiny_batch(tiny_example(0, (5,), answer)))
    assert len(calls) == 2


def test_an_update_is_a_train_step_and_an_optimizer_step() -> None:
    config, optimizer = tiny_config(), adamw(OptimizerConfig(), 10)
    params, batch = tiny_params(BASE, config), tiny_batch()
    state = TrainState(params, optimizer.init(params), mx.array(4))
    updated, metrics = make_update(make_train_step(BASE, config), optimizer)(state, batch)
    _, expected_metrics, grads = step(batch)
    expected_params, expected_state = optimizer.update(grads, state.optimizer_state, params)
    assert_same(updated, TrainState(expected_params, expected_state, mx.array(5)))
    norm = mx.array(sum(mx.square(leaf).sum().item() for _, leaf in tree_flatten(grads)) ** 0.5)
    assert_same({name: metrics[name] for name in expected_metrics}, expected_metrics)
    assert metrics.keys() - expected_metrics.keys() == {"gradient_norm"}
    assert difference(metrics["gradient_norm"], norm) <= 1e-6


def test_updates_lower_the_loss() -> None:
    config, optimizer = ANCHORED, adamw(OptimizerConfig(learning_rate=3e-3), 30)
    params, batch = tiny_params(BASE, config), tiny_batch()
    update = make_update(make_train_step(BASE, config), optimizer)
    state, losses = TrainState(params, optimizer.init(params), mx.array(0)), []
    for _ in range(30):
        state, metrics = update(state, batch)
        losses.append(metrics["loss"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_metrics_are_the_loss_its_terms_and_their_counts() -> None:
    loss, metrics, _ = step(tiny_batch(*EXAMPLES), tiny_config(loss=LossConfig(next_token_weight=0.5)))
    assert metrics.keys() == {"loss", "next_token", "alignment", "next_token_count", "alignment_count"}
    assert metrics["loss"].item() == loss.item()
    assert loss.item() == pytest.approx(
        0.5 * metrics["next_token"].item() + 0.1 * metrics["alignment"].item(), rel=1e-6
    )
    assert metrics["next_token_count"].item() == sum(UNEVEN)
    assert metrics["alignment_count"].item() == sum(len(example.documents) for example in EXAMPLES)


@every_config
def test_the_loss_is_the_sum_of_its_weighted_terms(config: StepConfig) -> None:
    loss, metrics, _ = step(stage_batch(config), config)
    weights = {name: weight for name, weight in config.loss.weights.items() if weight}
    assert metrics.keys() == {"loss", *weights, *(f"{name}_count" for name in weights)}
    expected = sum(weight * metrics[name].item() for name, weight in weights.items())
    assert (loss.item(), metrics["loss"].item()) == (pytest.approx(expected, rel=1e-6), loss.item())


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (LossConfig(alignment_weight=0.0), {"loss", "next_token", "next_token_count"}),
        (LossConfig(next_token_weight=0.0), {"loss", "alignment", "alignment_count"}),
    ],
)
def test_a_weight_of_zero_leaves_its_term_out_of_the_metrics(loss: LossConfig, names: set[str]) -> None:
    assert step(tiny_batch(), tiny_config(loss=loss)).metrics.keys() == names


def test_without_a_next_token_term_the_generator_has_a_zero_gradient() -> None:
    grads = step(tiny_batch(), tiny_config(loss=LossConfig(next_token_weight=0.0))).grads
    generator = grads["adapters"]["generator"]
    assert_close(generator, tree_map(mx.zeros_like, generator), 0.0)


def test_an_eval_step_has_no_dropout() -> None:
    params = tiny_params(BASE, tiny_config())
    expected = make_eval_step(BASE, tiny_config())(params, tiny_batch())
    assert_same(make_eval_step(BASE, tiny_config(dropout=0.5))(params, tiny_batch(key=1)), expected)


@every_config
def test_an_eval_step_gives_sums_and_counts_of_the_metrics(config: StepConfig) -> None:
    trained, frozen = trained_leaves(config, tiny_params(BASE, config))
    batch = stage_batch(config)
    terms, metrics = make_eval_step(BASE, config, frozen)(trained, batch), step(batch, config).metrics
    means = {name: total / count for name, (total, count) in terms.items() if name in metrics}
    assert_close(means, {name: metrics[name] for name, weight in config.loss.weights.items() if weight}, 1e-6)
    ranking = terms.keys() - means.keys()
    assert ranking == (RANKING if config.stage in CHOOSING else set())
    assert all(0 <= terms[name][0].item() <= terms[name][1].item() == 3 for name in ranking)


@pytest.mark.parametrize("quantized", [False, True])
@every_config
def test_gradients_and_metrics_are_float32_on_a_bfloat16_base(config: StepConfig, quantized: bool) -> None:
    result = step(stage_batch(config), config, bfloat16_base(quantized))
    assert {leaf.dtype for _, leaf in tree_flatten(result)} == {mx.float32}


def test_params_stay_float32_through_updates_of_a_bfloat16_base() -> None:
    base, optimizer = bfloat16_base(), adamw(OptimizerConfig(), 10)
    params = tiny_params(base, ANCHORED)
    update = make_update(make_train_step(base, ANCHORED), optimizer)
    state, _ = update(TrainState(params, optimizer.init(params), mx.array(0)), tiny_batch())
    assert {leaf.dtype for _, leaf in tree_flatten(state.params)} == {mx.float32}


def test_a_bfloat16_base_gives_nearly_the_loss_and_gradients_of_a_float32_one() -> None:
    params = tiny_params(BASE, tiny_config())
    rough, fine = (step(tiny_batch(), base=base, params=params) for base in (bfloat16_base(), BASE))
    assert difference(rough.loss, fine.loss) <= 0.02
    assert_close(rough.grads, fine.grads, 0.1)


def test_retrieval_on_a_bfloat16_base_has_nearly_the_loss_of_a_float32_one() -> None:
    config = CONFIGS["retrieval"]
    rough, fine = (step(stage_batch(config), config, base) for base in (bfloat16_base(), BASE))
    assert difference(rough.loss, fine.loss) <= 0.1  # a cosine is exact to 2⁻⁸, and divided by 0.02


def bfloat16_base(quantized: bool = False) -> Base:
    base = tiny_base(quantized=quantized, num_hidden_layers=1)
    base.module.set_dtype(mx.bfloat16)
    return base._replace(special_embeddings=base.special_embeddings.astype(mx.bfloat16))


@pytest.mark.parametrize("config", [CONFIGS[name] for name in ("pretrain", "anchored", "joint")])
@given(kept=st.lists(st.booleans(), min_size=8, max_size=24))
def test_loss_and_gradients_are_finite_for_every_mask(config: StepConfig, kept: list[bool]) -> None:
    batch = stage_batch(config)
    mask = mx.array(np.resize(np.array(kept), batch.target_mask.shape))
    result = step(batch._replace(target_mask=mask), config)
    assert [name for name, leaf in tree_flatten(result) if not mx.isfinite(leaf).all().item()] == []


@every_config
def test_loss_and_gradients_are_finite_where_every_document_is_empty(config: StepConfig) -> None:
    batch = stage_batch(config)
    emptied = batch.documents._replace(lengths=mx.zeros_like(batch.documents.lengths))
    result = step(batch._replace(documents=emptied), config)
    assert [name for name, leaf in tree_flatten(result) if not mx.isfinite(leaf).all().item()] == []
    assert result.metrics.get("alignment", mx.array(0.0)).item() == 0.0
