"""Tiny random bases, adapters and batches, and how their numbers are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import _get_classes

from clara.core.bind import adapted_linears
from clara.core.collate import ANSWER, FIXED, INPUT, Example, collate, document_slot_ids, frame_document
from clara.core.config import (
    CHOOSING,
    ComputeConfig,
    Layout,
    LoraConfig,
    LossConfig,
    MemoryConfig,
    RetrievalConfig,
    Stage,
    StepConfig,
    stage_loss,
)
from clara.core.types import Adapter, Base, Batch, Params

HIDDEN, VOCABULARY, MEMORY_TOKENS, DOCUMENT_TOKENS, TOP_K = 64, 128, 4, 12, 5

JOINT = LossConfig(alignment_weight=0.1, contrastive_weight=0.5)
"""Every term at once, which `end_to_end` has where it trains the compressor too."""

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "granite", "olmo2")

COMMON = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16.0, "final_logit_softcapping": 5.0},
    "gemma3_text": {"query_pre_attn_scalar": 16.0, "sliding_window": 8, "sliding_window_pattern": 2},
    "granite": {
        "attention_bias": True,
        "mlp_bias": True,
        "logits_scaling": 2.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
    },
}
ALWAYS_TIED = ("gemma2",)


def tiny_module(
    model_type: str = "llama", quantized: bool = False, *, tied: bool = True, seed: int = 0, **changes: Any
) -> nn.Module:
    """Return a random mlx-lm model whose layers all matter; quantised to 4 bits in groups of 32 where asked."""
    config = COMMON | SPECIAL.get(model_type, {}) | {"model_type": model_type, "tie_word_embeddings": tied} | changes
    model, arguments = _get_classes(config)
    module: nn.Module = model(arguments.from_dict(config))
    if model_type == "gemma3_text" and tied:
        module.sanitize({})
    rng = np.random.default_rng(seed)
    module.update(tree_map_with_path(lambda path, leaf: weight(rng, path, leaf, model_type), module.parameters()))
    if quantized:
        nn.quantize(module, group_size=32, bits=4)
    mx.eval(module.parameters())
    return module


def weight(rng: np.random.Generator, path: str, leaf: mx.array, model_type: str) -> mx.array:
    """Return random numbers in the shape of `leaf`, at the scale that its place in the model asks for."""
    draw = normal(rng, *leaf.shape)
    if "norm" in path:
        return 0.2 * draw + (0.0 if model_type.startswith("gemma") else 1.0)
    if "embed" in path or "bias" in path:
        return 0.2 * draw
    return draw * (1.5 * leaf.shape[-1] ** -0.5)


def normal(rng: np.random.Generator, *shape: int) -> mx.array:
    """Return float32 normal numbers."""
    return mx.array(rng.standard_normal(shape).astype(np.float32))


def tiny_config(
    *,
    stage: Stage = "pretrain",
    anchored: bool = False,
    anchor_pooling: Literal["mean", "learned", "mapped"] = "mean",
    dropout: float = 0.0,
    loss: LossConfig | None = None,
    compute: ComputeConfig | None = None,
    **retrieval: Any,
) -> StepConfig:
    """Return a configuration of 4 memory tokens, rank 4 and 5 chosen documents; retrieval: fields of its struct."""
    return StepConfig(
        stage=stage,
        memory=MemoryConfig(
            doc_max_tokens=DOCUMENT_TOKENS,
            compression_rate=DOCUMENT_TOKENS // MEMORY_TOKENS,
            anchored=anchored,
            anchor_pooling=anchor_pooling,
            anchor_map_rank=3,
        ),
        lora=LoraConfig(rank=4, alpha=8.0, dropout=dropout),
        loss=loss or stage_loss(stage),
        retrieval=RetrievalConfig(**{"top_k": TOP_K, **retrieval}),
        compute=compute or ComputeConfig(),
    )


def tiny_layout() -> Layout:
    """Return the layout of every tiny base: `<ENC>`, id 1 (as `<BOS>`), document, id 2 (as `<EOS>`)."""
    return Layout(vocab_size=VOCABULARY, num_memory_tokens=MEMORY_TOKENS, prefix=(VOCABULARY, 1), suffix=(2,))


def tiny_base(model_type: str = "llama", quantized: bool = False, **how: Any) -> Base:
    """Return a base around `tiny_module`."""
    special = 0.2 * normal(np.random.default_rng(7), 2, HIDDEN)
    return Base(tiny_module(model_type, quantized, **how), tiny_layout(), special, mx.array(0.2))


def tiny_adapter(module: nn.Module, seed: int = 0, rank: int = 4) -> Adapter:
    """Return an adapter of every adaptable layer that changes what each of them computes."""
    rng = np.random.default_rng(seed)
    return {
        path: {"lora_a": normal(rng, size_in, rank) * size_in**-0.5, "lora_b": 0.2 * normal(rng, rank, size_out)}
        for path, (size_in, size_out) in adapted_linears(module).items()
    }


def tiny_params(base: Base, config: StepConfig, seed: int = 0) -> Params:
    """Return parameters in the middle of a run: nothing is at its start value. A choosing stage has a reasoner."""
    rng = np.random.default_rng(seed + 100)
    names = ("compressor", "generator", "reasoner") if config.stage in CHOOSING else ("compressor", "generator")
    params: Params = {
        "adapters": {name: tiny_adapter(base.module, seed + i, config.lora.rank) for i, name in enumerate(names)},
        "memory_embeddings": 0.2 * normal(rng, base.layout.num_memory_tokens, HIDDEN),
    }
    if config.memory.anchored:
        params["anchor_gain"] = 0.5 + 0.1 * normal(rng, HIDDEN)
    if config.memory.anchor_pooling != "mean":
        params["anchor_query"] = 0.2 * normal(rng, HIDDEN)
    if places := config.memory.anchor_places:
        params["anchor_map_a"] = normal(rng, places + 1, HIDDEN, 3) * HIDDEN**-0.5
        params["anchor_map_b"] = 0.5 * normal(rng, places + 1, 3, HIDDEN)
    return params


def tiny_example(
    seed: int,
    documents: Sequence[int] = (9,),
    answer: int = 4,
    question: int = 3,
    layout: Layout | None = None,
    top_k: int | None = None,
    positives: Sequence[int] = (),
) -> Example:
    """Return a random example: documents of these lengths, a question to be cut where need be, an answer.

    top_k: how many of the documents it chooses, by a question of its own; positives: which of them are right.
    """
    layout = layout or tiny_layout()
    rng = np.random.default_rng(seed)
    texts = [frame_document(words(rng, length), layout, DOCUMENT_TOKENS) for length in documents]
    places = len(texts) if top_k is None else min(top_k, len(texts))
    slots = tuple(id_ for i in range(places) for id_ in document_slot_ids(i, layout))
    parts = [((1,), FIXED), (slots, FIXED), (words(rng, question), INPUT), ((3,), FIXED), (words(rng, answer), ANSWER)]
    tokens = tuple(token for part, _ in parts for token in part)
    roles = tuple(role for part, role in parts for _ in part)
    asked = () if top_k is None else frame_document(words(rng, question + 1), layout, DOCUMENT_TOKENS)
    return Example(f"example {seed}", tuple(texts), tokens, roles, asked, tuple(positives))


def as_text(example: Example) -> Example:
    """Return an example with the row of a teacher, in which its documents' tokens stand in the place of its slots."""
    text = tuple(token for document in example.documents for token in document if token < VOCABULARY)
    kept = [(t, role) for t, role in zip(example.tokens, example.roles, strict=True) if t < VOCABULARY]
    (first, role), *rest = kept
    tokens = (first, *text, *(token for token, _ in rest))
    return example._replace(taught=(tokens, (role, *(FIXED for _ in text), *(role for _, role in rest))))


