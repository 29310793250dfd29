"""The original's checkpoints as this project's parameters, and back: ids, tables and scales told apart.

With L tokens in the base's tokenizer, the original appends rows to table and head: M memory tokens (or one for all),
then `<AE>`, `<ENC>` and `<SEP>`. Rows of the base beyond L are dropped there, so its softmax ends at L as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from clara.core.bind import anatomy, part_of
from clara.core.config import StepConfig
from clara.core.types import Adapter, Base, Params
from clara.io.base import LoadedBase
from clara.io.errors import ClaraError
from clara.io.original import Original

STAGE_NAMES = {
    "pretrain": "stage1",
    "instruct": "stage1_2",
    "retrieval": "stage2_pretrain_retrieval",
    "end_to_end": "stage2",
}
"""What the original calls the stages."""

SCALE = 2.0
"""alpha / rank of every adapter of the original."""

COMPARED_ROWS = 64
"""Rows of the table that tell whether a base is the one that a checkpoint was trained on."""

LARGEST_DIFFERENCE = 0.3
"""Of those rows, as a share of their norm: the same base in 4 bits stays below, another base is far above."""


def options_of(original: Original, model: str = "") -> dict[str, Any]:
    """Return the options that an original checkpoint was trained with, as nested dicts.

    model: the base, where it is not the one that the checkpoint names. Raises ClaraError where its configuration lacks
    a field or asks for what is not supported.
    """
    config = original.config
    wanted = ("decoder_model_name", "doc_max_length", "compr_rate", "lora_r")
    if missing := [name for name in wanted if name not in config]:
        raise ClaraError(f"config.json of the checkpoint: no {', '.join(missing)}")
    if not config.get("lora", True) or config.get("compr_model_name") or config.get("kbtc_training"):
        raise ClaraError("config.json of the checkpoint: wanted lora, no compr_model_name and no kbtc_training")
    stages = {theirs: ours for ours, theirs in STAGE_NAMES.items()}
    stage = stages.get(config.get("training_stage", ""), "pretrain")
    if stage == "pretrain" and "reasoner" in original.adapters:
        stage = "end_to_end"
    options: dict[str, Any] = {
        "model": model or config["decoder_model_name"],
        "stage": stage,
        "memory": {
            "doc_max_tokens": config["doc_max_length"],
            "compression_rate": config["compr_rate"],
            "anchored": False,
            "cuts_suffix": True,
        },
        "lora": {"rank": config["lora_r"], "alpha": SCALE * config["lora_r"], "dropout": 0.1},
        "retrieval": {"top_k": config.get("generation_top_k", 5)},
    }
    return options


def from_original(original: Original, loaded: LoadedBase, num_memory_tokens: int) -> tuple[Params, dict[str, mx.array]]:
    """Return (parameters, extras) of an original checkpoint beside a loaded base, as a checkpoint here holds them.

    Raises ClaraError where the table does not have the rows of the base's tokenizer and of the special tokens, or has
    other rows than the base.
    """
    size, table = loaded.tokenizer.vocab_size, original.embeddings
    own = part_of(loaded.module, anatomy(loaded.module).embedding)
    shared = not original.config.get("different_mem_tokens", False)
    count = 1 if shared else num_memory_tokens
    wanted = (size + count + 3, own(mx.array([0])).shape[-1])
    if table.shape != wanted:
        raise ClaraError(
            f"{loaded.name}: with its {size} tokens a checkpoint's table is {wanted}, but this one is {table.shape}; "
            "give the base that it was trained on (--model)"
        )
    check_rows(loaded.name, own, table[:size])
    memory = table[size : size + count].astype(mx.float32)
    ae, enc, sep = (table[size + count + i] for i in range(3))
    params: Params = {
        "adapters": tree_map(lambda leaf: leaf.astype(mx.float32), original.adapters),
        "memory_embeddings": mx.repeat(memory, num_memory_tokens, axis=0) if shared else memory,
    }
    rows = own.weight.shape[0]
    extras = {
        "special_embeddings": mx.stack([enc, sep, ae]),
        "embedding_rms": mx.sqrt(mx.mean(mx.square(table[:size].astype(mx.float32)))),
        "head_rows": (table if original.head is None else original.head)[size:],
    }
    return params, extras | ({"head_size": mx.array(size)} if size < rows else {})


def check_rows(name: str, own: Any, table: mx.array) -> None:
    """Raise ClaraError where rows of a checkpoint's table: float[L, D] are not those of the base's own embedding."""
    index = mx.arange(0, table.shape[0], max(table.shape[0] // COMPARED_ROWS, 1))
    first, second = own(index).astype(mx.float32), table[index].astype(mx.float32)
    share = float(mx.sqrt(mx.square(first - second).sum() / mx.maximum(mx.square(second).sum(), 1e-12)))
    if not share <= LARGEST_DIFFERENCE:
        raise ClaraError(
            f"{name}: its embeddings differ from the checkpoint's by {share:.0%}: it was trained on another base; "
            "give that one with --model"
        )


def to_original(
    params: Params,
    base: Base,
    loaded: LoadedBase,
    config: StepConfig,
    origin: Mapping[str, Any],
) -> Original:
    """Return parameters as a checkpoint of the original, whose scale of 2 is folded into `lora_b`.

    origin: what `origin_of` said of the checkpoint that they came from, empty for others: these get a new
    configuration, a zero row for `<AE>`, and, in a head of its own, zero rows for all special tokens. Raises ClaraError
    for what the original does not have (see `require_original`), and for memory embeddings that its one row cannot
    hold.
    """
    require_original(params, config)
    size, dtype = loaded.tokenizer.vocab_size, base.special_embeddings.dtype
    own = part_of(loaded.module, anatomy(loaded.module).embedding)(mx.arange(size)).astype(dtype)
    said = dict(origin.get("config", {})) or new_config(loaded, config)
    shared = not said.get("different_mem_tokens", False)
    rows = params["memory_embeddings"].astype(dtype)
    if shared and not mx.array_equal(rows, mx.repeat(rows[:1], rows.shape[0], axis=0)):
        raise ClaraError(
            "its config.json has one memory token for all (different_mem_tokens false), but they were trained apart"
        )
    special = base.special_embeddings
    ae = special[2:3] if special.shape[0] > 2 else mx.zeros_like(special[:1])
    table = mx.concatenate([own, rows[:1] if shared else rows, ae, special[:2]])
    head = None
    if not tied(loaded):
        extra = mx.zeros((table.shape[0] - size, table.shape[1])) if base.head_rows is None else base.head_rows
        head = mx.concatenate([loaded.module.lm_head.weight[:size].astype(dtype), extra.astype(dtype)])
    kind = getattr(mx, origin.get("dtype", "float32"))
    scales = {name: scaled(adapter, config.lora.scale / SCALE) for name, adapter in params["adapters"].items()}
    adapters = tree_map(lambda leaf: leaf.astype(kind), scales)
    names = {name: tuple(keys) for name, keys in origin.get("names", {}).items()}
    return Original(said, adapters, table, head, None, names)


def require_original(params: Params, config: StepConfig) -> None:
    """Raise ClaraError for what the original does not have: anchored memory, a reasoner of late interaction."""
    if config.memory.anchored:
        raise ClaraError("anchored memory cannot be written for the original, which has none; wanted anchored = false")
    if config.retrieval.relevance != "flattened" and "reasoner" in params["adapters"]:
        raise ClaraError(
            f"a reasoner trained with relevance {config.retrieval.relevance} cannot be written for the original, which "
            "compares flattened memories; wanted relevance = flattened"
        )


def new_config(loaded: LoadedBase, config: StepConfig) -> dict[str, Any]:
    """Return a configuration for parameters that did not come from the original, in its words."""
    return {
        "model_type": "CLaRa",
        "auto_map": {"AutoConfig": "modeling_clara.CLaRaConfig", "AutoModel": "modeling_clara.CLaRa"},
        "decoder_model_name": loaded.name,
        "doc_max_length": config.memory.doc_max_tokens,
        "compr_rate": config.memory.compression_rate,
        "compr_model_name": None,
        "lora": True,
        "lora_r": config.lora.rank,
        "training_form": "both_separately",
        "training_stage": STAGE_NAMES[config.stage],
        "generation_top_k": config.retrieval.top_k,
        "sep": True,
        "optimize_mem_tokens": True,
        "different_mem_tokens": True,
        "kbtc_training": False,
        "load_adapters": True,
    }


def origin_of(original: Original) -> dict[str, Any]:
    """Return what a checkpoint keeps of the original that it was read from, for the way back."""
    leaf = next(leaf for _, leaf in tree_flatten(original.adapters))
    kind = str(leaf.dtype).rpartition(".")[2]
    return {
        "config": original.config,
        "dtype": kind,
        "names": {name: list(keys) for name, keys in original.names.items()},
    }


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """Return an adapter whose `lora_b` is multiplied by a factor; the same one for 1."""
    if factor == 1:
        return adapter
    return {path: {**pair, "lora_b": pair["lora_b"] * factor} for path, pair in adapter.items()}


def tied(loaded: LoadedBase) -> bool:
    """Return whether the base's head is its embedding table."""
    return "lm_head" not in loaded.module
