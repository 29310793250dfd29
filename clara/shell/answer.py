"""Documents and a question to an answer: compress, place, decode with mlx-lm's own engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
from mlx_lm import stream_generate

from clara.core.collate import bucket, pad
from clara.core.compress import compress
from clara.core.generate import bind_generator
from clara.core.types import Documents
from clara.io.examples import encode_document, encode_prompt
from clara.shell.setup import Session


def compress_texts(session: Session, texts: Sequence[str], batch_size: int = 8) -> mx.array:
    """Return float[N, M, D]: the memories of documents, computed in batches."""
    layout = session.base.layout
    if not texts:
        return mx.zeros((0, layout.num_memory_tokens, session.base.special_embeddings.shape[1]))
    parts = []
    for i in range(0, len(texts), batch_size):
        rows = [encode_document(session.encoder, text) for text in texts[i : i + batch_size]]
        length = bucket(max(map(len, rows)) + layout.num_memory_tokens, 16)
        documents = Documents(pad(rows, len(rows), length), mx.array([len(row) for row in rows]))
        parts.append(compress(session.base, session.config, session.params, documents).memory)
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def answer(session: Session, documents: Sequence[str], question: str, max_tokens: int = 64) -> Iterator[str]:
    """Yield the answer to a question about documents, piece by piece, decoded greedily."""
    memory = compress_texts(session, documents)
    prompt = encode_prompt(session.encoder, documents, question)
    model = bind_generator(session.base, session.config, session.params, memory)
    for piece in stream_generate(model, session.tokenizer.hf, list(prompt.tokens), max_tokens=max_tokens):
        yield piece.text