def words(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    """Return ordinary tokens."""
    return tuple(int(token) for token in rng.integers(4, VOCABULARY, count))


def tiny_batch(*examples: Example, multiple: int = 8, key: int = 0, top_k: int | None = None, **how: Any) -> Batch:
    """Return the examples as a batch; three uneven ones where none are given."""
    chosen = examples or (tiny_example(0), tiny_example(1, (12,), 2, 5), tiny_example(2, (3,), 7, 0))
    return collate(chosen, tiny_layout(), mx.random.key(key), multiple, top_k, **how)


def choosing_examples() -> tuple[Example, ...]:
    """Return four examples of 4, 6, 10 and 20 candidates, of which one, two, none and five hold the answer."""
    right = {4: (2,), 6: (0, 5), 10: (), 20: range(3, 8)}
    lengths = {count: [1 + (5 * i + count) % DOCUMENT_TOKENS for i in range(count)] for count in right}
    return tuple(
        tiny_example(20 + i, lengths[count], (4, 1, 6, 3)[i], 2 + i, top_k=TOP_K, positives=right[count])
        for i, count in enumerate(right)
    )


def as_numpy(array: mx.array) -> np.ndarray:
    """Return the numbers as numpy's float64."""
    return np.array(array.astype(mx.float32)).astype(np.float64)


def difference(actual: Any, expected: Any) -> float:
    """Return the norm of the difference of two arrays as a share of the expected norm; nan where there is one."""
    first, second = (as_numpy(a) if isinstance(a, mx.array) else np.asarray(a, np.float64) for a in (actual, expected))
    assert first.shape == second.shape, f"shapes {first.shape} and {second.shape}"
    norm = float(np.linalg.norm(second))
    distance = float(np.linalg.norm(first - second))
    return distance / norm if norm else distance


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Assert that two pytrees have the same leaves, each within `tolerance` of the expected one's norm."""
    first, second = dict(tree_flatten(actual)), dict(tree_flatten(expected))
    assert first.keys() == second.keys()
    errors = {name: difference(first[name], leaf) for name, leaf in second.items()}
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}


