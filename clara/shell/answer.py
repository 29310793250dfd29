"""Documents and a question to an answer: compress, choose, place, decode with mlx-lm's own engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm import stream_generate

from clara.core.collate import pad_documents
from clara.core.compress import compress
from clara.core.config import CHOOSING
from clara.core.generate import bind_generator
from clara.core.select import relevance_scores
from clara.io.examples import encode_document, encode_prompt, encode_question
from clara.shell.memories import MULTIPLE, compress_tokens
from clara.shell.setup import Session


def compress_texts(session: Session, texts: Sequence[str], batch_size: int = 8) -> mx.array:
    """Return float[N, M, D]: the memories of documents, computed in batches."""
    layout = session.base.layout
    if not texts:
        return mx.zeros((0, layout.num_memory_tokens, session.base.special_embeddings.shape[1]))
    parts = []
    for i in range(0, len(texts), batch_size):
        rows = [encode_document(session.encoder, text) for text in texts[i : i + batch_size]]
        parts.append(compress_tokens(session, rows))
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def choose(session: Session, memory: mx.array, question: str) -> list[int]:
    """Return which of N documents the question is asked about, by their memory: float[N, M, D].

    A model of a choosing stage takes the `top_k` that its reasoner scores highest, best first; others take all.
    """
    if session.config.stage not in CHOOSING:
        return list(range(memory.shape[0]))
    tokens = pad_documents([encode_question(session.encoder, question)], session.base.layout, 1, MULTIPLE)
    query = compress(session.base, session.config, session.params, tokens, adapter="reasoner").memory
    scores = relevance_scores(query, memory[None])[0]
    best: Any = mx.argsort(-scores).tolist()
    return list(best[: session.config.retrieval.top_k])


def answer(session: Session, documents: Sequence[str], question: str, max_tokens: int = 64) -> Iterator[str]:
    """Yield the answer to a question about documents, or those of them that it chooses, piece by piece, greedily."""
    memory = compress_texts(session, documents)
    chosen = choose(session, memory, question) if documents else []
    prompt = encode_prompt(session.encoder, [documents[i] for i in chosen], question)
    model = bind_generator(session.base, session.config, session.params, memory[mx.array(chosen)] if chosen else memory)
    for piece in stream_generate(model, session.tokenizer.hf, list(prompt.tokens), max_tokens=max_tokens):
        yield piece.text
