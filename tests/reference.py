"""The reference's golden numbers as this project's own types: base, parameters and batches."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from pth import load_pth

from clara.core.collate import ANSWER, FIXED, Example, collate
from clara.core.config import Layout, LoraConfig, LossConfig, MemoryConfig, StepConfig
from clara.core.types import Base, Batch, Params

GOLDEN = Path(os.environ.get("CLARA_GOLDEN") or Path(__file__).parent / "golden")
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


def load_reference(stage: str, checkpoint: str) -> Reference:
    """Return the numbers under `stage/` of expected.npz with the checkpoint they belong to."""
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
    config = StepConfig(
        memory=MemoryConfig(doc_max_tokens=meta["doc_max_length"], compression_rate=meta["compr_rate"]),
        lora=LoraConfig(rank=meta["lora_r"], alpha=meta["lora_alpha"], dropout=0.0),
        loss=LossConfig(alignment_weight=0.1),
    )
    with np.load(GOLDEN / "expected.npz") as file:
        expected = {k.removeprefix(f"{stage}/"): file[k] for k in file.files if k.startswith(f"{stage}/")}
    return Reference(base, config, params, expected, examples_of(expected, ids, layout))


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


def examples_of(expected: dict[str, np.ndarray], ids: dict[str, int], layout: Layout) -> list[Example]:
    """Return the reference's left-padded inputs as examples, special tokens renamed to this project's ids."""
    count = layout.num_memory_tokens
    rename = {ids["enc"]: layout.enc_id, ids["sep"]: layout.sep_id}
    documents = [
        tuple(rename.get(t, t) for t in row[mask.astype(bool)][:-count].tolist())
        for row, mask in zip(expected["enc_input_ids"], expected["enc_attention_mask"], strict=True)
    ]
    rows = expected["dec_input_ids"]
    each = len(documents) // len(rows)
    examples = []
    for b, row in enumerate(rows):
        keep = expected["dec_attention_mask"][b].astype(bool)
        slots = iter(range(layout.first_slot, layout.first_slot + each * count))
        tokens = [
            next(slots) if ids["memory"] <= t < ids["memory"] + count else rename.get(t, t) for t in row[keep].tolist()
        ]
        roles = [ANSWER if label >= 0 else FIXED for label in expected["labels"][b][keep].tolist()]
        examples.append(
            Example(f"golden {b}", tuple(documents[b * each : (b + 1) * each]), tuple(tokens), tuple(roles))
        )
    return examples


def batch_of(reference: Reference, multiple: int = 32) -> Batch:
    """Return the reference's examples as one batch."""
    return collate(reference.examples, reference.base.layout, mx.random.key(0), multiple)


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
