"""Documents and a question to an answer: compress, choose, place, decode.

The three calls of the original are `answer` (from given documents), `answer_chosen` (from those that the question
chooses among candidates) and `paraphrase` (a document in other words, from its memory).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from clara.core.collate import Example, pad_documents, truncate
from clara.core.compress import compress
from clara.core.config import CHOOSING
from clara.core.generate import bind_generator, shift_slots
from clara.core.select import relevance_scores
from clara.core.stages import lens_of
from clara.io.errors import ClaraError
from clara.io.examples import (
    encode_document,
    encode_paraphrase,
    encode_prompt,
    encode_question,
    encode_text_prompt,
    shortened,
)
from clara.io.tokens import encode
from clara.shell.decode import Reply, decode_batch, stream
from clara.shell.memories import MULTIPLE, compress_tokens
from clara.shell.setup import Session

MAX_TOKENS = 64
"""Longest answer, in tokens, unless told otherwise."""


class Asked(NamedTuple):
    """A question and the memories that it is answered from."""

    question: str
    memory: mx.array
    """float[K, M, D]; K = 0 asks without any document."""


def compress_texts(session: Session, texts: Sequence[str], batch_size: int = 8) -> mx.array:
    """Return float[N, M, D]: the memories of documents, computed in batches."""
    if not texts:
        return no_memory(session)
    parts = []
    for i in range(0, len(texts), batch_size):
        rows = [encode_document(session.encoder, text) for text in texts[i : i + batch_size]]
        parts.append(compress_tokens(session, rows))
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def no_memory(session: Session) -> mx.array:
    """Return float[0, M, D]: the memories of no document."""
    return mx.zeros((0, session.base.layout.num_memory_tokens, session.base.special_embeddings.shape[1]))


def compress_questions(session: Session, questions: Sequence[str]) -> mx.array:
    """Return float[Q, M, D]: questions as the reasoner compresses them; without one, as the compressor does."""
    rows = [encode_question(session.encoder, question) for question in questions]
    batch = pad_documents(rows, session.base.layout, len(rows), MULTIPLE)
    adapter = "reasoner" if has_reasoner(session) else "compressor"
    return compress(session.base, session.config, session.params, batch, adapter=adapter).memory


def has_reasoner(session: Session) -> bool:
    """Return whether the session's parameters have learnt to choose documents by a question."""
    return "reasoner" in session.params["adapters"]


def rank(session: Session, memory: mx.array, question: str) -> list[tuple[int, float]]:
    """Return (index, relevance score) of each of N documents, best first, by their memory: float[N, M, D]."""
    if not memory.shape[0]:
        return []
    return best_first(relevances(session, compress_questions(session, [question])[0], [memory]))


def relevances(session: Session, query: mx.array, blocks: Iterable[mx.array]) -> list[float]:
    """Return the relevance score of each document.

    query: float[M, D], of a question; blocks: float[n, M, D] each, the documents' memories one block after the other.
    """
    how, lens = session.config.retrieval.relevance, lens_of(session.params)
    filled = (memory for memory in blocks if memory.shape[0])
    scores: Any = (relevance_scores(query[None], memory[None], how, lens)[0].tolist() for memory in filled)
    return list(chain.from_iterable(scores))


def best_first(scores: Iterable[float]) -> list[tuple[int, float]]:
    """Return (index, score) of documents, best first, of equal scores the earlier document first."""
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def choose(session: Session, memory: mx.array, question: str) -> list[int]:
    """Return which of N documents the question is asked about, by their memory: float[N, M, D].

    A model of a choosing stage takes the `top_k` that its reasoner scores highest, best first; others take all.
    """
    if session.config.stage not in CHOOSING:
        return list(range(memory.shape[0]))
    return [i for i, _ in rank(session, memory, question)[: session.config.retrieval.top_k]]


def answer(session: Session, documents: Sequence[str], question: str, max_tokens: int = MAX_TOKENS) -> Iterator[str]:
    """Yield the answer to a question about documents, all of which are read, piece by piece.

    They are read as the generator learnt it: from memory, or their text, of each the first doc_max_tokens.
    """
    if session.encoder.reads == "text":
        prompt = read_prompt(session, documents, question, max_tokens)[0]
        yield from pieces(session, prompt, no_memory(session), max_tokens)
    else:
        yield from answer_from(session, compress_texts(session, documents), question, max_tokens)


def answer_chosen(
    session: Session, candidates: Sequence[str], question: str, max_tokens: int = MAX_TOKENS
) -> Iterator[str]:
    """Yield the answer to a question about those of the candidates that it chooses (see `choose`)."""
    if session.encoder.reads == "text":
        yield from answer(session, candidates, question, max_tokens)
        return
    memory = compress_texts(session, candidates)
    chosen = choose(session, memory, question)
    yield from answer_from(session, memory[mx.array(chosen)] if chosen else memory, question, max_tokens)


