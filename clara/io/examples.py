"""Records to examples: prompts, memory slots and answers as token ids with their roles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from clara.core import prompts
from clara.core.collate import ANSWER, FIXED, INPUT, Example, document_slot_ids, frame_document, truncate
from clara.core.config import Layout, MemoryConfig
from clara.io.errors import ClaraError
from clara.io.records import Record
from clara.io.tokens import Tokenizer, chat_pieces, encode

Piece = list[int] | str
Turn = tuple[str, str, Sequence[int] | None]
"""Prompt wording, question, and the answer's ids where it is known."""
Row = tuple[list[int], list[int]]
"""Tokens and their roles."""


class Encoder(NamedTuple):
    """What turns text into examples."""

    tokenizer: Tokenizer
    layout: Layout
    doc_max_tokens: int
    max_tokens: int
    pieces: Callable[[tuple[tuple[str, str], ...], tuple[str, ...]], list[Piece]]
    """Chat template pieces of (role, content) messages with slots; remembered."""


def layout_for(tokenizer: Tokenizer, vocab_size: int, memory: MemoryConfig) -> Layout:
    """Return the layout of a base with `vocab_size` embedding rows: `<ENC> <BOS> document <EOS>`, M memory tokens."""
    bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    return Layout(
        vocab_size=vocab_size,
        num_memory_tokens=memory.num_memory_tokens,
        prefix=(vocab_size, *bos),
        suffix=(tokenizer.eos_id,),
    )


def make_encoder(tokenizer: Tokenizer, layout: Layout, doc_max_tokens: int, max_tokens: int) -> Encoder:
    """Return an encoder; it renders each shape of conversation once."""

    @functools.cache
    def pieces(messages: tuple[tuple[str, str], ...], slots: tuple[str, ...]) -> list[Piece]:
        return chat_pieces(tokenizer, [{"role": role, "content": text} for role, text in messages], slots)

    return Encoder(tokenizer, layout, doc_max_tokens, max_tokens, pieces)


def encode_document(encoder: Encoder, text: str) -> tuple[int, ...]:
    """Return a document's tokens in their frame, cut to doc_max_tokens."""
    return frame_document(encode(encoder.tokenizer, text), encoder.layout, encoder.doc_max_tokens)


def encode_prompt(encoder: Encoder, documents: Sequence[str], question: str, name: str = "question") -> Example:
    """Return the prompt that asks one question about documents; the reply is to be generated.

    Raises ClaraError where memory and template alone are longer than max_tokens.
    """
    return _fit(encoder, _conversation(encoder, name, documents, [(prompts.ANSWER, question, None)]))


def encode_record(encoder: Encoder, record: Record, task: str, turn: int = 0, form: str = "turns") -> Example:
    """Return the example of a record under a task.

    turn: counts how often the record was seen; it chooses wordings and which question comes first. form: "turns" asks
    one question after the other and learns the answers; "pairs" learns all questions and answers as one reply. Of more
    pairs than max_tokens holds, the first are taken. Raises ClaraError, naming the record, where not even one fits.
    """
    conversation = functools.partial(_conversation, encoder, record.id or "record", record.docs)
    if task == "autoencode":
        ids = encode(encoder.tokenizer, record.docs[0])[: encoder.doc_max_tokens]
        return _fit(encoder, conversation([(prompts.AUTOENCODE, "", ids)]))
    if task == "paraphrase":
        wording = prompts.PARAPHRASES[turn % len(prompts.PARAPHRASES)]
        reply = record.paraphrase if record.paraphrase is not None else record.replies[0]
        return _fit(encoder, conversation([(wording, "", encode(encoder.tokenizer, reply))]))
    pairs = list(zip(record.questions, record.replies, strict=True))
    pairs = pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]
    for count in range(len(pairs), 0, -1):
        example = conversation(_turns(encoder.tokenizer, pairs[:count], form))
        if len(example.tokens) <= encoder.max_tokens:
            return example
    return _fit(encoder, example)


def turns(record: Record, task: str) -> int:
    """Return after how many turns `encode_record` repeats itself."""
    return {"qa": len(record.questions), "paraphrase": len(prompts.PARAPHRASES)}.get(task, 1)


def _turns(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], form: str) -> list[Turn]:
    """Return question-answer pairs as turns of a conversation."""
    if form == "pairs":
        lines = [prompts.PAIR.format(question=question, answer=answer) for question, answer in pairs]
        return [(prompts.PAIRS, "", encode(tokenizer, "\n".join(lines)))]
    return [
        (prompts.NEXT_QUESTION if i else prompts.ANSWER, question, encode(tokenizer, answer))
        for i, (question, answer) in enumerate(pairs)
    ]


def _fit(encoder: Encoder, example: Example) -> Example:
    """Return the example, cut on its input side to max_tokens."""
    try:
        return truncate(example, encoder.max_tokens)
    except ValueError as error:
        raise ClaraError(str(error)) from error


def _conversation(encoder: Encoder, name: str, documents: Sequence[str], turns: Sequence[Turn]) -> Example:
    """Return a conversation about documents as tokens and roles; a last turn without an answer is left open."""
    memory = tuple(t for i in range(len(documents)) for t in document_slot_ids(i, encoder.layout))
    fills: dict[str, tuple[Sequence[int], int]] = {slot("memory"): (memory, FIXED)}
    messages: list[tuple[str, str]] = []
    for i, (template, question, answer) in enumerate(turns):
        fills[slot(f"question {i}")] = (encode(encoder.tokenizer, question), INPUT)
        text = template.replace(prompts.MEMORY, slot("memory")).replace(prompts.QUESTION, slot(f"question {i}"))
        messages.append(("user", text))
        if answer is not None:
            fills[slot(f"answer {i}")] = (answer, ANSWER)
            messages.append(("assistant", slot(f"answer {i}")))
    used = tuple(name for name in fills if any(name in text for _, text in messages))
    tokens, roles = _fill(encoder.tokenizer, encoder.pieces(tuple(messages), used), fills)
    framed = tuple(encode_document(encoder, text) for text in documents)
    return Example(name, framed, tuple(tokens), tuple(roles))


def slot(name: str) -> str:
    """Return a placeholder for chat templates, in characters of Unicode's private use."""
    return f"\ue000{name}\ue001"


def _fill(tokenizer: Tokenizer, pieces: list[Piece], fills: dict[str, tuple[Sequence[int], int]]) -> Row:
    """Return the pieces with their slots filled; the end token after an answer belongs to the answer."""
    tokens: list[int] = []
    roles: list[int] = []
    for i, piece in enumerate(pieces):
        ids, role = fills[piece] if isinstance(piece, str) else (piece, FIXED)
        after_answer = bool(roles) and roles[-1] == ANSWER
        last = after_answer and i == len(pieces) - 1
        ended = after_answer and bool(ids) and ids[0] in tokenizer.eos_ids
        tokens += ids[:1] if last and ended else [] if last else ids
        roles += [ANSWER] if last and ended else [] if last else [ANSWER] * ended + [role] * (len(ids) - ended)
    if roles[-1] == ANSWER and tokens[-1] not in tokenizer.eos_ids:
        tokens, roles = [*tokens, tokenizer.eos_id], [*roles, ANSWER]
    return tokens, roles
