"""What benchmarks run on: random bases of known shapes, their parameters and a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.models.llama import Model, ModelArgs

from clara.core.collate import ANSWER, FIXED, Example, collate, document_slot_ids, frame_document
from clara.core.config import Layout, LoraConfig, MemoryConfig, StepConfig
from clara.core.init import init_base, init_params
from clara.core.types import Base, Batch, Params


class Size(NamedTuple):
    """Shapes of a base and of a batch: rows of `document` tokens, `decoder` tokens of which `answer` are learnt."""

    model: dict[str, Any]
    rows: int
    document: int
    decoder: int
    answer: int


COMMON = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
SIZES = {
    "tiny": Size(
        {
            **COMMON,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        },
        2,
        48,
        64,
        32,
    ),
    "smollm2": Size(
        {
            **COMMON,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
        },
        2,
        256,
        496,
        350,
    ),
}


class Setup(NamedTuple):
    """What a step needs."""

    base: Base
    config: StepConfig
    params: Params
    batch: Batch
    size: Size


def make_setup(size: Size) -> Setup:
    """Return random weights of a size: float32 on a CPU, bfloat16 elsewhere."""
    module = Model(ModelArgs.from_dict(size.model))
    module.set_dtype(mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16)
    memory = MemoryConfig(doc_max_tokens=size.document, compression_rate=size.document // 8)
    layout = Layout(
        vocab_size=size.model["vocab_size"], num_memory_tokens=8, prefix=(size.model["vocab_size"], 1), suffix=(2,)
    )
    config = StepConfig(memory=memory, lora=LoraConfig(dropout=0.0))
    base = init_base(module, layout)
    params = init_params(base, config, seed=0)
    rng = np.random.default_rng(0)
    examples = []
    for row in range(size.rows):
        ids = rng.integers(3, size.model["vocab_size"], (2, max(size.document, size.decoder))).tolist()
        slots = document_slot_ids(0, layout)
        tokens = (*slots, *ids[1][: size.decoder - len(slots)])
        roles = [FIXED] * (size.decoder - size.answer) + [ANSWER] * size.answer
        document = frame_document(ids[0], layout, size.document)
        examples.append(Example(f"row {row}", (document,), tokens, tuple(roles)))
    batch = collate(examples, layout, mx.random.key(0), multiple=1)
    mx.eval(module.parameters(), base.special_embeddings, base.embedding_rms, params, batch)
    return Setup(base, config, params, batch, size)
