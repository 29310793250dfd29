"""What benchmarks run on: random bases of known shapes, their parameters and a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.models.llama import Model, ModelArgs

from clara.core.collate import ANSWER, FIXED, Example, collate, document_slot_ids, frame_document
from clara.core.compress import compress
from clara.core.config import Layout, LoraConfig, MemoryConfig, StepConfig, stage_loss
from clara.core.init import add_reasoner, init_base, init_params
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


CANDIDATES, CHOSEN, QUESTION, REPLY = 20, 5, 24, 16
"""Of an `end_to_end` example: documents to choose among and chosen, tokens of question and answer, as in the paper."""


def choosing(setup: Setup, cached: bool) -> Setup:
    """Return the setup of stage `end_to_end`: each row has its own candidates, as tokens or as memories."""
    layout, base = setup.base.layout, setup.base
    config = StepConfig(
        stage="end_to_end", memory=setup.config.memory, lora=setup.config.lora, loss=stage_loss("end_to_end")
    )
    params = add_reasoner(setup.params)
    rng = np.random.default_rng(0)
    slots = [t for i in range(CHOSEN) for t in document_slot_ids(i, layout)]
    examples = []
    for row in range(setup.size.rows):
        ids = rng.integers(3, layout.vocab_size, (CANDIDATES, setup.size.document)).tolist()
        question, reply = ids[0][:QUESTION], ids[1][:REPLY]
        tokens = (*slots, *question, *reply)
        roles = [FIXED] * (len(tokens) - REPLY) + [ANSWER] * REPLY
        documents = tuple(frame_document(each, layout, setup.size.document) for each in ids)
        framed = frame_document(question, layout, QUESTION)
        examples.append(Example(f"row {row}", documents, tokens, tuple(roles), framed, (0,)))
    batch = collate(examples, layout, mx.random.key(0), multiple=1, top_k=CHOSEN)
    if cached:
        batch = batch._replace(documents=compress(base, config, params, batch.documents).memory)
    mx.eval(params, batch)
    return Setup(base, config, params, batch, setup.size)
