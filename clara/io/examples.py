"""Records to examples: prompts, memory slots and answers as token ids with their roles."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from clara.core.collate import ANSWER, FIXED, INPUT, Example, document_slot_ids, frame_document, truncate
from clara.core.config import Layout, MemoryConfig
from clara.core.prompts import MEMORY, QUESTION, Prompts, Wording
from clara.io.errors import ClaraError
from clara.io.records import Record
from clara.io.rows import Inserts, ended, joined_row, plain_row
from clara.io.tokens import Piece, Tokenizer, acquainted, chat_parts, decode, encode, encode_parts, most_tokens

QUESTION_MAX_TOKENS = 512
"""Longest question that documents are chosen by; the rest is cut off."""

SPARE = 16
"""Tokens that a row may have beyond those of its parts, where these are encoded as one."""


class Turn(NamedTuple):
    """One question of a conversation, with its answer where that is known."""

    template: str
    question: str
    answer: str | None
    answer_max_tokens: int | None = None
    system: str = ""


class Encoder(NamedTuple):
    """What turns text into examples."""

    tokenizer: Tokenizer
    layout: Layout
    doc_max_tokens: int
    max_tokens: int
    prompts: Prompts
    render: Callable[[tuple[tuple[str, str], ...], tuple[str, ...]], list[str]]
    """The chat template's text of (role, content) messages, split at slots; remembered."""
    fixed: Callable[[tuple[str, ...]], list[Piece]]
    """What `encode_parts` gives for the texts around the slots; remembered."""
    reads: Literal["memory", "text"] = "memory"
    """What stands for the documents of an example that reads all of them: slots for their memory, or their text."""


def acquainted_encoder(encoder: Encoder, texts: Iterable[str]) -> Encoder:
    """Return the encoder with the tokens of texts at hand: one call of the tokenizer for all of them."""
    return encoder._replace(tokenizer=acquainted(encoder.tokenizer, texts))


def layout_for(tokenizer: Tokenizer, vocab_size: int, memory: MemoryConfig) -> Layout:
    """Return the layout of a base with `vocab_size` embedding rows: `<ENC> <BOS> document <EOS>`, M memory tokens."""
    bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    return Layout(
        vocab_size=vocab_size,
        num_memory_tokens=memory.num_memory_tokens,
        prefix=(vocab_size, *bos),
        suffix=(tokenizer.eos_id,),
        cuts_suffix=memory.cuts_suffix,
    )


def make_encoder(
    tokenizer: Tokenizer, layout: Layout, doc_max_tokens: int, max_tokens: int, prompts: Prompts | None = None
) -> Encoder:
    """Return an encoder; it renders each shape of conversation once."""

    @functools.cache
    def render(messages: tuple[tuple[str, str], ...], slots: tuple[str, ...]) -> list[str]:
        return chat_parts(tokenizer, [{"role": role, "content": text} for role, text in messages], slots)

    @functools.cache
    def fixed(texts: tuple[str, ...]) -> list[Piece]:
        return encode_parts(tokenizer, texts)

    return Encoder(tokenizer, layout, doc_max_tokens, max_tokens, prompts or Prompts(), render, fixed)


def encode_document(encoder: Encoder, text: str) -> tuple[int, ...]:
    """Return a document's tokens in their frame, cut to doc_max_tokens."""
    return frame_document(encode(encoder.tokenizer, text), encoder.layout, encoder.doc_max_tokens)


def encode_question(encoder: Encoder, text: str) -> tuple[int, ...]:
    """Return the tokens of a question that documents are chosen by, in a document's frame."""
    return frame_document(encode(encoder.tokenizer, text), encoder.layout, QUESTION_MAX_TOKENS)


def encode_prompt(
    encoder: Encoder, documents: Sequence[str], question: str, name: str = "question", top_k: int | None = None
) -> Example:
    """Return the prompt that asks one question about documents, or about top_k of them; the reply is to be generated.

    Raises ClaraError where memory and template alone are longer than max_tokens.
    """
    turn = _turn(encoder.prompts.answer, question, None)
    example = _fit(encoder, _conversation(encoder, name, documents, [turn], top_k))
    return example if top_k is None else example._replace(question=encode_question(encoder, question))


def shortened(encoder: Encoder, text: str) -> str:
    """Return the text of a document's first doc_max_tokens tokens: all that is read of it."""
    tokens = encode(encoder.tokenizer, text)
    whole = len(tokens) <= encoder.doc_max_tokens
    # A character that was cut through is left out.
    return text if whole else decode(encoder.tokenizer, tokens[: encoder.doc_max_tokens]).rstrip("\ufffd")


