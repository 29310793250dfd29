"""Questions, answers and paraphrases about passages, written by a model and verified by it (arXiv 2511.18659, 2.1)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import mlx.core as mx
import msgspec
from mlx_lm import batch_generate
from mlx_lm.sample_utils import make_sampler
from msgspec import Meta, Struct

from clara.core.question_prompts import (
    KINDS,
    Kind,
    Pair,
    QuestionPrompts,
    pair_fault,
    paraphrase_fault,
    parse_pairs,
    parse_paraphrase,
    parse_verdict,
)
from clara.io.base import LoadedBase
from clara.io.corpus.passages import Passage
from clara.io.errors import ClaraError
from clara.io.files import locked
from clara.io.jsonlog import append_lines, read_lines
from clara.io.tokens import chat_pieces, encode

SLOTS = ("{text}", "{question}", "{answer}")
VERDICT_TOKENS = 8
"""Longest verdict: yes or no, with what comes before it."""


class QuestionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How questions are made."""

    simple: Annotated[int, Meta(ge=0, le=1000, description="Questions about one fact that a passage is to have.")] = 3
    complex: Annotated[
        int, Meta(ge=0, le=1000, description="Questions about two or more facts that it is to have.")
    ] = 2
    paraphrase: Annotated[bool, Meta(description="Whether it is to have a paraphrase.")] = True
    attempts: Annotated[int, Meta(ge=1, le=1000, description="How often the model is asked for what is missing.")] = 3
    temperature: Annotated[float, Meta(ge=0, le=100, description="Of what is written; verdicts are greedy.")] = 0.7
    reply_tokens: Annotated[int, Meta(ge=1, le=1_000_000, description="Longest reply.")] = 512
    question_batch: Annotated[int, Meta(ge=1, le=1_000_000, description="Passages that are worked on at a time.")] = 16
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Of all draws: replies, candidates and their order.")] = 0
    prompts: QuestionPrompts = QuestionPrompts()


class Request(NamedTuple):
    """What a model is asked: a wording, and what stands in its slots."""

    template: str
    values: dict[str, str]


class Reply(NamedTuple):
    """What it said, and whether it ended by itself."""

    text: str
    finished: bool


Ask = Callable[[Sequence[Request], int | None], list[Reply]]
"""Requests and the number of a draw, None for the likeliest words, to replies; a function of both alone."""


class Made(Struct, frozen=True, kw_only=True):
    """What was made of one passage; the journal has a line for each batch of these."""

    key: str
    """`work_key` of the passage."""
    pairs: list[tuple[Kind, Pair]] = []
    paraphrase: str | None = None
    rejected: dict[str, int] = {}
    """How much was rejected, by reason."""


class Proposal(NamedTuple):
    """What a model wrote about a passage, to be verified; of a paraphrase the question is empty."""

    passage: int
    kind: Kind | Literal["paraphrase"]
    pair: Pair


def make_questions(passages: Sequence[Passage], keys: Sequence[str], ask: Ask, config: QuestionConfig) -> list[Made]:
    """Return what a model makes of passages: what it writes and then affirms. What fails is asked for again."""
    pairs: list[list[tuple[Kind, Pair]]] = [[] for _ in passages]
    paraphrases: list[str | None] = [None for _ in passages]
    rejected = [Counter[str]() for _ in passages]
    for attempt in range(config.attempts):
        wanted = [
            (i, kind, count)
            for i in range(len(passages))
            for kind, count in missing(pairs[i], paraphrases[i], config)
            if count > 0
        ]
        requests = [written(passages[i].text, kind, count, config.prompts) for i, kind, count in wanted]
        proposals: list[Proposal] = []
        for (i, kind, count), reply in zip(wanted, ask(requests, attempt) if requests else [], strict=True):
            known = [pair for _, pair in pairs[i]] + [other.pair for other in proposals if other.passage == i]
            good, faults = proposed(reply, kind, count, passages[i].text, known)
            proposals += [Proposal(i, kind, pair) for pair in good]
            rejected[i].update(faults)
        checks = [verifying(passages[i].text, kind, pair, config.prompts) for i, kind, pair in proposals]
        for (i, kind, pair), reply in zip(proposals, ask(checks, None) if checks else [], strict=True):
            if (fault := verdict_fault(reply)) is not None:
                rejected[i][f"{kind}: {fault}"] += 1
            elif kind == "paraphrase":
                paraphrases[i] = pair.answer
            else:
                pairs[i].append((kind, pair))
    rows = zip(keys, pairs, paraphrases, rejected, strict=True)
    return [Made(key=key, pairs=each, paraphrase=text, rejected=dict(faults)) for key, each, text, faults in rows]


def missing(
    pairs: Sequence[tuple[Kind, Pair]], paraphrase: str | None, config: QuestionConfig
) -> list[tuple[Kind | Literal["paraphrase"], int]]:
    """Return of each kind how many a passage still lacks."""
    lacks: list[tuple[Kind | Literal["paraphrase"], int]] = [
        (kind, getattr(config, kind) - sum(each == kind for each, _ in pairs)) for kind in KINDS
    ]
    return [*lacks, ("paraphrase", int(config.paraphrase and paraphrase is None))]


