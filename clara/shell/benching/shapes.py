"""What cases run on: bases of known shapes with random weights or real ones, their parameters, and batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.llama import Model, ModelArgs

from clara.core.bind import anatomy, part_of
from clara.core.collate import ANSWER, FIXED, Example, collate, document_slot_ids, frame_document
from clara.core.config import CHOOSING, Layout, MemoryConfig, RetrievalConfig, Stage, StepConfig, stage_loss
from clara.core.init import add_reasoner, init_base, init_params
from clara.core.types import Base, Batch, Params
from clara.shell.benching.options import BenchOptions

TOP_K, QUESTION, REPLY = 5, 24, 16
"""Documents that are read or chosen where there are several; tokens of a question and of its answer."""


class Size(NamedTuple):
    """Shapes of a base, and of rows of `decoder` tokens, of which the last `answer` are learnt."""

    model: dict[str, Any]
    bits: int
    """Of a quantised weight, in groups of 64; 0 for none."""
    document: int
    """Tokens of a document without its frame."""
    decoder: int
    answer: int
    memory_tokens: int
    """Memory tokens of a document in steps."""
    stored: int
    """Memory tokens of a document in stores and prompts."""


def llama(hidden: int, layers: int, heads: int, keys: int, inner: int, vocabulary: int, **rest: Any) -> dict[str, Any]:
    """Return the configuration of a llama."""
    return {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        **rest,
    }


MISTRAL = llama(4096, 32, 32, 8, 14336, 32000, tie_word_embeddings=False, rope_theta=1e6)
SIZES = {
    "tiny": Size(llama(64, 2, 4, 2, 128, 512), 0, 48, 64, 32, 8, 8),
    "smollm2": Size(llama(576, 30, 9, 3, 1536, 49152, rope_theta=1e5), 0, 256, 512, 350, 8, 16),
    "mistral7b": Size(MISTRAL, 0, 256, 512, 350, 8, 16),
    "mistral7b-4bit": Size(MISTRAL, 4, 256, 512, 350, 8, 16),
}


def random_module(size: Size, dtype: mx.Dtype) -> nn.Module:
    """Return random weights of a size, frozen, made part by part, so that never two copies of all are in memory."""
    module: Any = Model(ModelArgs.from_dict(size.model))
    for part in (*module.layers, module):
        part.set_dtype(dtype)
        if size.bits:
            nn.quantize(part, group_size=64, bits=size.bits)
        mx.eval(part.parameters())
    module.freeze()
    module.eval()
    return module


def random_layout(module: nn.Module, size: Size) -> Layout:
    """Return the layout of a base without a tokenizer: `<ENC>`, id 1, document, id 2."""
    rows = part_of(module, anatomy(module).embedding).weight.shape[0]
    return Layout(vocab_size=rows, num_memory_tokens=size.memory_tokens, prefix=(rows, 1), suffix=(2,))


def to_base(module: nn.Module, layout: Layout) -> Base:
    """Return a module as a base, its special embeddings computed."""
    base = init_base(module, layout)
    mx.eval(base.special_embeddings, base.embedding_rms)
    return base


def memory_config(size: Size) -> MemoryConfig:
    """Return how documents of a size become memory."""
    return MemoryConfig(doc_max_tokens=size.document, compression_rate=size.document // size.memory_tokens)


def step_config(size: Size, options: BenchOptions, stage: Stage) -> StepConfig:
    """Return the configuration of a stage's steps, its loss weighted as in the paper."""
    return StepConfig(
        stage=stage,
        memory=memory_config(size),
        lora=options.lora,
        loss=stage_loss(stage),
        retrieval=RetrievalConfig(top_k=TOP_K),
        compute=options.compute,
    )


def start_params(base: Base, config: StepConfig) -> Params:
    """Return the parameters that training of a stage begins with, evaluated."""
    params = init_params(base, config, seed=0)
    params = add_reasoner(params) if config.stage in CHOOSING else params
    mx.eval(params)
    return params


def stage_batch(base: Base, size: Size, stage: Stage, rows: int, candidates: int) -> Batch:
    """Return a batch of random tokens in which nothing is padding, evaluated.

    `pretrain` reads one document a row, `instruct` TOP_K, a choosing stage chooses TOP_K of `candidates`.
    """
    rng = np.random.default_rng(0)
    examples = [one_example(rng, base.layout, size, stage, candidates, f"row {row}") for row in range(rows)]
    batch = collate(examples, base.layout, mx.random.key(0), 1, TOP_K if stage in CHOOSING else None)
    mx.eval(batch)
    return batch


def one_example(
    rng: np.random.Generator, layout: Layout, size: Size, stage: Stage, candidates: int, name: str
) -> Example:
    """Return a random example of a stage."""

    def words(count: int) -> list[int]:
        return rng.integers(3, layout.vocab_size, count).tolist()

    count = 1 if stage == "pretrain" else candidates if stage in CHOOSING else TOP_K
    places = min(count, TOP_K)
    slots = [token for i in range(places) for token in document_slot_ids(i, layout)]
    answer = size.answer if stage == "pretrain" else REPLY
    length = size.decoder if stage == "pretrain" else len(slots) + QUESTION + REPLY
    tokens = (*slots, *words(length - len(slots)))
    roles = [FIXED] * (length - answer) + [ANSWER] * answer
    documents = tuple(frame_document(words(size.document), layout, size.document) for _ in range(count))
    if stage not in CHOOSING:
        return Example(name, documents, tokens, tuple(roles))
    asked = frame_document(words(QUESTION), layout, QUESTION)
    return Example(name, documents, tokens, tuple(roles), asked, (0,))


def positions(batch: Batch) -> int:
    """Return all positions of a batch that is without padding: documents, memory tokens, questions, decoder rows."""
    rows = [batch.tokens]
    rows += [] if isinstance(batch.documents, mx.array) else [batch.documents.tokens]
    rows += [] if batch.retrieval is None else [batch.retrieval.questions.tokens]
    return sum(each.size for each in rows)
