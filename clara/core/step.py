"""Steps: losses divided once, gradients, accumulation over micro-batches, and the update of a training state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from clara.core.config import StepConfig
from clara.core.stages import joined, stage_counts, stage_terms
from clara.core.types import Base, Batch, Optimizer, Params, StepResult, Term, TrainState

TrainStep = Callable[[Params, Batch | Sequence[Batch]], StepResult]
EvalStep = Callable[[Params, Batch], dict[str, Term]]
Tree = TypeVar("Tree")


def make_train_step(base: Base, config: StepConfig, frozen: Params | None = None) -> TrainStep:
    """Return train_step(params, batch) → (loss, metrics, grads): pure, with or without `mx.compile`.

    params: the trained leaves; frozen: further parameters that the stage reads (see `trained_leaves`). batch may be a
    sequence of micro-batches: each term is then divided by its count over all of them, so that the result is that of
    one large batch, however it was cut. metrics: the loss and each term (means), and their counts.
    """
    weights = config.loss.weights
    rest = frozen or {}

    def loss(params: Params, batch: Batch, counts: dict[str, mx.array]) -> tuple[mx.array, dict[str, mx.array]]:
        terms = stage_terms(base, config, joined(params, rest), batch)
        means = {name: total / mx.maximum(counts[name], 1) for name, (total, _) in terms.items()}
        return sum((weights[name] * mean for name, mean in means.items()), mx.zeros(())), means

    def train_step(params: Params, batch: Batch | Sequence[Batch]) -> StepResult:
        batches = [batch] if isinstance(batch, Batch) else list(batch)
        counts = functools.reduce(add, [stage_counts(config, each) for each in batches])
        done = mx.value_and_grad(loss)(params, batches[0], counts)
        for each in batches[1:]:
            done = add(done, mx.value_and_grad(loss)(after(params, done), each, counts))
        (value, means), grads = done
        metrics = {"loss": value, **means, **{f"{name}_count": count for name, count in counts.items()}}
        return StepResult(value, metrics, grads)

    return train_step


def add(first: Tree, second: Tree) -> Tree:
    """Return the leaf-by-leaf sum of two equal pytrees of arrays."""
    return tree_map(mx.add, first, second)


def global_norm(grads: Params) -> mx.array:
    """Return float32[]: the root of the sum of squares over all leaves of a gradient."""
    squares = [mx.square(leaf.astype(mx.float32)).sum() for _, leaf in tree_flatten(grads)]
    return mx.sqrt(sum(squares, mx.zeros(())))


def after(params: Params, done: Any) -> Params:
    """Return params, to be read only when the arrays of `done` have been computed: keeps micro-batches in turn."""
    leaves = [leaf for _, leaf in tree_flatten(done)]
    return tree_map(lambda leaf: mx.depends(leaf, leaves), params)


def make_eval_step(base: Base, config: StepConfig, frozen: Params | None = None) -> EvalStep:
    """Return eval_step(params, batch) → {term: (sum, count)}: no dropout; add up over batches, then divide."""
    rest = frozen or {}

    def eval_step(params: Params, batch: Batch) -> dict[str, Term]:
        return stage_terms(base, config, joined(params, rest), batch, train=False)

    return eval_step


def make_update(train_step: TrainStep, optimizer: Optimizer) -> Callable[..., tuple[TrainState, dict[str, mx.array]]]:
    """Return update(state, batch) → (state, metrics): one training step and one optimizer step.

    metrics also has `gradient_norm`, the global norm before any clipping.
    """

    def update(state: TrainState, batch: Batch | Sequence[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
        _, metrics, grads = train_step(state.params, batch)
        params, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
        return TrainState(params, optimizer_state, state.step + 1), {**metrics, "gradient_norm": global_norm(grads)}

    return update
