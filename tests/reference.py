"""The reference's golden numbers as this project's own types: base, parameters and batches."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from pth import load_pth

from clara.core.collate import ANSWER, FIXED, Example, collate
from clara.core.config import (
    CHOOSING,
    Layout,
    LoraConfig,
    LossConfig,
    MemoryConfig,
    RetrievalConfig,
    Stage,
    StepConfig,
    stage_loss,
)
from clara.core.types import Base, Batch, Params

GOLDEN = Path(os.environ.get("CLARA_GOLDEN") or Path(__file__).parent / "golden")
STAGES: dict[str, tuple[Stage, str]] = {
    "stage1": ("pretrain", "checkpoint_stage1"),
    "stage2_instruct": ("instruct", "checkpoint_stage2_instruct"),
    "stage3_end_to_end": ("end_to_end", "checkpoint_stage3"),
    "stage3_retrieval": ("retrieval", "checkpoint_stage3"),
}
"""Stage and checkpoint behind each name of expected.npz."""
TOP_K = 3
ADAPTERS = {
    "encoder_adapter": "compressor",
    "decoder_adapter": "generator",
    "query_reasoner_adapter": "reasoner",
}


class Reference(NamedTuple):
    """One of the reference's checkpoints with what it was run on and what came out."""

    base: Base
    config: StepConfig
    params: Params
    expected: dict[str, np.ndarray]
    examples: list[Example]


def load_reference(name: str) -> Reference:
    """Return the numbers under `name/` of expected.npz with the checkpoint they belong to."""
    stage, checkpoint = STAGES[name]
    meta = json.loads((GOLDEN / "meta.json").read_text())
    module, _ = load_model(GOLDEN / "base")
    tables = load_pth(GOLDEN / checkpoint / "decoder_first_last_layers.pth")
    table = next(v for k, v in tables.items() if "embed" in k)
    heads = [v for k, v in tables.items() if "head" in k]
    vocab = module.model.embed_tokens.weight.shape[0]
    count = meta["doc_max_length"] // meta["compr_rate"]
    ids = {"memory": vocab, "enc": vocab + count + 1, "sep": vocab + count + 2}
    layout = Layout(vocab_size=vocab, num_memory_tokens=count)
    base = Base(
        module,
        layout,
        mx.array(table[[ids["enc"], ids["sep"]]]),
        mx.array(1.0),
        mx.array((heads[0] if heads else table)[vocab:]),
    )
    params = {
        "adapters": load_adapters(GOLDEN / checkpoint / "adapters.pth"),
        "memory_embeddings": mx.array(table[vocab : vocab + count]),
    }
    loss = LossConfig(alignment_weight=0.1) if stage not in CHOOSING else stage_loss(stage)
    config = StepConfig(
        stage=stage,
        memory=MemoryConfig(doc_max_tokens=meta["doc_max_length"], compression_rate=meta["compr_rate"]),
        lora=LoraConfig(rank=meta["lora_r"], alpha=meta["lora_alpha"], dropout=0.0),
        loss=loss,
        retrieval=RetrievalConfig(top_k=TOP_K, taken_share=1e-8),
    )
    with np.load(GOLDEN / "expected.npz") as file:
        expected = {k.removeprefix(f"{name}/"): file[k] for k in file.files if k.startswith(f"{name}/")}
    return Reference(base, config, params, expected, examples_of(name, expected, ids, layout))


def load_adapters(path: Path) -> dict[str, dict[str, dict[str, mx.array]]]:
    """Return the PEFT state dicts of the reference as adapters of this project."""
    return {
        ADAPTERS[name]: {
            key.removesuffix(".lora_A.weight"): {
                "lora_a": mx.array(value.T),
                "lora_b": mx.array(state[key.replace("lora_A", "lora_B")].T),
            }
            for key, value in state.items()
            if key.endswith("lora_A.weight")
        }
        for name, state in load_pth(path).items()
    }


def examples_of(name: str, expected: dict[str, np.ndarray], ids: dict[str, int], layout: Layout) -> list[Example]:
    """Return the reference's left-padded inputs as examples, special tokens renamed to this project's ids."""
    rename = {ids["enc"]: layout.enc_id, ids["sep"]: layout.sep_id}

    def framed(kind: str) -> list[tuple[int, ...]]:
        pairs = zip(expected[f"{kind}_input_ids"], expected[f"{kind}_attention_mask"], strict=True)
        rows = (row[mask.astype(bool)][: -layout.num_memory_tokens].tolist() for row, mask in pairs)
        return [tuple(rename.get(t, t) for t in row) for row in rows]

    documents, rows = framed("enc"), expected["dec_input_ids"]
    questions = framed("query") if "query_input_ids" in expected else [()] * len(rows)
    records, each = records_of(name), len(documents) // len(rows)
    examples = []
    for b, row in enumerate(rows):
        keep = expected["dec_attention_mask"][b].astype(bool)
        slots = itertools.count(layout.first_slot)
        tokens = [
            next(slots) if ids["memory"] <= t < ids["memory"] + layout.num_memory_tokens else rename.get(t, t)
            for t in row[keep].tolist()
        ]
        roles = [ANSWER if label >= 0 else FIXED for label in expected["labels"][b][keep].tolist()]
        own, positives = documents[b * each : (b + 1) * each], records[b].get("pos_index", [])
        examples.append(Example(f"golden {b}", tuple(own), tuple(tokens), tuple(roles), questions[b], tuple(positives)))
    return examples


def records_of(name: str) -> list[dict[str, Any]]:
    """Return the records that the inputs under `name/` were made from."""
    texts = json.loads((GOLDEN / "texts.json").read_text())
    return texts.get(name) or texts["stage3_end_to_end"]


def batch_of(reference: Reference, multiple: int = 32, examples: Sequence[Example] | None = None) -> Batch:
    """Return the reference's examples, or some of them, as one batch."""
    top_k = reference.config.retrieval.top_k if reference.config.stage in CHOOSING else None
    layout = reference.base.layout
    return collate(examples or reference.examples, layout, mx.random.key(0), multiple, top_k)


def gradient_of(expected: dict[str, np.ndarray], grads: Params) -> list[tuple[str, np.ndarray, mx.array]]:
    """Return (name, expected gradient, own gradient) for every trained tensor that the reference names."""
    pairs: list[tuple[str, np.ndarray, Any]] = []
    for name, value in expected.items():
        if name == "grad:memory_tokens":
            pairs.append((name, value, grads["memory_embeddings"]))
        elif name.startswith("grad:"):
            path, which, adapter, _ = name.removeprefix("grad:decoder.").rsplit(".", 3)
            leaf = grads["adapters"][ADAPTERS[adapter]][path][which.lower()]
            pairs.append((name, value.T, leaf))
    return pairs
