"""The systems of an evaluation, side by side: what each reads to answer a question, and by which model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import mlx.core as mx
import msgspec
import numpy as np

from clara.core.lexical import LexicalIndex, best, bm25_scores, tfidf_scores
from clara.core.preservation import paraphrase_scores
from clara.core.scoring import answer_scores, ranking_scores
from clara.core.select import relevance_scores
from clara.io.errors import ClaraError
from clara.io.evaluation.formats import Question
from clara.io.evaluation.predictions import Prediction
from clara.io.memories import read_memories
from clara.shell.answer import (
    Asked,
    answer_batch,
    answer_texts_batch,
    compress_questions,
    no_memory,
    text_prompt,
)
from clara.shell.decode import Reply
from clara.shell.evaluation.documents import Compressed
from clara.shell.setup import Session

BLOCK = 1024
"""Candidates whose memories are scored at a time."""

SHOWN, NAMED, TITLE = 300, 60, 80
"""Characters of a document that a prediction keeps, that name it, and that a title may have."""


class System(NamedTuple):
    """What makes a system."""

    about: str
    tuned: bool
    """Whether the trained generator answers, from memories; otherwise the base does, from texts."""
    reads: Literal["known", "other", "candidates", "tfidf", "bm25", "nothing"]
    """The documents that are known to hold the answer, those of another question, the best of the question's
    candidates by the reasoner (of a corpus where it has none), the best of a corpus by words, or none."""


SYSTEMS = {
    "memory": System("compressed documents", True, "known"),
    "memory_retrieved": System(
        "compressed documents that the reasoner chooses among the candidates", True, "candidates"
    ),
    "memory_tfidf": System("compressed passages that TF-IDF finds", True, "tfidf"),
    "text": System("the base with the documents' text", False, "known"),
    "text_tfidf": System("the base with the text of passages that TF-IDF finds", False, "tfidf"),
    "text_bm25": System("the base with the text of passages that BM25 finds", False, "bm25"),
    "tuned_closed_book": System("the trained generator without a document", True, "nothing"),
    "closed_book": System("the base without a document", False, "nothing"),
    "memory_shuffled": System("compressed documents of another question", True, "other"),
}


class Bench(NamedTuple):
    """What the systems of an evaluation share."""

    session: Session
    corpus: Sequence[str]
    """Distinct passages that the systems which search find theirs in."""
    words: LexicalIndex | None
    """Index of the corpus; None where no system searches by words."""
    others: Mapping[str, tuple[str, ...]]
    """Documents of another question, by the question's id."""
    top_k: int
    max_tokens: int
    compressed: Compressed | None = None
    """None until documents are compressed."""


class Choice(NamedTuple):
    """What a question is to be answered from."""

    documents: tuple[str, ...] = ()
    """Best first."""
    scores: tuple[float, ...] = ()
    candidates: int = 0
    """How many they were chosen among."""
    ranking: Mapping[str, float] = {}


def serves(name: str, question: Question, corpus: Sequence[str]) -> bool:
    """Return whether a system can be asked a question: whether there is what it reads."""
    reads = SYSTEMS[name].reads
    if question.task == "paraphrase":
        return reads in ("known", "other")
    own = bool(question.documents)
    return {"known": own, "other": own, "nothing": True}.get(reads, bool(corpus))


def other_documents(questions: Sequence[Question], seed: int) -> dict[str, tuple[str, ...]]:
    """Return for each question's id the documents that another question knows to hold its answer.

    They are those of the next question in an order drawn by the seed that shares no document with it. Raises
    ClaraError where a question shares one with every other.
    """
    groups = list(dict.fromkeys(question.known for question in questions))
    order = np.random.default_rng([seed, 3]).permutation(len(groups)).tolist()
    place = {groups[group]: i for i, group in enumerate(order)}
    found = {}
    for question in questions:
        own, at = set(question.documents), place[question.known]
        after = (groups[i] for i in (*order[at + 1 :], *order[:at]))
        other = next((group for group in after if group and own.isdisjoint(group)), None)
        if other is None:
            raise ClaraError(
                f"question {question.id}: no other question has documents that are not also its own; memory_shuffled "
                "wants some: leave it out of --systems, or raise --limit"
            )
        found[question.id] = other
    return found


def read_by(bench: Bench, name: str, questions: Sequence[Question]) -> Iterator[str]:
    """Yield every document whose memory a system needs, some of them more than once."""
    system = SYSTEMS[name]
    if system.reads == "candidates":
        pools = [candidates_of(bench, question) for question in questions]
        yield from (text for pool in pools if pool is not bench.corpus for text in pool)
        yield from bench.corpus if any(pool is bench.corpus for pool in pools) else ()
    elif system.tuned:
        yield from (text for question in questions for text in choose(bench, system, [question])[0].documents)


def choose(bench: Bench, system: System, questions: Sequence[Question]) -> list[Choice]:
    """Return what each question is to be answered from."""
    if system.reads == "candidates":
        return by_memory(bench, questions)
    if system.reads in ("tfidf", "bm25"):
        return [by_words(bench, question, system.reads) for question in questions]
    if system.reads == "other":
        return [Choice(bench.others[question.id]) for question in questions]
    return [Choice(question.known if system.reads == "known" else ()) for question in questions]


def candidates_of(bench: Bench, question: Question) -> Sequence[str]:
    """Return what the reasoner chooses among: the question's documents, or the corpus where there is no choice."""
    return question.documents if len(question.documents) > 1 else bench.corpus


