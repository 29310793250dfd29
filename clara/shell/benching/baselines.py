"""What training would be otherwise, in the same run: a naive step, and the step of mlx-lm's own LoRA trainer."""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import msgspec
from mlx.nn.utils import average_gradients
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers

from clara.core.bind import share
from clara.core.config import ComputeConfig, OptimizerConfig, Stage
from clara.core.flops import stage_cost, training
from clara.core.optim import adamw
from clara.core.stages import trained_leaves
from clara.core.step import make_train_step, make_update
from clara.core.types import Batch, TrainState
from clara.shell.benching.shapes import positions, stage_batch, start_params, step_config
from clara.shell.benching.steps import advancing
from clara.shell.benching.timing import Work
from clara.shell.benching.workbench import Workbench


def everywhere(batch: Batch, vocabulary: int) -> Batch:
    """Return a batch whose logits are wanted at every decoder position, while the loss stays that of its answers."""
    rows, length = batch.tokens.shape
    place = mx.arange(length - 1)
    wanted = (place[None, None] == batch.target_index[..., None]) & batch.target_mask[..., None]
    following = batch.tokens[:, 1:]
    return batch._replace(
        target_index=mx.broadcast_to(place[None], (rows, length - 1)),
        targets=mx.where(following < vocabulary, following, 0),
        target_mask=wanted.any(axis=1),
    )


def naive_work(bench: Workbench, stage: Stage) -> Work:
    """Return a stage's step, not compiled, with documents compressed in it and logits at every decoder position.

    All of these are there at one time; rows have the longest length anyway.
    """
    base = bench.base()
    config = step_config(bench.size, bench.options, stage)
    batch = stage_batch(base, bench.size, stage, bench.rows, bench.options.candidates)
    batch = everywhere(batch, base.layout.vocab_size)
    at_once = ComputeConfig(logits_chunk=batch.target_index.size)
    config = msgspec.structs.replace(config, compute=at_once)
    trained, frozen = trained_leaves(config, start_params(base, config))
    optimizer = adamw(OptimizerConfig(), total_steps=1000)
    update = make_update(make_train_step(base, config, frozen), optimizer)
    state = TrainState(trained, optimizer.init(trained), mx.array(0))
    mx.eval(state, batch)
    advance = advancing(update, state)
    counts = {"examples": bench.rows, "tokens": positions(batch)}
    return Work(lambda _: advance([batch]), counts, cost=stage_cost(bench.shape(), config, batch))


def mlx_lm_work(bench: Workbench) -> Work:
    """Return the step of mlx-lm's LoRA trainer on rows of as many tokens as `pretrain` has positions.

    Its adapters are on the same layers with the same rank, scale and dropout; its loss is over the same number of
    tokens. It is compiled where ours is, and works on a copy of the module that shares the base's weights.
    """
    base, lora, shape = bench.base(), bench.options.lora, bench.shape()
    length = positions(stage_batch(base, bench.size, "pretrain", 1, 1))
    module: Any = share(base.module, {})
    how = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout}
    linear_to_lora_layers(module, shape.layers, how)
    optimizer = optim.AdamW(learning_rate=1e-5)
    loss = nn.value_and_grad(module, default_loss)
    state = [module.state, optimizer.state, mx.random.state]

    def step(tokens: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
        (value, count), grads = loss(module, tokens, lengths)
        optimizer.update(module, average_gradients(grads))
        return value, count

    run = partial(mx.compile, inputs=state, outputs=state)(step) if bench.compiled else step
    key = mx.random.key(0)
    # mlx-lm reads all tokens but the last, and predicts all but the first.
    tokens = mx.random.randint(3, base.layout.vocab_size, (bench.rows, length + 1), key=key)
    lengths = mx.array([[length + 1 - bench.size.answer, length]] * bench.rows)
    module.train()
    mx.eval(tokens, lengths, state)
    counts = {"examples": bench.rows, "tokens": bench.rows * length}
    cost = training(shape, bench.rows, length, lora.rank, logits=bench.rows * length)
    return Work(lambda _: (run(tokens, lengths), state), counts, cost=cost)
