"""Any mlx optimizer seen as two pure functions, and the one of the paper (arXiv 2511.18659, Table 10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from clara.core.config import OptimizerConfig
from clara.core.packing import ANCHOR, ANCHORS
from clara.core.types import Optimizer, Params

ANCHOR_LEAVES = (ANCHOR, *ANCHORS)
"""Names of what `anchor_rate` is for: leaves of a tree of parameters, and their vector where these are packed."""


def pure(
    make: Callable[[], optim.Optimizer], clip_norm: float | None = None, rates: Mapping[str, float] | None = None
) -> Optimizer:
    """Return an mlx optimizer as (init, update); gradients are first clipped to a global norm where one is given.

    make: builds the optimizer. Its state, step counter and learning rate included, is passed in and out. rates: by how
    much more than the optimizer has it a parameter moves, by its name at the top of the tree.
    """

    def init(params: Params) -> dict[str, Any]:
        optimizer = make()
        optimizer.init(params)
        return optimizer.state

    def update(grads: Params, state: dict[str, Any], params: Params) -> tuple[Params, dict[str, Any]]:
        optimizer = make()
        optimizer.state = tree_map(lambda leaf: leaf, state)  # the optimizer writes into its state: give it a copy
        if clip_norm is not None:
            grads, _ = optim.clip_grad_norm(grads, clip_norm)
        updated = optimizer.apply_gradients(grads, params)
        for name, rate in (rates or {}).items():
            if name in params:
                updated[name] = params[name] + rate * (updated[name] - params[name])
        return updated, optimizer.state

    return Optimizer(init, update)


def learning_rate(config: OptimizerConfig, total_steps: int) -> Callable[[mx.array], mx.array]:
    """Return step: int32[] → learning rate: linear warm-up to the peak, then a cosine down to final_ratio of it."""
    warmup = int(config.warmup_ratio * total_steps)
    span = max(total_steps - warmup, 1)
    peak, floor = config.learning_rate, config.learning_rate * config.final_ratio

    def schedule(step: mx.array) -> mx.array:
        step = step.astype(mx.float32)
        rising = peak * (step + 1) / (warmup + 1)
        progress = mx.clip((step - warmup) / span, 0, 1)
        falling = floor + (peak - floor) * 0.5 * (1 + mx.cos(mx.pi * progress))
        return mx.where(step < warmup, rising, falling)

    return schedule


def adamw(config: OptimizerConfig, total_steps: int) -> Optimizer:
    """Return AdamW with bias correction, the schedule of `learning_rate` and clipping, as (init, update)."""

    def make() -> optim.Optimizer:
        return optim.AdamW(
            learning_rate=learning_rate(config, total_steps),
            betas=[config.beta1, config.beta2],
            eps=config.eps,
            weight_decay=config.weight_decay,
            bias_correction=True,
        )

    rate = config.anchor_rate
    return pure(make, config.clip_norm, None if rate == 1 else dict.fromkeys(ANCHOR_LEAVES, rate))
