"""Questions of an evaluation to predictions: chosen for, answered, timed and scored."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from clara.core.preservation import paraphrase_scores
from clara.core.scoring import answer_scores
from clara.io.evaluation.formats import Question
from clara.io.evaluation.predictions import Prediction
from clara.io.evaluation.systems import SYSTEMS, System
from clara.io.examples import shortened
from clara.io.tokens import encode
from clara.shell.answer import Asked, answer_batch, text_generator, text_prompt
from clara.shell.decode import Reply, decode_batch
from clara.shell.evaluation.choosing import (
    Bench,
    Choice,
    choose,
    memory_of,
    own_candidates,
    ranking_of,
    session_for,
)
from clara.shell.setup import Session

SHOWN, NAMED, TITLE = 300, 60, 80
"""Characters of a document that a prediction keeps, that name it, and that a title may have."""


def answered(bench: Bench, name: str, questions: Sequence[Question]) -> list[Prediction]:
    """Return a system's predictions for questions of one task, computed together."""
    system = SYSTEMS[name]
    session, room = wording(bench, system, questions[0])
    begun = time.perf_counter()
    choices = choose(bench, system, questions)
    retrieve = (time.perf_counter() - begun) / len(questions) if choices[0].candidates else 0.0
    pairs = list(zip(questions, choices, strict=True))
    cuts = [0] * len(pairs)
    if system.tuned:
        replies = answer_batch(session, [Asked(q.text, memory_of(bench, c.documents)) for q, c in pairs], room)
    else:
        prompts = [text_prompt(session, read_of(session, system, c), q.text, room) for q, c in pairs]
        cuts = [cut for _, cut in prompts]
        model = text_generator(session) if system.tuned_on_text else session.base.module
        replies = decode_batch(model, session.tokenizer, [tokens for tokens, _ in prompts], room, session.beams)
    return [
        predicted(bench, name, question, held(session, choice, read_of(session, system, choice), cut), reply, retrieve)
        for (question, choice), cut, reply in zip(pairs, cuts, replies, strict=True)
    ]


def read_of(session: Session, system: System, choice: Choice) -> Sequence[str]:
    """Return what a system that reads texts is given of its documents: all, or as much as it was trained on."""
    if not system.tuned_on_text:
        return choice.documents
    return [shortened(session.encoder, text) for text in choice.documents]


def wording(bench: Bench, system: System, question: Question) -> tuple[Session, int]:
    """Return the session that asks a question of its task for a system, and the room for the answer in tokens."""
    session, room = session_for(bench, system), bench.max_tokens
    if question.task == "qa":
        return session, room
    prompts = session.encoder.prompts
    changed = msgspec.structs.replace(prompts, answer=prompts.paraphrases[0])
    encoder = session.encoder._replace(prompts=changed)
    return session._replace(encoder=encoder), max(room, session.config.memory.doc_max_tokens)


def held(session: Session, choice: Choice, texts: Sequence[str], cut: int) -> Choice:
    """Return a choice without the last documents that a prompt holds nothing of.

    texts: what the prompt was to hold of each document; cut: how many tokens of that it lacks.
    """
    kept = len(texts)
    while cut and kept and cut >= (size := len(encode(session.tokenizer, texts[kept - 1]))):
        # Two line breaks stand before each document but the first.
        cut, kept = max(cut - size - len(encode(session.tokenizer, "\n\n")), 0), kept - 1
    return choice._replace(documents=choice.documents[:kept], scores=choice.scores[:kept])


def predicted(bench: Bench, name: str, question: Question, choice: Choice, reply: Reply, retrieve: float) -> Prediction:
    """Return a reply with all that is known of it. retrieve: seconds that choosing took."""
    system = SYSTEMS[name]
    positives = {question.documents[i] for i in question.positives}
    compress = compress_seconds(bench, system, question, choice)
    if question.task == "paraphrase":
        metrics = paraphrase_scores(reply.text, question.golds, "\n".join(question.documents))
    else:
        metrics = answer_scores(reply.text, question.golds, question.keywords)
    return Prediction(
        id=question.id,
        system=name,
        question=question.text,
        golds=list(question.golds),
        prediction=reply.text,
        documents=[title(text) for text in choice.documents],
        texts=[text[:SHOWN] for text in choice.documents],
        scores=list(choice.scores),
        positives=[text in positives for text in choice.documents] if positives else [],
        candidates=choice.candidates,
        ranking=ranking_of(bench, system, question, choice),
        metrics=metrics,
        seconds={"compress": compress, "retrieve": retrieve, "prefill": reply.prefill, "decode": reply.decode},
        prompt_tokens=reply.prompt_tokens,
        tokens=reply.tokens,
        finished=reply.finished,
    )


def compress_seconds(bench: Bench, system: System, question: Question, choice: Choice) -> float:
    """Return what compressing took that is charged to a question.

    Its own candidates are compressed for its sake, all that were chosen among; passages of a corpus beforehand, at no
    charge.
    """
    if not system.tuned or bench.compressed is None:
        return 0.0
    charged = {"candidates": own_candidates(question), "known": choice.documents, "other": choice.documents}
    return sum((bench.compressed.seconds[text] for text in charged.get(system.reads, ())), 0.0)


def title(text: str) -> str:
    """Return what a document is called: the title before its first colon, or its first words."""
    first, colon, _ = text.partition(": ")
    if colon and len(first) <= TITLE:
        return first
    words = " ".join(text.split())
    return words if len(words) <= NAMED else words[:NAMED].rpartition(" ")[0] or words[:NAMED]
