"""Steps: losses divided once, gradients, accumulation over micro-batches, and the update of a training state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import msgspec
from mlx.utils import tree_flatten, tree_map

from clara.core.compress import embed
from clara.core.config import StepConfig
from clara.core.lora import times
from clara.core.packing import Packing, unpack
from clara.core.stages import joined, stage_counts, stage_terms
from clara.core.types import Base, Batch, Optimizer, Params, StepResult, Term, TrainState

TrainStep = Callable[[Params, Batch | Sequence[Batch]], StepResult]
EvalStep = Callable[[Params, Batch], dict[str, Term]]
Tree = TypeVar("Tree")
Share = Callable[[Any], Any]
"""A pytree of arrays → the leaf-by-leaf sum over all processes."""


def make_train_step(
    base: Base,
    config: StepConfig,
    frozen: Params | None = None,
    *,
    packing: Packing | None = None,
    share: Share | None = None,
) -> TrainStep:
    """Return train_step(params, batch) → (loss, metrics, grads): pure, with or without `mx.compile`.

    params: the trained leaves; frozen: further parameters that the stage reads (see `trained_leaves`), an adapter
    "teacher" among them where the teacher of distillation is not the base itself. batch may be a sequence of
    micro-batches: each term is then divided by its count over all of them, so that the result is that of one large
    batch, however it was cut, but for dropout, whose key each has of its own. In-batch negatives of all of them want
    one table of documents (see `collate`). metrics: the loss and each term (means), and their counts. packing: params
    and gradients are vectors (see `packing`). share: sums a tree over all processes that each have a part of the batch.
    """
    weights = config.loss.weights
    leaves, inner = leaves_of(base, config, frozen, packing)
    share = share or (lambda tree: tree)

    def loss(params: Params, batch: Batch, counts: dict[str, mx.array]) -> tuple[mx.array, dict[str, mx.array]]:
        terms = stage_terms(base, inner, leaves(params), batch)
        means = {name: total / mx.maximum(counts[name], 1) for name, (total, _) in terms.items()}
        return sum((weights[name] * mean for name, mean in means.items()), mx.zeros(())), means

    def train_step(params: Params, batch: Batch | Sequence[Batch]) -> StepResult:
        batches = [batch] if isinstance(batch, Batch) else list(batch)
        counts = share(functools.reduce(add, [stage_counts(config, each) for each in batches]))
        done = mx.value_and_grad(loss)(params, batches[0], counts)
        for each in batches[1:]:
            done = add(done, mx.value_and_grad(loss)(after(params, done), each, counts))
        (value, means), grads = share(done)
        metrics = {"loss": value, **means, **{f"{name}_count": count for name, count in counts.items()}}
        return StepResult(value, metrics, grads)

    return train_step


def leaves_of(
    base: Base, config: StepConfig, frozen: Params | None, packing: Packing | None
) -> tuple[Callable[[Params], Params], StepConfig]:
    """Return (trained parameters → all parameters, the configuration that these are read with).

    Packed adapters come in the base's own type and already scaled, so that no layer casts or scales them again; the
    configuration then has a scale of 1.
    """
    rest = frozen or {}
    if packing is None:
        return lambda params: joined(params, rest), config
    scale = config.lora.scale
    plain = msgspec.structs.replace(config.lora, alpha=float(config.lora.rank))

    def leaves(packed: Params) -> Params:
        dtype = embed(base, mx.zeros((1, 1), dtype=mx.int32)).dtype
        return joined(unpack(packing, packed, dtype, scale), scaled_adapters(rest, scale))

    return leaves, msgspec.structs.replace(config, lora=plain)


def scaled_adapters(params: Params, scale: float) -> Params:
    """Return params whose adapters have every `lora_b` multiplied by a scale."""

    def scaled(pair: dict[str, mx.array]) -> dict[str, mx.array]:
        return {**pair, "lora_b": times(pair["lora_b"], scale)}

    adapters = params.get("adapters", {})
    return {
        **params,
        "adapters": {name: {path: scaled(pair) for path, pair in each.items()} for name, each in adapters.items()},
    }


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


def make_eval_step(
    base: Base, config: StepConfig, frozen: Params | None = None, *, packing: Packing | None = None
) -> EvalStep:
    """Return eval_step(params, batch) → {term: (sum, count)}: no dropout; add up over batches, then divide."""
    leaves, inner = leaves_of(base, config, frozen, packing)

    def eval_step(params: Params, batch: Batch) -> dict[str, Term]:
        return stage_terms(base, inner, leaves(params), batch, train=False)

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
