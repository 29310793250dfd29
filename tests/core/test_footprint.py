"""The memory of a step by estimate: against measured peaks, against sums by hand, and in what it decides."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from groups import Member
from mlx.utils import tree_flatten
from tiny import (
    HIDDEN,
    MEMORY_TOKENS,
    MODEL_TYPES,
    TOP_K,
    VOCABULARY,
    as_text,
    tiny_base,
    tiny_config,
    tiny_example,
    tiny_module,
    tiny_params,
)

from clara.core.collate import collate
from clara.core.config import ComputeConfig, LossConfig, OptimizerConfig, Stage, StepConfig
from clara.core.footprint import Block, Load, Shapes, recomputed_layers, shapes_of, step_bytes
from clara.core.optim import adamw
from clara.core.packing import pack, packing_of
from clara.core.stages import trained_leaves
from clara.core.step import make_train_step, make_update
from clara.core.types import Base, Batch, Params, TrainState

LOOSE = 1.6
"""How often a measured peak an estimate may be at most."""

SHAPES = Shapes((Block(30, 50, 20, 7, 0),) * 6, pairs=2, hidden=10, vocabulary=100, width=2, bytes=1000)
LOAD = Load(((4, 16), (4, 32)), answers=64, memories=16, trained=500, frozen=0)


def batch_of(base: Base, config: StepConfig, rows: int, answer: int) -> Batch:
    """Return a batch of alike rows; of a choosing stage with the memories of 8 candidates each."""
    chooses = config.stage in ("retrieval", "end_to_end")
    how: dict[str, Any] = {"documents": [12] * 8, "top_k": TOP_K, "positives": [0]} if chooses else {}
    examples = [tiny_example(i, answer=answer, question=40, **how) for i in range(rows)]
    examples = [as_text(example) for example in examples] if config.loss.distillation_weight else examples
    given = {"top_k": TOP_K, "memory": lambda documents: normal_memory(len(documents))} if chooses else {}
    return collate(examples, base.layout, mx.random.key(0), 8, **given)


def normal_memory(count: int) -> mx.array:
    """Return random memories of documents."""
    return 0.2 * mx.random.normal((count, MEMORY_TOKENS, HIDDEN), key=mx.random.key(1))


def load_of(config: StepConfig, batch: Batch, trained: Params, frozen: Params, several: bool) -> Load:
    """Return the load of a batch."""
    documents = [] if isinstance(batch.documents, mx.array) else [batch.documents.tokens.shape]
    asked = [] if batch.retrieval is None else [batch.retrieval.questions.tokens.shape]
    read = [batch.tokens.shape] if config.loss.next_token_weight else []
    passes = tuple((rows, length) for rows, length in (*documents, *asked, *read))
    sizes = [sum(leaf.size for _, leaf in tree_flatten(each)) for each in (trained, frozen)]
    answers = batch.target_index.size if read else 0
    taught = (batch.teacher.tokens.shape[0], batch.teacher.tokens.shape[1]) if batch.teacher else None
    return Load(passes, answers, batch.candidates.size * MEMORY_TOKENS, sizes[0], sizes[1], several, taught)


def measured(base: Base, config: StepConfig, every: int, rows: int, answer: int, parts: int = 1) -> tuple[int, int]:
    """Return (estimate, peak) of a step that is not compiled, in bytes."""
    trained, frozen = trained_leaves(config, tiny_params(base, config))
    batch = batch_of(base, config, rows, answer)
    estimate = step_bytes(shapes_of(base.module), config, load_of(config, batch, trained, frozen, parts > 1), every)
    packing, optimizer = packing_of(trained), adamw(OptimizerConfig(), 10)
    update = make_update(make_train_step(base, config, frozen, packing=packing), optimizer)
    packed = pack(packing, trained)
    state = TrainState(packed, optimizer.init(packed), mx.array(0))
    mx.eval(state, frozen, batch)
    own = sum(leaf.nbytes for _, leaf in tree_flatten((base.module.parameters(), state, frozen)))
    trained = packed = {}
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(update(state, [batch] * parts))
    return estimate, mx.get_peak_memory() - before + own


def config_of(every: int, stage: Stage = "pretrain", dropout: float = 0.0, chunk: int = 1024) -> StepConfig:
    """Return a configuration whose every every-th layer is recomputed."""
    return tiny_config(stage=stage, dropout=dropout, compute=ComputeConfig(grad_checkpoint=every, logits_chunk=chunk))


def assert_near(pair: tuple[int, int]) -> None:
    """Assert that the estimate of (estimate, peak) is no less than the peak, and no more than it by far."""
    estimate, peak = pair
    assert peak <= estimate <= LOOSE * peak, f"{estimate / peak:.2f} times the peak of {peak:,} bytes"


@pytest.fixture(autouse=True)
def eager() -> Any:
    """Switch compilation off, as a run on a CPU does: kernels would take g++ longer than the tests."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="the peaks of a CPU")