def by_words(bench: Bench, question: Question, reads: str) -> Choice:
    """Return the passages of the corpus that share most with a question by TF-IDF or BM25."""
    assert bench.words is not None, "a system that searches by words has an index"
    score = tfidf_scores if reads == "tfidf" else bm25_scores
    return ranked(bench, question, bench.corpus, best(score(bench.words, question.text), len(bench.corpus)))


def by_memory(bench: Bench, questions: Sequence[Question]) -> list[Choice]:
    """Return the candidates of each question that the reasoner scores highest."""
    queries = compress_questions(bench.session, [question.text for question in questions])
    found = []
    for i, question in enumerate(questions):
        candidates = candidates_of(bench, question)
        scores = list[float]()
        for begin in range(0, len(candidates), BLOCK):
            memory = memory_of(bench, candidates[begin : begin + BLOCK])
            scores += np.array(relevance_scores(queries[i : i + 1], memory[None])[0]).tolist()
        order = sorted(enumerate(scores), key=lambda pair: -pair[1])
        found.append(ranked(bench, question, candidates, order))
    return found


def ranked(bench: Bench, question: Question, candidates: Sequence[str], order: Sequence[tuple[int, float]]) -> Choice:
    """Return the first `top_k` of candidates in order of (index, score), and how good that order is.

    It is measured where all documents that hold the answer are candidates, and others too.
    """
    chosen = order[: bench.top_k]
    positives = {question.documents[i] for i in question.positives}
    wanted = [i for i, text in enumerate(candidates) if text in positives]
    measured = positives and len({candidates[i] for i in wanted}) == len(positives) and len(wanted) < len(candidates)
    return Choice(
        tuple(candidates[i] for i, _ in chosen),
        tuple(score for _, score in chosen),
        len(candidates),
        ranking_scores([i for i, _ in order], wanted, bench.top_k) if measured else {},
    )


def memory_of(bench: Bench, documents: Sequence[str]) -> mx.array:
    """Return float[K, M, D]: the memories of documents."""
    if not documents:
        return no_memory(bench.session)
    assert bench.compressed is not None, "documents are compressed before questions are asked"
    return read_memories(bench.compressed.memories, [bench.compressed.tokens[text] for text in documents])


def answered(bench: Bench, name: str, questions: Sequence[Question]) -> list[Prediction]:
    """Return a system's predictions for questions of one task, computed together."""
    system = SYSTEMS[name]
    session, room = bench.session, bench.max_tokens
    if questions[0].task == "paraphrase":
        session, room = paraphrasing(session), max(room, session.config.memory.doc_max_tokens)
    begun = time.perf_counter()
    choices = choose(bench, system, questions)
    retrieve = (time.perf_counter() - begun) / len(questions) if choices[0].candidates else 0.0
    if system.tuned:
        asked = [Asked(q.text, memory_of(bench, c.documents)) for q, c in zip(questions, choices, strict=True)]
        replies = answer_batch(session, asked, room)
    else:
        # Only what the base's context holds is read.
        kept = [text_prompt(session, c.documents, q.text, room)[1] for q, c in zip(questions, choices, strict=True)]
        choices = [c._replace(documents=c.documents[:n]) for c, n in zip(choices, kept, strict=True)]
        texts = [(q.text, c.documents) for q, c in zip(questions, choices, strict=True)]
        replies = answer_texts_batch(session, texts, room)
    return [
        predicted(bench, name, question, choice, reply, retrieve)
        for question, choice, reply in zip(questions, choices, replies, strict=True)
    ]


def paraphrasing(session: Session) -> Session:
    """Return a session that, asked about documents, says them in other words."""
    prompts = session.encoder.prompts
    wording = msgspec.structs.replace(prompts, answer=prompts.paraphrases[0])
    return session._replace(encoder=session.encoder._replace(prompts=wording))


def predicted(bench: Bench, name: str, question: Question, choice: Choice, reply: Reply, retrieve: float) -> Prediction:
    """Return a reply with all that is known of it. retrieve: seconds that choosing took."""
    system = SYSTEMS[name]
    positives = {question.documents[i] for i in question.positives}
    compress = 0.0
    if system.tuned and bench.compressed:
        # A corpus is compressed beforehand, a question's own candidates for its sake.
        own = system.reads == "candidates" and len(question.documents) > 1
        compress += sum(bench.compressed.seconds[text] for text in (question.documents if own else choice.documents))
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
        documents=[label(text) for text in choice.documents],
        texts=[text[:SHOWN] for text in choice.documents],
        scores=list(choice.scores[: len(choice.documents)]),
        positives=[text in positives for text in choice.documents] if positives else [],
        candidates=choice.candidates,
        ranking=dict(choice.ranking),
        metrics=metrics,
        seconds={"compress": compress, "retrieve": retrieve, "prefill": reply.prefill, "decode": reply.decode},
        prompt_tokens=reply.prompt_tokens,
        tokens=reply.tokens,
        finished=reply.finished,
    )


def label(text: str) -> str:
    """Return what a document is called: the title before its first colon, or its first words."""
    title, colon, _ = text.partition(": ")
    if colon and len(title) <= TITLE:
        return title
    words = " ".join(text.split())
    return words if len(words) <= NAMED else words[:NAMED].rpartition(" ")[0] or words[:NAMED]
