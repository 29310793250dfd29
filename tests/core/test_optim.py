"""The optimizer is AdamW as written in its paper, with the schedule and the clipping, and two pure functions."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from tiny import as_numpy, assert_close, assert_same, difference, normal, snapshot

from clara.core.config import OptimizerConfig
from clara.core.optim import adamw, learning_rate, pure
from clara.core.types import Params

Numbers = dict[str, np.ndarray]
CONFIG = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, warmup_ratio=0.25, clip_norm=1.0)
STEPS = 8

configs = st.builds(
    OptimizerConfig,
    learning_rate=st.floats(1e-6, 1.0),
    warmup_ratio=st.floats(0, 0.9),
    final_ratio=st.floats(0, 1),
)
totals = st.integers(1, 300)


def params_and_gradients(count: int = STEPS) -> tuple[Params, list[Params]]:
    """Return parameters and gradients, some smaller in norm than the clip and some far larger."""
    rng = np.random.default_rng(0)

    def tree(scale: float) -> Params:
        return {
            "one": {"lora_a": scale * normal(rng, 3, 2), "lora_b": scale * normal(rng, 2, 4)},
            "two": scale * normal(rng, 5),
        }

    return tree(1.0), [tree(scale) for scale in np.geomspace(0.01, 100, count).tolist()]


def flat(tree: Params) -> Numbers:
    return {name: as_numpy(leaf) for name, leaf in tree_flatten(tree)}


def plain_rate(config: OptimizerConfig, total: int, step: int) -> float:
    """Return the learning rate as the paper describes it: a line up to the peak, a cosine down to its share."""
    warmup = int(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    low = config.learning_rate * config.final_ratio
    return low + (config.learning_rate - low) * 0.5 * (1 + np.cos(np.pi * share))


def plain_adamw(config: OptimizerConfig, params: Numbers, gradients: list[Numbers]) -> list[Numbers]:
    """Return the parameters after each step of AdamW with bias correction (arXiv 1711.05101, algorithm 2)."""
    first, second = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
    out = []
    for t, grads in enumerate(gradients):
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        rate, clip = plain_rate(config, STEPS, t), min(1.0, config.clip_norm / norm)
        new = {}
        for name, value in params.items():
            grad = grads[name] * clip
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * grad
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * grad**2
            mean = first[name] / (1 - config.beta1 ** (t + 1))
            root = np.sqrt(second[name] / (1 - config.beta2 ** (t + 1)))
            new[name] = value * (1 - rate * config.weight_decay) - rate * mean / (root + config.eps)
        params = new
        out.append(params)
    return out


def run(config: OptimizerConfig = CONFIG) -> list[Numbers]:
    optimizer = adamw(config, STEPS)
    params, gradients = params_and_gradients()
    state, out = optimizer.init(params), []
    for grads in gradients:
        params, state = optimizer.update(grads, state, params)
        out.append(flat(params))
    return out


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_adamw_equals_plain_numpy_over_several_steps(clip: float, decay: float) -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=decay, warmup_ratio=0.25, clip_norm=clip)
    params, gradients = params_and_gradients()
    expected = plain_adamw(config, flat(params), [flat(grads) for grads in gradients])
    for own, plain in zip(run(config), expected, strict=True):
        assert_errors_at_most(own, plain, 2e-6)


def assert_errors_at_most(own: Numbers, expected: Numbers, tolerance: float) -> None:
    assert {name: e for name, value in expected.items() if not (e := difference(own[name], value)) <= tolerance} == {}


def test_the_first_step_is_as_long_as_its_learning_rate() -> None:
    config = OptimizerConfig(learning_rate=0.01, warmup_ratio=0.0)
    params, gradients = params_and_gradients()
    optimizer = adamw(config, STEPS)
    moved, _ = optimizer.update(gradients[0], optimizer.init(params), params)
    for name, before in flat(params).items():
        np.testing.assert_allclose(np.abs(flat(moved)[name] - before), 0.01, rtol=1e-3)


def test_the_norm_that_is_clipped_is_that_of_all_leaves_together() -> None:
    plain = pure(lambda: optim.SGD(learning_rate=1.0), clip_norm=1.0)
    params, grads = {"a": mx.zeros((1,)), "b": mx.zeros((1,))}, {"a": mx.array([3.0]), "b": mx.array([4.0])}
    moved, _ = plain.update(grads, plain.init(params), params)
    assert (moved["a"].item(), moved["b"].item()) == (pytest.approx(-0.6, rel=1e-5), pytest.approx(-0.8, rel=1e-5))


def test_a_norm_below_the_limit_is_left_alone() -> None:
    plain = pure(lambda: optim.SGD(learning_rate=1.0), clip_norm=10.0)
    params, grads = {"a": mx.zeros((2,))}, {"a": mx.array([3.0, 4.0])}
    assert_same(plain.update(grads, plain.init(params), params)[0], {"a": mx.array([-3.0, -4.0])})


def test_without_a_limit_nothing_is_clipped() -> None:
    plain = pure(lambda: optim.SGD(learning_rate=1.0))
    params, grads = {"a": mx.zeros((1,))}, {"a": mx.array([1e6])}
    assert_same(plain.update(grads, plain.init(params), params)[0], {"a": mx.array([-1e6])})


MAKERS = [
    pytest.param(lambda: adamw(CONFIG, STEPS), id="adamw"),
    pytest.param(lambda: pure(lambda: optim.SGD(learning_rate=0.1, momentum=0.9), 1.0), id="sgd"),
    pytest.param(lambda: pure(lambda: optim.Lion(learning_rate=0.1)), id="lion"),
]


@pytest.mark.parametrize("make", MAKERS)
def test_update_leaves_state_params_and_gradients_as_they_were(make: Any) -> None:
    optimizer = make()
    params, (grads, *_) = params_and_gradients()
    _, state = optimizer.update(grads, optimizer.init(params), params)
    everything = [grads, state, params]
    before = snapshot(everything)
    mx.eval(optimizer.update(grads, state, params))
    assert snapshot(everything) == before


@pytest.mark.parametrize("make", MAKERS)
def test_update_is_a_function_of_its_arguments(make: Any) -> None:
    optimizer = make()
    params, (grads, other, *_) = params_and_gradients()
    state = optimizer.init(params)
    expected = optimizer.update(grads, state, params)
    optimizer.update(other, expected[1], expected[0])
    assert_same(optimizer.update(grads, state, params), expected)


@pytest.mark.parametrize("make", MAKERS)
def test_the_state_keeps_its_form_from_the_start(make: Any) -> None:
    optimizer = make()
    params, (grads, *_) = params_and_gradients()
    state = optimizer.init(params)
    _, later = optimizer.update(grads, state, params)
    forms = [{name: (leaf.dtype, leaf.shape) for name, leaf in tree_flatten(each)} for each in (state, later)]
    assert forms[0] == forms[1]


@pytest.mark.parametrize("make", MAKERS)
def test_the_update_is_traced_once(make: Any) -> None:
    optimizer, calls = make(), []
    params, gradients = params_and_gradients()

    def update(grads: Params, state: dict[str, Any], params: Params) -> tuple[Params, dict[str, Any]]:
        calls.append(1)
        return optimizer.update(grads, state, params)

    compiled, state = mx.compile(update), optimizer.init(params)
    for grads in gradients:
        params, state = compiled(grads, state, params)
    assert len(calls) == 1


def test_params_stay_float32() -> None:
    params, (grads, *_) = params_and_gradients()
    optimizer = adamw(CONFIG, STEPS)
    moved, _ = optimizer.update(grads, optimizer.init(params), params)
    assert {leaf.dtype for _, leaf in tree_flatten(moved)} == {mx.float32}


@given(configs, totals, st.data())
def test_the_learning_rate_equals_plain_numpy(config: OptimizerConfig, total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total + 5))
    expected = plain_rate(config, total, step)
    own = learning_rate(config, total)(mx.array(step)).item()
    assert own == pytest.approx(expected, rel=1e-4, abs=1e-6 * config.learning_rate)


@given(configs, totals)
def test_the_learning_rate_peaks_after_warm_up(config: OptimizerConfig, total: int) -> None:
    peak = learning_rate(config, total)(mx.array(int(config.warmup_ratio * total))).item()
    assert peak == pytest.approx(config.learning_rate, rel=1e-5)


@given(configs, totals, st.integers(0, 50))
def test_the_learning_rate_ends_at_its_share_and_stays_there(config: OptimizerConfig, total: int, more: int) -> None:
    last = learning_rate(config, total)(mx.array(total + more)).item()
    low = config.learning_rate * config.final_ratio
    assert last == pytest.approx(low, rel=1e-4, abs=1e-6 * config.learning_rate)


@given(configs, totals)
def test_the_learning_rate_rises_to_the_peak_and_falls_from_there(config: OptimizerConfig, total: int) -> None:
    rates = np.array(learning_rate(config, total)(mx.arange(total + 3)))
    warmup, slack = int(config.warmup_ratio * total), 1e-6 * config.learning_rate
    assert (np.diff(rates[: warmup + 1]) > 0).all()
    assert (np.diff(rates[warmup:]) <= slack).all()


@given(configs, totals)
def test_no_step_has_a_learning_rate_of_zero(config: OptimizerConfig, total: int) -> None:
    assert np.array(learning_rate(config, total)(mx.arange(total))).min() > 0


def test_adamw_follows_the_schedule() -> None:
    optimizer, rates = adamw(CONFIG, STEPS), []
    params, gradients = params_and_gradients()
    state = optimizer.init(params)
    for grads in gradients:
        params, state = optimizer.update(grads, state, params)
        rates.append(state["learning_rate"].item())
    assert rates == pytest.approx([plain_rate(CONFIG, STEPS, step) for step in range(STEPS)], rel=1e-5)


def test_pure_keeps_what_the_optimizer_itself_would_keep() -> None:
    params, gradients = params_and_gradients()
    stateful = optim.AdamW(learning_rate=0.1, bias_correction=True)
    stateful.init(params)
    wrapped = pure(lambda: optim.AdamW(learning_rate=0.1, bias_correction=True))
    state, expected = wrapped.init(params), params
    for grads in gradients:
        expected = stateful.apply_gradients(grads, expected)
        params, state = wrapped.update(grads, state, params)
    assert_close(params, expected, 1e-7)
    assert_same(state, stateful.state)


def test_what_has_a_rate_of_its_own_moves_so_much_more() -> None:
    params = {"anchor_gain": mx.ones((3,)), "memory_embeddings": mx.ones((3,))}
    grads = {name: mx.array([1.0, -2.0, 0.5]) for name in params}
    config = OptimizerConfig(learning_rate=0.01, warmup_ratio=0.0)
    moves = {}
    for rate in (1.0, 5.0):
        optimizer = adamw(msgspec.structs.replace(config, anchor_rate=rate), STEPS)
        moved, _ = optimizer.update(grads, optimizer.init(params), params)
        moves[rate] = {name: np.array(moved[name]) - 1 for name in params}
    np.testing.assert_allclose(moves[5.0]["anchor_gain"], 5 * moves[1.0]["anchor_gain"], rtol=1e-4)
    np.testing.assert_allclose(moves[5.0]["memory_embeddings"], moves[1.0]["memory_embeddings"], rtol=1e-6)