def paraphrase(session: Session, document: str, max_tokens: int = 256) -> Iterator[str]:
    """Yield a document in other words, out of its memory alone, or its text, whichever the generator learnt to read."""
    text = session.encoder.reads == "text"
    memory = no_memory(session) if text else compress_texts(session, [document])
    prompt = encode_paraphrase(session.encoder, [document if text else ""]).tokens
    yield from pieces(session, prompt, memory, max_tokens)


def answer_from(session: Session, memory: mx.array, question: str, max_tokens: int = MAX_TOKENS) -> Iterator[str]:
    """Yield the answer to a question from memories: float[K, M, D]; of none, from what the generator knows."""
    prompt = memory_prompt(session, memory.shape[0], question, max_tokens)
    yield from pieces(session, prompt, memory, max_tokens)


def pieces(session: Session, prompt: Sequence[int], memory: mx.array, max_tokens: int) -> Iterator[str]:
    """Yield what the generator says to a prompt whose slots read memory: float[K, M, D]."""
    model = bind_generator(session.base, session.config, session.params, memory)
    for piece in stream(model, session.tokenizer, prompt, max_tokens, beams=session.beams):
        yield piece.text


def text_generator(session: Session) -> nn.Module:
    """Return the generator as a model that reads no memory."""
    return bind_generator(session.base, session.config, session.params, no_memory(session))


def memory_prompt(session: Session, count: int, question: str, room: int = MAX_TOKENS) -> tuple[int, ...]:
    """Return the prompt that asks a question about `count` documents that are there as memory; 0 asks without any.

    The question is cut where the base's context would not hold it with an answer of `room` tokens. Raises ClaraError
    where the context does not even hold the memories.
    """
    if not count:
        return text_prompt(session, [], question, room)[0]
    # The memories stand for the texts, whose tokens the prompt does not hold.
    encoder = session.encoder._replace(max_tokens=sys.maxsize, reads="memory")
    return fitted(session, encode_prompt(encoder, [""] * count, question), room)


def text_prompt(
    session: Session, texts: Sequence[str], question: str, room: int = MAX_TOKENS
) -> tuple[tuple[int, ...], int]:
    """Return (the prompt that asks the base itself about texts, how many tokens of theirs it leaves out).

    The end of the texts is left out, and then the beginning of the question, where the base's context would not hold
    all with an answer of `room` tokens. Raises ClaraError where it does not even hold the rest.
    """
    whole = encode_text_prompt(session.encoder, texts, question)
    excess = len(whole.tokens) - longest(session, room)
    if not texts or excess <= 0:
        return fitted(session, whole, room), 0
    size = len(encode(session.tokenizer, "\n\n".join(texts)))
    kept = max(size - excess, 0)
    return fitted(session, encode_text_prompt(session.encoder, texts, question, kept), room), size - kept


def read_prompt(
    session: Session, texts: Sequence[str], question: str, room: int = MAX_TOKENS
) -> tuple[tuple[int, ...], int]:
    """Return what `text_prompt` does, of each text the first doc_max_tokens: what a generator tuned on text reads."""
    return text_prompt(session, [shortened(session.encoder, text) for text in texts], question, room)


def longest(session: Session, room: int) -> int:
    """Return how many tokens a prompt may have in the base's context with an answer of `room` tokens after it."""
    return sys.maxsize if session.context is None else session.context - room


def fitted(session: Session, prompt: Example, room: int) -> tuple[int, ...]:
    """Return a prompt's tokens, its input cut to what the base's context holds with an answer of `room` tokens."""
    try:
        return truncate(prompt, longest(session, room)).tokens
    except ValueError as error:
        raise ClaraError(
            f"the base reads {session.context:,} tokens: too few for a prompt of {len(prompt.tokens):,}, memories "
            f"included, and an answer of {room:,}; lower the number of documents or --max-tokens"
        ) from error


def answer_batch(session: Session, asked: Sequence[Asked], max_tokens: int = MAX_TOKENS) -> list[Reply]:
    """Return the answers to questions, each from its own memories, computed together."""
    memory = [each.memory for each in asked]
    prompts, row = [], 0
    for each in asked:
        count = each.memory.shape[0]
        prompt = memory_prompt(session, count, each.question, max_tokens)
        prompts.append(shift_slots(prompt, session.base.layout, row))
        row += count
    whole = mx.concatenate(memory) if row else no_memory(session)
    model = bind_generator(session.base, session.config, session.params, whole)
    return decode_batch(model, session.tokenizer, prompts, max_tokens, session.beams)


def answer_texts_batch(
    session: Session, asked: Sequence[tuple[str, Sequence[str]]], max_tokens: int = MAX_TOKENS
) -> list[Reply]:
    """Return the answers of the base itself to (question, texts), computed together."""
    prompts = [text_prompt(session, texts, question, max_tokens)[0] for question, texts in asked]
    return decode_batch(session.base.module, session.tokenizer, prompts, max_tokens, session.beams)
