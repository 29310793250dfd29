"""A bound model computes what mlx-lm's own module computes, with the adapter added, and leaves the module alone."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map, tree_unflatten
from tiny import (
    ALWAYS_TIED,
    HIDDEN,
    MODEL_TYPES,
    VOCABULARY,
    assert_close,
    assert_same,
    difference,
    normal,
    snapshot,
    tiny_adapter,
    tiny_module,
)

from clara.core.bind import (
    Substitute,
    adapted_linears,
    anatomy,
    bind,
    frozen_norm,
    head,
    hidden_states,
    part_of,
    shared,
    siblings,
)
from clara.core.lora import merge_lora
from clara.core.types import Adapter

SCALE, LENGTH = 2.0, 19
CASES = [
    pytest.param(name, tied, quantized, id=f"{name}-{'tied' if tied else 'untied'}-{'4bit' if quantized else 'float'}")
    for name in MODEL_TYPES
    for tied in (True, False)
    for quantized in (False, True)
    if tied or name not in ALWAYS_TIED
]
QUERIES = [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]


def three_layers(model_type: str = "llama", quantized: bool = False, tied: bool = True) -> nn.Module:
    return tiny_module(model_type, quantized, tied=tied, num_hidden_layers=3)


def tokens(seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, VOCABULARY, (2, LENGTH)))


def embedded(module: nn.Module) -> mx.array:
    return part_of(module, anatomy(module).embedding)(tokens())


def merged(model_type: str, tied: bool, adapter: Adapter) -> nn.Module:
    module = three_layers(model_type, tied=tied)
    weights = [(f"{p}.weight", merge_lora(part_of(module, p).weight, pair, SCALE)) for p, pair in adapter.items()]
    module.update(tree_unflatten(weights))
    return module


@pytest.mark.parametrize(("model_type", "tied", "quantized"), CASES)
class TestEveryArchitecture:
    def test_hidden_states_are_the_modules_own(self, model_type: str, tied: bool, quantized: bool) -> None:
        module = three_layers(model_type, quantized, tied)
        own = part_of(module, anatomy(module).body)(tokens())
        assert_same(hidden_states(module, embedded(module)), own)

    def test_head_of_hidden_states_gives_the_modules_own_logits(
        self, model_type: str, tied: bool, quantized: bool
    ) -> None:
        module = three_layers(model_type, quantized, tied)
        own = part_of(module, anatomy(module).body)(tokens())
        assert_same(head(module)(own), module(tokens()))

    def test_bound_without_an_adapter_is_the_module(self, model_type: str, tied: bool, quantized: bool) -> None:
        module = three_layers(model_type, quantized, tied)
        assert_same(bind(module)(tokens()), module(tokens()))

    def test_an_adapter_of_zeros_changes_nothing(self, model_type: str, tied: bool, quantized: bool) -> None:
        module = three_layers(model_type, quantized, tied)
        zeros = {p: pair | {"lora_b": mx.zeros_like(pair["lora_b"])} for p, pair in tiny_adapter(module).items()}
        assert_same(bind(module, zeros, scale=SCALE)(tokens()), module(tokens()))

    def test_a_gradient_step_leaves_the_module_untouched(self, model_type: str, tied: bool, quantized: bool) -> None:
        module = three_layers(model_type, quantized, tied)
        before = snapshot(module)

        def loss(adapter: Adapter) -> mx.array:
            hidden = hidden_states(module, embedded(module), adapter, scale=SCALE, grad_checkpoint=2)
            return mx.square(head(module)(hidden)).mean()

        adapter = tiny_adapter(module)
        value, grads = mx.value_and_grad(loss)(adapter)
        stepped = tree_map(lambda leaf, grad: leaf - 0.1 * grad, adapter, grads)
        mx.eval(value, loss(stepped), bind(module, stepped, scale=SCALE)(tokens()))
        assert snapshot(module) == before

    def test_hidden_states_leave_the_given_embeddings_untouched(
        self, model_type: str, tied: bool, quantized: bool
    ) -> None:
        module = three_layers(model_type, quantized, tied)
        given = embedded(module)
        before = snapshot(given)
        mx.eval(hidden_states(module, given))
        assert snapshot(given) == before


@pytest.mark.parametrize("model_type", MODEL_TYPES)
class TestEveryUnquantizedArchitecture:
    def test_a_bound_adapter_equals_merged_weights(self, model_type: str) -> None:
        module = three_layers(model_type)
        adapter = tiny_adapter(module)
        together = merged(model_type, True, adapter)(tokens())
        assert difference(bind(module, adapter, scale=SCALE)(tokens()), together) <= 1e-5

    def test_the_adapter_matters(self, model_type: str) -> None:
        module = three_layers(model_type)
        plain = module(tokens())
        assert difference(bind(module, tiny_adapter(module), scale=SCALE)(tokens()), plain) > 0.05

    def test_every_layer_of_the_adapter_has_a_gradient(self, model_type: str) -> None:
        module = three_layers(model_type)

        def loss(adapter: Adapter) -> mx.array:
            return mx.square(hidden_states(module, embedded(module), adapter, scale=SCALE)).mean()

        grads = mx.grad(loss)(tiny_adapter(module))
        norms = {(p, name): mx.linalg.norm(leaf).item() for p, pair in grads.items() for name, leaf in pair.items()}
        assert [place for place, norm in norms.items() if not norm > 0] == []


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("model_type", "quantized"), [*((name, False) for name in MODEL_TYPES), ("llama", True), ("gemma3_text", True)]
)
def test_recomputed_layers_give_the_same_loss_and_gradients(model_type: str, quantized: bool, every: int) -> None:
    module = three_layers(model_type, quantized)
    start = embedded(module)

    def run(grad_checkpoint: int) -> tuple[mx.array, tuple[Adapter, mx.array]]:
        def loss(adapter: Adapter, shift: mx.array) -> mx.array:
            hidden = hidden_states(module, start + shift, adapter, scale=SCALE, grad_checkpoint=grad_checkpoint)
            return mx.square(hidden * mx.arange(HIDDEN)).mean()

        return mx.value_and_grad(loss, argnums=(0, 1))(tiny_adapter(module), mx.zeros_like(start))

    assert_close(run(every), run(0), 1e-5)


def test_recomputed_layers_draw_the_same_dropout() -> None:
    module = three_layers()

    def run(grad_checkpoint: int) -> tuple[mx.array, Adapter]:
        def loss(adapter: Adapter) -> mx.array:
            how = {"scale": SCALE, "dropout": 0.5, "key": mx.random.key(3), "grad_checkpoint": grad_checkpoint}
            return mx.square(hidden_states(module, embedded(module), adapter, **how)).mean()

        return mx.value_and_grad(loss)(tiny_adapter(module))

    assert_close(run(1), run(0), 1e-5)


def test_a_recomputed_layer_runs_once_more_in_the_backward_pass() -> None:
    module = three_layers()
    calls = []
    original = module.layers[0].mlp
    module.layers[0].mlp = Substitute(original, lambda x: calls.append(0) or original(x))

    def loss(adapter: Adapter, every: int) -> mx.array:
        return hidden_states(module, embedded(module), adapter, grad_checkpoint=every).sum()

    adapter = {QUERIES[0]: tiny_adapter(module)[QUERIES[0]]}
    mx.eval(mx.grad(loss)(adapter, 0))
    assert len(calls) == 1
    calls.clear()
    mx.eval(mx.grad(loss)(adapter, 1))
    assert len(calls) == 2


@pytest.mark.parametrize("path", ["model.layers.9.self_attn.q_proj", "model.layers.0.self_attn", "model.embed_tokens"])
def test_an_adapter_of_a_layer_that_is_not_there_is_refused_by_name(path: str) -> None:
    module = tiny_module()
    pair = {"lora_a": mx.zeros((HIDDEN, 2)), "lora_b": mx.zeros((2, HIDDEN))}
    with pytest.raises(ValueError, match=path):
        bind(module, {path: pair})


@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4)], ids=["stack", "layer"]
)
def test_an_architecture_without_an_embedding_is_refused(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="token embedding"):
        bind(module)


def test_an_architecture_without_a_body_of_its_own_is_refused() -> None:
    module = nn.Module()
    module.embed_tokens, module.layers = nn.Embedding(4, 4), [nn.Linear(4, 4)]
    with pytest.raises(ValueError, match="no part that holds both"):
        bind(module)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_adapted_linears_have_the_true_shapes_quantized_or_not(model_type: str) -> None:
    module = tiny_module(model_type)
    shapes = {p: tuple(part_of(module, p).weight.shape[::-1]) for p in adapted_linears(module)}
    assert adapted_linears(module) == shapes
    assert adapted_linears(tiny_module(model_type, quantized=True)) == shapes


def test_adapted_linears_are_all_those_of_the_blocks_and_never_the_head() -> None:
    names = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *(f"self_attn.{n}_proj" for n in "koqv")]
    assert list(adapted_linears(tiny_module(tied=False))) == [f"model.layers.{i}.{n}" for i in (0, 1) for n in names]


def test_substitute_calls_the_given_function_with_all_arguments() -> None:
    stand_in = Substitute(nn.Linear(2, 2), lambda *args, **kwargs: (args, kwargs))
    assert stand_in(1, 2, three=3) == ((1, 2), {"three": 3})


def test_substitute_has_the_attributes_of_the_original() -> None:
    original = nn.QuantizedLinear(64, 8, bits=8, group_size=32)
    original.own_flag = "kept"
    stand_in = Substitute(original, lambda x: x)
    assert (stand_in.bits, stand_in.group_size, stand_in.own_flag) == (8, 32, "kept")
    assert stand_in.weight is original.weight


def test_substitute_of_an_embedding_still_serves_a_tied_head() -> None:
    original, hidden = nn.Embedding(8, 4), mx.ones((1, 4))
    assert_same(Substitute(original, lambda x: x).as_linear(hidden), original.as_linear(hidden))


def test_substitute_lacks_what_the_original_lacks() -> None:
    assert not hasattr(Substitute(nn.Linear(2, 2), lambda x: x), "no_such_attribute")


def test_two_adapters_on_one_base_do_not_disturb_each_other() -> None:
    module = three_layers()
    adapters = [tiny_adapter(module, seed) for seed in (1, 2)]
    alone = [bind(three_layers(), adapter, scale=SCALE)(tokens()) for adapter in adapters]
    first, second = (bind(module, adapter, scale=SCALE) for adapter in adapters)
    mixed = [first(tokens()), second(tokens()), first(tokens()), module(tokens()), second(tokens())]
    assert_same([mixed[0], mixed[1], mixed[2], mixed[4]], [alone[0], alone[1], alone[0], alone[1]])
    assert_same(mixed[3], three_layers()(tokens()))


def test_threads_with_different_adapters_on_one_base_do_not_disturb_each_other() -> None:
    module = three_layers()
    start = embedded(module)
    adapters = [tiny_adapter(module, seed) for seed in range(4)]
    mx.eval(adapters, start)

    def run(adapter: Adapter) -> np.ndarray:
        return np.stack([np.array(hidden_states(module, start, adapter, scale=SCALE)) for _ in range(5)])

    alone = [run(adapter) for adapter in adapters]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, adapters))
    np.testing.assert_array_equal(np.stack(together), np.stack(alone))


def dropped(key: mx.array | None, rate: float = 0.5) -> list[np.ndarray]:
    """Return what each query layer's adapter adds to an input of ones: its mask, for the adapter is the identity."""
    module = three_layers()
    identity = {"lora_a": mx.eye(HIDDEN), "lora_b": mx.eye(HIDDEN)}
    bound = bind(module, {path: identity for path in QUERIES}, dropout=rate, key=key)
    x = mx.ones((1, 5, HIDDEN))
    added = [part_of(bound, path)(x) - part_of(module, path)(x) for path in QUERIES]
    return [np.array(each).round(4) for each in added]