class TestAgainstMeasuredPeaks:
    @pytest.mark.parametrize("every", [0, 1, 2])
    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    @pytest.mark.parametrize(("rows", "answer"), [(4, 20), (8, 60), (2, 180)])
    def test_an_estimate_is_no_less_and_not_much_more(self, rows: int, answer: int, dropout: float, every: int) -> None:
        base = tiny_base(num_hidden_layers=4)
        assert_near(measured(base, config_of(every, dropout=dropout), every, rows, answer))

    @pytest.mark.parametrize("every", [0, 1])
    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_so_it_is_for_every_architecture(self, model_type: str, every: int) -> None:
        base = tiny_base(model_type, num_hidden_layers=4)
        assert_near(measured(base, config_of(every), every, 4, 100))

    @pytest.mark.parametrize("every", [0, 1])
    @pytest.mark.parametrize("stage", ["instruct", "retrieval", "end_to_end"])
    def test_and_for_every_stage(self, stage: Stage, every: int) -> None:
        assert_near(measured(tiny_base(num_hidden_layers=4), config_of(every, stage), every, 6, 60))

    def test_and_for_a_quantised_base_several_micro_batches_and_short_chunks_of_logits(self) -> None:
        base = tiny_base(quantized=True, num_hidden_layers=4)
        assert_near(measured(base, config_of(0), 0, 4, 100))
        assert_near(measured(base, config_of(0), 0, 4, 100, parts=3))
        wide = tiny_base(vocab_size=8 * VOCABULARY)
        assert_near(measured(wide, config_of(0, chunk=16), 0, 4, 100))

    @pytest.mark.parametrize("every", [0, 1])
    @pytest.mark.parametrize(("rows", "answer", "vocabulary"), [(4, 20, 1), (2, 180, 1), (4, 100, 16)])
    def test_and_beside_a_teacher(self, rows: int, answer: int, vocabulary: int, every: int) -> None:
        base = tiny_base(num_hidden_layers=4, vocab_size=vocabulary * VOCABULARY)
        config = msgspec.structs.replace(config_of(every), loss=LossConfig(distillation_weight=0.5))
        assert_near(measured(base, config, every, rows, answer))

    @pytest.mark.parametrize("every", [0, 1])
    def test_and_for_a_process_that_has_a_part_of_the_base(self, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mx.distributed, "all_sum", lambda array, group: array)
        base = tiny_base(num_hidden_layers=4)
        base.module.shard(Member(1, 2))
        assert_near(measured(base, config_of(every), every, 4, 100))


def test_the_shapes_are_read_from_the_module() -> None:
    inputs, outputs = 64 + 64 + 64 + 96, 64 + 2 * 32 + 64 + 2 * 96 + 64
    block = Block(inputs, outputs, inner=96, linears=7, norms=0)
    assert shapes_of(tiny_module())[:5] == ((block, block), 4, HIDDEN, VOCABULARY, 4)
    assert shapes_of(tiny_module("qwen3")).blocks[0] == block._replace(norms=2)
    assert shapes_of(tiny_module("gemma2")).pairs == 2 * 4


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "4bit"])
def test_the_shapes_of_a_base_that_is_cut_are_those_of_a_part(quantized: bool) -> None:
    whole, part = (tiny_module("qwen3", quantized, intermediate_size=128) for _ in range(2))
    part.shard(Member(1, 2))
    inputs, outputs = 64 + 32 + 64 + 64, (64 + 2 * 32 + 2 * 128) // 2 + 64 + 64
    block = Block(inputs, outputs, inner=64, linears=7, norms=2)
    found = shapes_of(part)
    assert found[:5] == ((block, block), 2, HIDDEN, VOCABULARY, 4)
    assert found.bytes < shapes_of(whole).bytes


def test_layers_keep_their_sums_of_inputs_outputs_and_pairs() -> None:
    load = LOAD._replace(answers=0)
    narrow, wide = (step_bytes(SHAPES._replace(width=width), tiny_config(), load, 0) for width in (2, 4))
    position = 30 + 50 + 2 * 20 + 4 * 7
    layer = sum(rows * (length * position + 2 * length**2) for rows, length in load.passes)
    at_once = 4 * (32 * position + 3 * 2 * 32**2)
    assert wide - narrow == 2 * (6 * layer + at_once)


def test_a_recomputed_layer_keeps_its_input() -> None:
    load = LOAD._replace(answers=0)
    shapes = SHAPES._replace(blocks=(Block(500, 0, 500, 0, 0),) * 6, pairs=0)  # no outputs, whose gradients would wait
    none, some = (step_bytes(shapes, tiny_config(), load, every) for every in (0, 3))
    assert none - some == 2 * (2 * 4 * (16 + 32) * (1500 - 10) - 4 * 32 * 1500)


def test_a_teachers_pass_counts_where_nothing_else_takes_as_much() -> None:
    alone, config = step_bytes(SHAPES, config_of(0), LOAD, 0), config_of(0)
    assert step_bytes(SHAPES, config, LOAD._replace(taught=(4, 1)), 0) >= alone
    long = [step_bytes(SHAPES, config, LOAD._replace(taught=(4, length)), 0) for length in (1000, 2000)]
    assert alone < long[0] < long[1]


def test_without_a_pass_there_are_parameters_alone() -> None:
    empty = Load((), answers=0, memories=0, trained=500, frozen=100)
    assert step_bytes(SHAPES, tiny_config(), empty, 0) == 1000 + 4 * (3 * 500 + 2 * 100) + 7 * 4 * 500


def test_fewer_recomputed_layers_never_take_less() -> None:
    sizes = [step_bytes(SHAPES, tiny_config(), LOAD, every) for every in (1, 2, 3, 6, 0)]
    assert all(less <= more for less, more in pairwise(sizes)) and sizes[0] < sizes[-1]


@pytest.mark.parametrize("share", [1.0, 0.9, 0.7, 0.6])
def test_the_fewest_layers_are_recomputed_with_which_a_step_fits(share: float) -> None:
    sizes = {every: step_bytes(SHAPES, tiny_config(), LOAD, every) for every in (0, 6, 5, 4, 3, 2, 1)}
    every = recomputed_layers(SHAPES, tiny_config(), LOAD, share * sizes[0])
    fitting = [each for each, size in sizes.items() if size <= share * sizes[0]]
    assert every == (fitting[0] if fitting else 1) and (share < 1 or every == 0)


def test_where_nothing_fits_every_layer_is_recomputed() -> None:
    assert recomputed_layers(SHAPES, tiny_config(), LOAD, 0) == 1