def encode_paraphrase(encoder: Encoder, documents: Sequence[str], turn: int = 0) -> Example:
    """Return the prompt that asks for documents in other words; the reply is to be generated."""
    wordings = encoder.prompts.paraphrases
    return _conversation(encoder, "paraphrase", documents, [_turn(wordings[turn % len(wordings)], "", None)])


def encode_text_prompt(
    encoder: Encoder, texts: Sequence[str], question: str, text_max_tokens: int | None = None
) -> Example:
    """Return the prompt that asks a question about documents given as text, or without any: for the base itself.

    It is as long as the question and the texts are, of which text_max_tokens at most are taken, from the first on.
    """
    wording = encoder.prompts.answer if texts else encoder.prompts.closed
    text = ("\n\n".join(texts), INPUT, text_max_tokens)
    return _conversation(encoder, "question", [], [_turn(wording, question, None)], text=text)


def encode_record(
    encoder: Encoder, record: Record, task: str, turn: int = 0, form: str = "turns", most: int | None = None
) -> Example:
    """Return the example of a record under a task, which reads all of its documents, as memory or as text.

    turn: counts how often the record was seen; it chooses wordings and which question comes first. form: "turns" asks
    one question after the other and learns the answers; "pairs" learns all questions and answers as one reply; "one"
    asks a single question. Of more pairs than max_tokens holds, or than `most`, the first are taken. Raises ClaraError,
    naming the record, where not even one fits. Questions of task "cloze" are sentences to fill in, in turns.
    """
    prompts = encoder.prompts
    conversation = functools.partial(_conversation, encoder, record.id or "record", record.docs)
    if task == "autoencode":
        return _fit(encoder, conversation([_turn(prompts.autoencode, "", record.docs[0], encoder.doc_max_tokens)]))
    if task == "paraphrase":
        wording = prompts.paraphrases[turn % len(prompts.paraphrases)]
        reply = record.paraphrase if record.paraphrase is not None else record.replies[0]
        return _fit(encoder, conversation([_turn(wording, "", reply)]))
    pairs = _pairs(record, 0 if task == "cloze" else turn)
    for count in range(1 if form == "one" else min(most or len(pairs), len(pairs)), 0, -1):
        example = conversation(_turns(prompts, pairs[:count], task if task == "cloze" else form))
        if len(example.tokens) <= encoder.max_tokens:
            return example
    return _fit(encoder, example)


def encode_choice(encoder: Encoder, record: Record, top_k: int, turn: int = 0, answered: bool = True) -> Example:
    """Return the example of a record whose question chooses top_k of its documents, of fewer all, and is answered.

    turn: counts how often the record was seen; it chooses among its questions. answered: False leaves the prompt out,
    where only the choice is learnt. Raises ClaraError, naming the record, where it does not fit into max_tokens.
    """
    name = record.id or "record"
    question, answer = _pairs(record, turn)[0]
    if answered:
        turns = [_turn(encoder.prompts.answer, question, answer)]
        example = _fit(encoder, _conversation(encoder, name, record.docs, turns, top_k))
    else:
        example = Example(name, tuple(encode_document(encoder, text) for text in record.docs), (), ())
    return example._replace(question=encode_question(encoder, question), positives=tuple(record.positives))


def turns(encoder: Encoder, record: Record, task: str) -> int:
    """Return after how many turns `encode_record` repeats itself."""
    return {"qa": len(record.questions), "paraphrase": len(encoder.prompts.paraphrases)}.get(task, 1)


def surely_fits(encoder: Encoder, record: Record, form: str = "turns") -> bool:
    """Return whether each question of a record surely fits alone into a row; form: as in `encode_record`."""
    whole = encoder._replace(max_tokens=sys.maxsize)
    frame = encode_record(whole, blank_record(len(record.docs)), "qa", form=form)
    return len(frame.tokens) + most_text(encoder, record, "qa") + SPARE <= encoder.max_tokens


def blank_record(documents: int) -> Record:
    """Return a record whose texts are of one letter."""
    return Record(docs=["x"] * documents, question=["x"], answers=["x"], paraphrase="x", pos_index=[0])