def test_dropout_of_one_key_is_one_draw() -> None:
    np.testing.assert_array_equal(dropped(mx.random.key(1)), dropped(mx.random.key(1)))


def test_dropout_of_different_keys_differs_in_every_layer() -> None:
    pairs = zip(dropped(mx.random.key(1)), dropped(mx.random.key(2)), strict=True)
    assert all((first != second).mean() > 0.3 for first, second in pairs)


def test_every_layer_has_a_dropout_of_its_own() -> None:
    masks = dropped(mx.random.key(1))
    assert all((first != second).mean() > 0.3 for first, second in combinations(masks, 2))


def test_dropout_without_a_key_is_none() -> None:
    np.testing.assert_array_equal(dropped(None), np.ones((3, 1, 5, HIDDEN)))


def test_a_key_without_a_rate_drops_nothing() -> None:
    np.testing.assert_array_equal(dropped(mx.random.key(1), rate=0.0), np.ones((3, 1, 5, HIDDEN)))


def test_embed_takes_the_place_of_the_table() -> None:
    module = tiny_module()
    start = normal(np.random.default_rng(1), 2, LENGTH, HIDDEN)
    seen = []
    logits = bind(module, embed=lambda ids: seen.append(ids) or start)(tokens())
    assert_same(seen[0], tokens())
    assert_same(logits, head(module)(hidden_states(module, start)))