def written(text: str, kind: str, count: int, prompts: QuestionPrompts) -> Request:
    """Return the request for some questions of a kind, or for a paraphrase."""
    return Request(getattr(prompts, kind).replace("{count}", str(count)), {"{text}": text})


def verifying(text: str, kind: str, pair: Pair, prompts: QuestionPrompts) -> Request:
    """Return the request for a verdict on what was written."""
    template = {"simple": prompts.supported, "complex": prompts.combined, "paraphrase": prompts.faithful}[kind]
    return Request(template, {"{text}": text, "{question}": pair.question, "{answer}": pair.answer})


def proposed(reply: Reply, kind: str, count: int, text: str, known: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """Return at most `count` pairs of a reply that a model may verify, and why others are of no use."""
    if kind == "paraphrase":
        paraphrase = parse_paraphrase(reply.text)
        fault = paraphrase_fault(paraphrase, text, reply.finished)
        return ([], [f"{kind}: {fault}"]) if fault else ([Pair("", paraphrase)], [])
    good: list[Pair] = []
    faults = []
    found = parse_pairs(reply.text, reply.finished)
    for pair in found:
        if fault := pair_fault(pair, [*known, *good]):
            faults.append(f"{kind}: {fault}")
        elif len(good) < count:
            good.append(pair)
    return good, faults if found else [f"{kind}: nothing to read in the reply"]


def verdict_fault(reply: Reply) -> str | None:
    """Return why a verdict is none in favour, or None."""
    verdict = parse_verdict(reply.text)
    return None if verdict else "no verdict" if verdict is None else "not affirmed"


def model_ask(loaded: LoadedBase, config: QuestionConfig) -> Ask:
    """Return a model as a function from requests to replies, by mlx-lm's batch generation."""
    tokenizer = loaded.tokenizer

    def prompt(request: Request) -> list[int]:
        pieces = chat_pieces(tokenizer, [{"role": "user", "content": request.template}], SLOTS)
        parts = [encode(tokenizer, request.values[piece]) if isinstance(piece, str) else piece for piece in pieces]
        return [token for part in parts for token in part]

    def ask(requests: Sequence[Request], draw: int | None) -> list[Reply]:
        most = config.reply_tokens if draw is not None else VERDICT_TOKENS
        seed = hashlib.sha256(repr((config.seed, draw, requests)).encode("utf-8", "replace")).digest()
        mx.random.seed(int.from_bytes(seed[:8], "little"))
        said = batch_generate(
            loaded.module,
            tokenizer.hf,
            [prompt(request) for request in requests],
            max_tokens=most,
            return_token_ids=True,
            sampler=make_sampler(temp=config.temperature if draw is not None else 0.0),
            prefill_batch_size=config.question_batch,
            completion_batch_size=config.question_batch,
        )
        return [Reply(text, len(ids) < most) for text, ids in zip(said.texts, said.token_ids, strict=True)]

    return ask


def work_key(passage: Passage, model: str, config: QuestionConfig) -> str:
    """Return the name of the work on a passage: 32 hexadecimal digits of its text, the model and the settings."""
    settings = msgspec.json.encode(msgspec.structs.replace(config, question_batch=1))
    return hashlib.sha256(settings + f"\n{model}\n{passage.hash}".encode()).hexdigest()[:32]


def work_off(
    passages: Sequence[Passage],
    ask: Ask,
    model: str,
    config: QuestionConfig,
    journal: Path,
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> list[Made]:
    """Return what is made of each passage; what the journal has is taken from there, the rest is added to it.

    model: the fingerprint of what is behind `ask`. notify: is told how many passages are done, and of how many.
    Work that was cut short is taken up batch by batch as an undisturbed run would have gone on.
    """
    keys = [work_key(passage, model, config) for passage in passages]
    with locked(journal.with_name(f".{journal.name}.lock"), "writing questions"):
        done = read_journal(journal)
        rest = [i for i, key in enumerate(keys) if key not in done]
        notify(len(keys) - len(rest), len(keys))
        for begin in range(0, len(rest), config.question_batch):
            batch = rest[begin : begin + config.question_batch]
            made = make_questions([passages[i] for i in batch], [keys[i] for i in batch], ask, config)
            append_lines(journal, [made])
            done.update((each.key, each) for each in made)
            notify(len(keys) - len(rest) + begin + len(batch), len(keys))
    return [done[key] for key in keys]


def read_journal(path: Path) -> dict[str, Made]:
    """Return the work that a journal holds, by key, without what a killed process left half written.

    Raises ClaraError where the file cannot be read or is no journal.
    """
    try:
        batches = [msgspec.json.decode(line, type=list[Made]) for line in read_lines(path)]
    except msgspec.MsgspecError as error:
        raise ClaraError(f"{path}: not a journal of questions ({error}); move it away to begin anew") from error
    return {made.key: made for batch in batches for made in batch}


def question_fields(made: Made) -> dict[str, Any]:
    """Return the fields that a record gets of what was made of its passage."""
    fields: dict[str, Any] = {"paraphrase": made.paraphrase} if made.paraphrase else {}
    if not made.pairs:
        return fields | {"data_type": "paraphrase" if fields else "autoencode"}
    questions, answers = ([pair[place] for _, pair in made.pairs] for place in (0, 1))
    return fields | {"data_type": "qa", "question": questions, "answers": answers}