def most_text(encoder: Encoder, record: Record, task: str) -> int:
    """Return how many tokens the texts of a record may have in its longest row with one question (see `most_tokens`).

    Of a document they are no more than are read of it.
    """
    most = functools.partial(most_tokens, encoder.tokenizer)
    documents = [min(most(text), encoder.doc_max_tokens) for text in record.docs]
    read = sum(documents) if encoder.reads == "text" else 0
    if task == "autoencode":
        return read + documents[0]
    if task == "paraphrase":
        texts = [record.paraphrase or "", *record.replies]
    else:
        texts = [question + answer for question, answer in zip(record.questions, record.replies, strict=False)]
    return read + max(map(most, texts), default=0)


def _pairs(record: Record, turn: int) -> list[tuple[str, str]]:
    """Return a record's questions with their answers, beginning with another one each turn."""
    pairs = list(zip(record.questions, record.replies, strict=True))
    first = turn % len(pairs)
    return pairs[first:] + pairs[:first]


def _turn(wording: Wording, question: str, answer: str | None, answer_max_tokens: int | None = None) -> Turn:
    """Return the first turn of a conversation."""
    return Turn(wording.user, question, answer, answer_max_tokens, wording.system)


def _turns(prompts: Prompts, pairs: Sequence[tuple[str, str]], form: str) -> list[Turn]:
    """Return question-answer pairs as turns of a conversation."""
    if form == "pairs":
        lines = [prompts.pair.format(question=question, answer=answer) for question, answer in pairs]
        return [_turn(prompts.pairs, "", "\n".join(lines))]
    first, after = (prompts.cloze, prompts.next_cloze) if form == "cloze" else (prompts.answer, prompts.next_question)
    return [_turn(first, *pairs[0]), *(Turn(after, *pair) for pair in pairs[1:])]


def _fit(encoder: Encoder, example: Example) -> Example:
    """Return the example, cut on its input side to max_tokens."""
    try:
        return truncate(example, encoder.max_tokens)
    except ValueError as error:
        raise ClaraError(str(error)) from error


def _conversation(
    encoder: Encoder,
    name: str,
    documents: Sequence[str],
    turns: Sequence[Turn],
    top_k: int | None = None,
    text: tuple[str, int, int | None] | None = None,
) -> Example:
    """Return a conversation about documents, or top_k of them, as tokens and roles.

    A last turn without an answer is left open. text: stands in the place of the documents' memory, as an insert; where
    the encoder reads text, theirs does, and the example has no documents to compress.
    """
    if encoder.reads == "text" and documents and top_k is None:
        text, documents = ("\n\n".join(shortened(encoder, each) for each in documents), FIXED, None), ()
    places = len(documents) if top_k is None else min(top_k, len(documents))
    memory = [t for i in range(places) for t in document_slot_ids(i, encoder.layout)]
    inserts: Inserts = {} if text is None else {slot("memory"): text}
    messages: list[tuple[str, str]] = [("system", turns[0].system)] if turns[0].system else []
    for i, turn in enumerate(turns):
        asked, replied = slot(f"question {i}"), slot(f"answer {i}")
        inserts[asked] = (turn.question, INPUT, None)
        messages.append(("user", turn.template.replace(MEMORY, slot("memory")).replace(QUESTION, asked)))
        if turn.answer is not None:
            inserts[replied] = (turn.answer, ANSWER, turn.answer_max_tokens)
            messages.append(("assistant", replied))
    parts = _rendered(encoder, messages, tuple({slot("memory"): None, **inserts}))
    if encoder.prompts.joined:
        row = joined_row(encoder.tokenizer, parts, inserts, memory, slot("memory"))
    else:
        row = plain_row(encoder.tokenizer, parts[1::2], encoder.fixed(tuple(parts[::2])), inserts, memory)
    tokens, roles = ended(encoder.tokenizer, row, whole=encoder.prompts.joined)
    framed = tuple(encode_document(encoder, text) for text in documents)
    return Example(name, framed, tuple(tokens), tuple(roles))


def slot(name: str) -> str:
    """Return a placeholder for chat templates, in characters of Unicode's private use."""
    return f"\ue000{name}\ue001"


def _rendered(encoder: Encoder, messages: list[tuple[str, str]], slots: Sequence[str]) -> list[str]:
    """Return text, slot, text, … of a conversation; a system message that the template refuses opens the first turn."""
    used = tuple(name for name in slots if any(name in text for _, text in messages))
    try:
        return encoder.render(tuple(messages), used)
    except ClaraError:
        if messages[0][0] != "system":
            raise
    (_, system), (_, first), *rest = messages
    return encoder.render((("user", f"{system}\n{first}"), *rest), used)
