"""What each question of an evaluation is answered from, and how well a system ranks the question's own candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from clara.core.lexical import LexicalIndex, best, bm25_scores, build_index, tfidf_scores
from clara.core.scoring import ranking_scores
from clara.core.search import with_words
from clara.io.evaluation.formats import Question
from clara.io.evaluation.systems import SYSTEMS, System
from clara.io.memories import read_rows
from clara.shell.answer import best_first, compress_questions, no_memory, relevances
from clara.shell.evaluation.documents import Compressed
from clara.shell.setup import Session

BLOCK = 1024
"""Candidates whose memories are scored at a time."""
WORDS: Mapping[str, Callable[[LexicalIndex, str], np.ndarray]] = {"tfidf": tfidf_scores, "bm25": bm25_scores}
"""How systems score by words."""


class Words(NamedTuple):
    """Texts that can be scored by their words."""

    corpus: LexicalIndex
    """The passages that are searched."""
    whole: LexicalIndex
    """These and the questions' candidates that are not among them; mostly the same index."""
    places: Mapping[str, int]
    """Of each text in the whole."""


class Bench(NamedTuple):
    """What the systems of an evaluation share."""

    session: Session
    corpus: Sequence[str]
    """Distinct passages that the systems which search find theirs in."""
    words: Words | None
    """None where no system counts words."""
    others: Mapping[str, tuple[str, ...]]
    """Documents of another question, by the question's id."""
    top_k: int
    max_tokens: int
    compressed: Compressed | None = None
    """None until documents are compressed."""
    text_session: Session | None = None
    """Of the generator that was trained on texts; None where no system asks it."""


class Choice(NamedTuple):
    """What a question is to be answered from."""

    documents: tuple[str, ...] = ()
    """Best first."""
    scores: tuple[float, ...] = ()
    candidates: int = 0
    """How many they were chosen among."""
    order: tuple[int, ...] = ()
    """The candidates that the reasoner ordered, best first."""


def index_words(corpus: Sequence[str], questions: Iterable[Question]) -> Words:
    """Return the words of a corpus, and of the questions' candidates."""
    searched = build_index(corpus)
    texts = list(dict.fromkeys([*corpus, *(text for question in questions for text in question.documents)]))
    whole = searched if len(texts) == len(corpus) else build_index(texts)
    return Words(searched, whole, {text: i for i, text in enumerate(texts)})


def session_for(bench: Bench, system: System) -> Session:
    """Return the session of the model that answers for a system."""
    if not system.tuned_on_text:
        return bench.session
    assert bench.text_session is not None, "a system that was tuned on text has a checkpoint of its own"
    return bench.text_session


def own_candidates(question: Question) -> tuple[str, ...]:
    """Return the distinct documents of a question that there is a choice among; empty where there is none."""
    distinct = tuple(dict.fromkeys(question.documents))
    return distinct if len(distinct) > 1 else ()


def candidates_of(bench: Bench, question: Question) -> Sequence[str]:
    """Return what the reasoner chooses among: the question's documents, or the corpus where there is no choice."""
    return own_candidates(question) or bench.corpus


def read_by(bench: Bench, name: str, questions: Sequence[Question]) -> Iterator[str]:
    """Yield every document whose memory a system needs, some of them more than once."""
    system = SYSTEMS[name]
    if system.reads == "candidates":
        pools = [candidates_of(bench, question) for question in questions]
        yield from (text for pool in pools if pool is not bench.corpus for text in pool)
        yield from bench.corpus if any(pool is bench.corpus for pool in pools) else ()
    elif system.tuned:
        yield from (text for choice in choose(bench, system, questions) for text in choice.documents)


def prompt_size(bench: Bench, name: str, question: Question) -> tuple[int, int]:
    """Return what the length of a question's prompt grows with: memories, then characters of text."""
    system = SYSTEMS[name]
    if system.reads == "candidates":
        return min(bench.top_k, len(candidates_of(bench, question))), len(question.text)
    (choice,) = choose(bench, system, [question])
    if system.tuned:
        return len(choice.documents), len(question.text)
    return 0, sum(map(len, choice.documents)) + len(question.text)


def choose(bench: Bench, system: System, questions: Sequence[Question]) -> list[Choice]:
    """Return what each question is to be answered from: scores and the best of them, what a user would wait for."""
    if system.reads == "candidates":
        return by_memory(bench, questions, system.fused)
    if system.reads in WORDS:
        return [by_words(bench, question, system.reads) for question in questions]
    if system.reads == "other":
        return [Choice(bench.others[question.id]) for question in questions]
    return [Choice(question.known if system.reads == "known" else ()) for question in questions]


def by_words(bench: Bench, question: Question, reads: str) -> Choice:
    """Return the passages of the corpus that share most with a question by TF-IDF or BM25."""
    assert bench.words is not None, "a system that searches by words has an index"
    order = best(WORDS[reads](bench.words.corpus, question.text), bench.top_k)
    return Choice(tuple(bench.corpus[i] for i, _ in order), tuple(score for _, score in order), len(bench.corpus))


def by_memory(bench: Bench, questions: Sequence[Question], fused: bool) -> list[Choice]:
    """Return the candidates of each question that the reasoner scores highest; fused: with their words."""
    queries = compress_questions(bench.session, [question.text for question in questions])
    found = []
    for i, question in enumerate(questions):
        candidates = candidates_of(bench, question)
        parts = (candidates[begin : begin + BLOCK] for begin in range(0, len(candidates), BLOCK))
        scored = relevances(bench.session, queries[i], (memory_of(bench, part) for part in parts))
        pairs = best_first(with_words(scored, scores_of_words(bench, question, candidates)) if fused else scored)
        chosen = pairs[: bench.top_k]
        documents, scores = tuple(candidates[at] for at, _ in chosen), tuple(score for _, score in chosen)
        found.append(Choice(documents, scores, len(candidates), tuple(at for at, _ in pairs)))
    return found


def scores_of_words(bench: Bench, question: Question, texts: Sequence[str], reads: str = "bm25") -> list[float]:
    """Return what texts score by the words of a question, by BM25 or TF-IDF."""
    assert bench.words is not None, "a system that counts words has an index"
    scores = WORDS[reads](bench.words.whole, question.text)
    return [float(scores[bench.words.places[text]]) for text in texts]


def memory_of(bench: Bench, documents: Sequence[str]) -> mx.array:
    """Return float[K, M, D]: the memories of documents."""
    if not documents:
        return no_memory(bench.session)
    assert bench.compressed is not None, "documents are compressed before questions are asked"
    return read_rows(bench.compressed.memories, [bench.compressed.keys[text] for text in documents])


def ranking_of(bench: Bench, system: System, question: Question, choice: Choice) -> dict[str, float]:
    """Return how well a system ranks the question's own candidates; empty where that is not known.

    It is measured where the question has a choice of its own and some, not all, are known to hold the answer. Systems
    that search by words score these candidates too, wherever they look for what they answer from; one that shares no
    word with the question is not ranked.
    """
    pool = own_candidates(question)
    positives = {question.documents[i] for i in question.positives}
    if not pool or not positives or len(positives) == len(pool):
        return {}
    if system.reads in WORDS:
        order = [i for i, _ in best(np.array(scores_of_words(bench, question, pool, system.reads)), len(pool))]
    elif system.reads == "candidates":
        order = list(choice.order)
    else:
        return {}
    return ranking_scores(order, [i for i, text in enumerate(pool) if text in positives], bench.top_k)
