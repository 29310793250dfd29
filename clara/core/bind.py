"""An mlx-lm module, given embeddings and an adapter, as a callable model; the module itself is never touched.

`bind` copies the tree of modules but not one array, and puts a `Substitute` where something else is to be computed:
at adapted linear layers, at the token embedding, and at recomputed layers. The architecture's own code runs unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from clara.core.lora import lora_linear
from clara.core.types import Adapter

LINEARS = (nn.Linear, nn.QuantizedLinear)
EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)


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
    """Return {path: (in, out)} of every linear layer inside the blocks, quantised or not."""
    prefix = anatomy(module).layers + "."
    linears = {
        path: part for path, part in module.named_modules() if path.startswith(prefix) and isinstance(part, LINEARS)
    }
    return {path: linear_shape(linears[path]) for path in sorted(linears)}


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """Return (in, out) of a linear layer, or (D, V) of an embedding table, quantised or not."""
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
) -> nn.Module:
    """Return a model that computes `module` with `adapter` on its linear layers; `module` stays as it is.

    scale: alpha / rank. dropout: rate on the adapters' inputs, drawn from key: uint32[2]; none without a key.
    embed: int32[B, T] → float[B, T, D], in place of the table. grad_checkpoint: every n-th layer is recomputed in
    the backward pass. Raises ValueError where the adapter names a layer that the module does not have.
    """
    parts = anatomy(module)
    adapter = adapter or {}
    linears = dict(module.named_modules())
    if unknown := [path for path in adapter if not isinstance(linears.get(path), LINEARS)]:
        raise ValueError(f"the adapter names {unknown[0]!r}, which is no linear layer of this base")
    keys = mx.random.split(key, len(adapter)) if key is not None and dropout and adapter else None
    drop = {path: None if keys is None else keys[i] for i, path in enumerate(sorted(adapter))}

    def adapted(pairs: Adapter) -> dict[str, nn.Module]:
        def call(path: str) -> Callable[..., mx.array]:
            return lambda x: lora_linear(linears[path], x, pairs[path], scale, dropout, drop[path])

        return {path: Substitute(linears[path], call(path)) for path in pairs}

    substitutes = adapted(adapter)
    if embed is not None:
        substitutes[parts.embedding] = Substitute(linears[parts.embedding], embed)
    for i, layer in enumerate(part_of(module, parts.layers)):
        if grad_checkpoint and i % grad_checkpoint == 0:
            path = f"{parts.layers}.{i}"
            pairs = {p: pair for p, pair in adapter.items() if p.startswith(path + ".")}
            substitutes[path] = Substitute(layer, recomputed(layer, path, pairs, adapted))
    return share(module, substitutes)


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