def test_a_substitute_can_be_copied() -> None:
    linear = nn.Linear(2, 3)
    twin = copy.copy(Substitute(linear, lambda x: x + 1))
    assert twin(1) == 2
    assert twin.weight is linear.weight


def test_a_frozen_norm_has_the_value_and_the_gradient_of_the_norm() -> None:
    rng, norm = np.random.default_rng(0), nn.RMSNorm(16)
    norm.weight = normal(rng, 16)
    x, weights = normal(rng, 2, 3, 16), normal(rng, 2, 3, 16)
    found, expected = (mx.value_and_grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (frozen_norm(norm), norm))
    assert_close(found, expected, 1e-6)


def test_layers_that_read_the_same_input_are_siblings() -> None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    pairs = {f"layers.{i}.self_attn.{name}": {} for i in range(2) for name in names} | {"layers.0.mlp.up_proj": {}}
    found = {tuple(path.removeprefix("layers.") for path in group) for group in siblings(pairs)}
    together = {tuple(f"{i}.self_attn.{name}" for name in ("k_proj", "q_proj", "v_proj")) for i in range(2)}
    assert found == together | {("0.self_attn.o_proj",), ("1.self_attn.o_proj",), ("0.mlp.up_proj",)}


def test_siblings_are_computed_once_for_an_array() -> None:
    asked: list[mx.array] = []

    def call(x: mx.array) -> list[mx.array]:
        asked.append(x)
        return [x + 1, x + 2]

    first, second = shared(call, 2)
    x, y = mx.array(1.0), mx.array(5.0)
    assert (first(x).item(), second(x).item(), len(asked)) == (2.0, 3.0, 1)
    assert (first(x).item(), second(y).item(), len(asked)) == (2.0, 7.0, 3), "another array is computed anew"
    assert (first(y).item(), len(asked)) == (6.0, 3)


def test_a_bound_model_holds_no_layer_after_a_call() -> None:
    module = three_layers()
    bound = bind(module, tiny_adapter(module), scale=SCALE)
    mx.eval(bound(tokens()))
    before = mx.get_active_memory()
    out = bound(mx.concatenate([tokens()] * 8))
    mx.eval(out)
    size = out.nbytes
    del out
    assert mx.get_active_memory() - before < size // 8