def assert_same(actual: Any, expected: Any) -> None:
    """Assert that two pytrees have the same leaves, bit for bit."""
    first, second = dict(tree_flatten(actual)), dict(tree_flatten(expected))
    assert first.keys() == second.keys()
    assert [name for name, leaf in second.items() if not same_bits(first[name], leaf)] == []


def same_bits(first: mx.array, second: mx.array) -> bool:
    """Return whether two arrays have one dtype, one shape and the same bytes."""
    return first.dtype == second.dtype and first.shape == second.shape and to_bytes(first) == to_bytes(second)


def to_bytes(array: mx.array) -> bytes:
    """Return the bytes of an array of any dtype."""
    return np.array(array.reshape(-1).view(mx.uint8)).tobytes()


def digest(array: mx.array) -> str:
    """Return a short name of an array's bytes, for messages that fit a screen."""
    return hashlib.sha256(to_bytes(array)).hexdigest()[:12]


def snapshot(node: Any) -> Any:
    """Return all there is to know of a tree: identity, type, attributes of each module; identity, bytes of each array.

    Two snapshots are equal exactly where nothing was exchanged, added, removed or written over in between.
    """
    if isinstance(node, mx.array):
        return id(node), str(node.dtype), node.shape, digest(node)
    if isinstance(node, dict):
        children = {name: snapshot(child) for name, child in node.items()}
        attributes = {name: (id(value), repr(value)) for name, value in getattr(node, "__dict__", {}).items()}
        return id(node), type(node), attributes, children
    if isinstance(node, (list, tuple)):
        return id(node), type(node), [snapshot(child) for child in node]
    return id(node), repr(node)
