"""An mlx-lm module, given embeddings and an adapter, as a callable model; the module itself is never touched.

`bind` copies the tree of modules but not one array, and puts a `Substitute` where something else is to be computed:
at adapted linear layers, at the token embedding, and at recomputed layers. The architecture's own code runs unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from clara.core.shard import CUT, adapted_call, whole_shape
from clara.core.types import Adapter

LINEARS = (nn.Linear, nn.QuantizedLinear, *CUT)
EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)


SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers of one module that are given the same array: their adapters' first products are one."""


class Substitute(nn.Module):
    """Stands where `original` stood: calls another function, and is the original in every other respect."""

    def __init__(self, original: nn.Module, call: Callable[..., Any]):
        super().__init__()
        self.__dict__.update(original=original, call=call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the given function returns."""
        return self.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return the original's attribute."""
        if "original" not in vars(self):
            raise AttributeError(name)
        return getattr(vars(self)["original"], name)


class Anatomy(NamedTuple):
    """Where the parts of a base are, as module paths."""

    body: str
    """The module that maps tokens to final hidden states, such as `model`."""
    embedding: str
    """The token embedding inside it, such as `model.embed_tokens`."""
    layers: str
    """The list of blocks, such as `model.layers`."""


def anatomy(module: nn.Module) -> Anatomy:
    """Return where `module` keeps its token embedding and its blocks.

    Raises ValueError if no sub-module has both, as in an architecture that is no decoder of tokens.
    """
    for path, part in module.named_modules():
        tables = [name for name, child in part.items() if isinstance(child, EMBEDDINGS)]
        blocks = [n for n, c in part.items() if isinstance(c, list) and c and isinstance(c[0], nn.Module)]
        if path and len(tables) >= 1 and len(blocks) == 1:
            return Anatomy(path, f"{path}.{tables[0]}", f"{path}.{blocks[0]}")
    raise ValueError(
        f"{type(module).__module__}: found no part that holds both a token embedding and a list of layers; "
        "wanted a decoder-only language model as mlx-lm builds it"
    )


def part_of(module: Any, path: str) -> Any:
    """Return the part of `module` at a dotted path."""
    for name in path.split("."):
        module = module[int(name)] if isinstance(module, list) else module[name]
    return module


def adapted_linears(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return {path: (in, out)} of every linear layer inside the blocks, quantised or not, cut or not."""
    prefix = anatomy(module).layers + "."
    linears = {
        path: part for path, part in module.named_modules() if path.startswith(prefix) and isinstance(part, LINEARS)
    }
    return {path: linear_shape(linears[path]) for path in sorted(linears)}


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """Return (in, out) of a linear layer, the whole of one that is cut, or (D, V) of an embedding; quantised or not."""
    return whole_shape(linear, own_shape(linear))


def own_shape(linear: nn.Module) -> tuple[int, int]:
    """Return `linear_shape`, but of a layer that is cut over processes that of this one's part."""
    out, columns = linear.weight.shape
    return (columns * 32 // linear.bits if hasattr(linear, "bits") else columns), out


def share(node: Any, substitutes: Mapping[str, nn.Module], path: str = "") -> Any:
    """Return a copy of a module tree that shares every array, with substitutes at the given paths."""
    if path in substitutes:
        return substitutes[path]
    step = f"{path}." if path else ""
    if isinstance(node, nn.Module):
        kind: Any = type(node)
        twin = kind.__new__(kind)
        twin.__dict__.update(vars(node))
        dict.update(twin, {name: share(child, substitutes, step + name) for name, child in node.items()})
        return twin
    if isinstance(node, dict):
        return {name: share(child, substitutes, f"{step}{name}") for name, child in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(share(child, substitutes, f"{step}{i}") for i, child in enumerate(node))
    return node


def bind(
    module: nn.Module,
    adapter: Adapter | None = None,
    *,
    scale: float = 1.0,
    dropout: float = 0.0,
    key: mx.array | None = None,
    embed: Callable[[mx.array], mx.array] | None = None,
    grad_checkpoint: int = 0,
    dequantize_rows: int = 0,
) -> nn.Module:
    """Return a model that computes `module` with `adapter` on its linear layers; `module` stays as it is.

    scale: alpha / rank. dropout: rate on the adapters' inputs, drawn from key: uint32[2]; none without a key.
    embed: int32[B, T] → float[B, T, D], in place of the table. grad_checkpoint: every n-th layer is recomputed in
    the backward pass. Raises ValueError where the adapter names a layer that the module does not have.
    """
    parts = anatomy(module)
    adapter = adapter or {}
    modules = dict(module.named_modules())
    if unknown := [path for path in adapter if not isinstance(modules.get(path), LINEARS)]:
        raise ValueError(f"the adapter names {unknown[0]!r}, which is no linear layer of this base")
    keys = mx.random.split(key, len(adapter)) if key is not None and dropout and adapter else [None] * len(adapter)
    how = {"scale": scale, "dropout": dropout, "dequantize_rows": dequantize_rows}
    inside = functools.partial(adapted, modules, keys=dict(zip(sorted(adapter), keys, strict=True)), how=how)
    substitutes = inside(adapter)
    if embed is not None:
        substitutes[parts.embedding] = Substitute(modules[parts.embedding], embed)
    for i, layer in enumerate(part_of(module, parts.layers)):
        if grad_checkpoint and i % grad_checkpoint == 0:
            path = f"{parts.layers}.{i}"
            pairs = {p: pair for p, pair in adapter.items() if p.startswith(path + ".")}
            substitutes[path] = Substitute(layer, recomputed(layer, path, pairs, inside))
    return share(module, substitutes)


def adapted(
    modules: Mapping[str, nn.Module], pairs: Adapter, keys: Mapping[str, mx.array | None], how: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """Return {path: substitute} of the linear layers that `pairs` adapts, and of every norm.

    keys: of each layer's dropout; layers that read the same input share that of the first. how: see `lora_linears`.
    """
    found: dict[str, nn.Module] = {
        path: Substitute(norm, frozen_norm(norm)) for path, norm in modules.items() if type(norm) is nn.RMSNorm
    }
    for paths in siblings(pairs):
        linears: list[Any] = [modules[path] for path in paths]
        together = adapted_call(linears, [pairs[path] for path in paths], key=keys[paths[0]], **how)
        calls = shared(together, len(paths))
        found |= {path: Substitute(*each) for path, *each in zip(paths, linears, calls, strict=True)}
    return found


def siblings(pairs: Adapter) -> list[tuple[str, ...]]:
    """Return the adapted paths in groups whose layers read the same input; a layer of its own is a group of one."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path in sorted(pairs):
        parent, _, name = path.rpartition(".")
        family = next((names for names in SAME_INPUT if name in names), (name,))
        groups.setdefault((parent, family), []).append(path)
    return [tuple(group) for group in groups.values()]


def shared(call: Callable[[mx.array], list[mx.array]], count: int) -> list[Callable[[mx.array], mx.array]]:
    """Return the functions of each of the `count` results of `call`, which computes them once for all.

    Results are for the array, as an object, that they were computed for; each is handed out once, and nothing is held
    when all have been.
    """
    waiting: dict[int, mx.array] = {}
    given: list[mx.array] = []

    def result(place: int, x: mx.array) -> mx.array:
        if not (place in waiting and given[0] is x):
            waiting.update(enumerate(call(x)))
            given[:] = [x]
        out = waiting.pop(place)
        if not waiting:
            given.clear()
        return out

    return [functools.partial(result, place) for place in range(count)]


def frozen_norm(norm: Any) -> Callable[[mx.array], mx.array]:
    """Return the function of an RMS norm whose weight has no gradient: that would be a sum over all positions."""

    @mx.custom_function
    def normed(x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, norm.weight, norm.eps)

    @normed.vjp
    def normed_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        weighted = cotangents * norm.weight.astype(cotangents.dtype)
        return mx.vjp(lambda x: mx.fast.rms_norm(x, None, norm.eps), [primals], [weighted])[1][0]

    return cast(Callable[[mx.array], mx.array], normed)


def recomputed(
    layer: nn.Module, path: str, pairs: Adapter, adapted: Callable[[Adapter], dict[str, nn.Module]]
) -> Callable[..., mx.array]:
    """Return a layer's function whose inside is computed again in the backward pass instead of kept.

    Only `pairs` and the layer's arguments are differentiated; the base's weights have no gradient.
    """

    def run(pairs: Adapter, *args: Any, **kwargs: Any) -> Any:
        return share(layer, adapted(pairs), path)(*args, **kwargs)

    return lambda *args, **kwargs: mx.checkpoint(run)(pairs, *args, **kwargs)


def hidden_states(module: nn.Module, embeddings: mx.array, adapter: Adapter | None = None, **how: Any) -> mx.array:
    """Return float[B, T, D]: hidden states after the final norm, of given embeddings: float[B, T, D].

    Causal, positions from 0; no vocabulary logits. `how` as in `bind`.
    """
    # Some architectures scale their embeddings in place: they get an array object of their own.
    bound = bind(module, adapter, embed=lambda _: embeddings.astype(embeddings.dtype), **how)
    body = part_of(bound, anatomy(module).body)
    return body(mx.zeros(embeddings.shape[:2], dtype=mx.int32))


def head(module: nn.Module) -> Callable[[mx.array], mx.array]:
    """Return float[B, A, D] → float[B, A, V]: the base's own head (tied or not, scaled or capped as it is)."""
    body = anatomy(module).body
    original = part_of(module, body)

    def logits(hidden: mx.array) -> mx.array:
        top = share(module, {body: Substitute(original, lambda *_, **__: hidden)})
        return top(mx.zeros(hidden.shape[:2], dtype=mx.int32))

    return logits
