"""What a question is answered from, and over which candidates a ranking is measured."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from benches import LAMPS, PARAPHRASE, QUESTIONS, lamp_bench

from clara.core.lexical import best, bm25_scores, build_index, tfidf_scores
from clara.core.search import with_words
from clara.io.evaluation.formats import Question
from clara.io.evaluation.systems import SYSTEMS, other_documents
from clara.shell.answer import choose as chosen_by
from clara.shell.answer import compress_texts, rank
from clara.shell.evaluation.answering import answered
from clara.shell.evaluation.choosing import Bench, candidates_of, choose, index_words, prompt_size, ranking_of, read_by

RANKING = ("memory_retrieved", "memory_fused", "memory_tfidf", "text_tfidf", "text_bm25")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return the bench of lamps."""
    return lamp_bench(tmp_path_factory.mktemp("bench"))


def test_the_reasoner_chooses_among_candidates_or_in_the_corpus(bench: Bench) -> None:
    found = answered(bench, "memory_retrieved", QUESTIONS)
    pools = [LAMPS[:3], LAMPS[3:6], LAMPS[6:8], LAMPS]
    for question, pool, each in zip(QUESTIONS, pools, found, strict=True):
        chosen = chosen_by(bench.session, compress_texts(bench.session, pool), question.text)
        assert each.texts == [pool[i] for i in chosen] and each.candidates == len(pool)
        assert each.scores == sorted(each.scores, reverse=True) and len(each.scores) == 2
    assert [sorted(each.ranking) != [] for each in found] == [True, True, False, False]
    assert found[1].ranking["recall_at_3"] == 1.0 and found[3].positives == [
        text in LAMPS[8:] for text in found[3].texts
    ]


def test_a_reasoner_of_late_relevance_chooses_as_in_an_answer(bench: Bench) -> None:
    how = msgspec.structs.replace(bench.session.config.retrieval, relevance="late")
    config = msgspec.structs.replace(bench.session.config, retrieval=how)
    late = bench._replace(session=bench.session._replace(config=config))
    (own,) = choose(late, SYSTEMS["memory_retrieved"], QUESTIONS[3:4])
    order = rank(late.session, compress_texts(bench.session, LAMPS), QUESTIONS[3].text)
    assert own.order == tuple(i for i, _ in order)
    assert own.scores == pytest.approx([score for _, score in order[:2]], abs=1e-5)
    (other,) = choose(bench, SYSTEMS["memory_retrieved"], QUESTIONS[3:4])
    assert other.scores != pytest.approx(own.scores, abs=1e-3)


def test_words_count_as_much_as_the_reasoner_where_both_are_fused(bench: Bench) -> None:
    for question in QUESTIONS:
        pool = candidates_of(bench, question)
        own, other = (choose(bench, SYSTEMS[name], [question])[0] for name in ("memory_retrieved", "memory_fused"))
        relevance = dict(rank(bench.session, compress_texts(bench.session, pool), question.text))
        words = bm25_scores(build_index(LAMPS), question.text)[[LAMPS.index(text) for text in pool]]
        scores = np.array(with_words([relevance[i] for i in range(len(pool))], words.tolist()))
        assert other.order == tuple(np.argsort(-scores, kind="stable").tolist()) and len(own.order) == len(pool)
        assert other.scores == pytest.approx(sorted(scores, reverse=True)[:2], abs=1e-3)


def test_what_a_system_reads_is_compressed_and_no_more(bench: Bench) -> None:
    bare = bench._replace(compressed=None)
    read = {name: set(read_by(bare, name, QUESTIONS)) for name in SYSTEMS}
    assert {name for name, texts in read.items() if texts} == {name for name in SYSTEMS if name.startswith("memory")}
    assert read["memory"] == {LAMPS[i] for i in (0, 4, 5, 6, 7, 8)} and read["memory_retrieved"] == set(LAMPS)
    assert read["memory_shuffled"] == {text for texts in other_documents(QUESTIONS, 0).values() for text in texts}
    found = answered(bench, "memory_tfidf", QUESTIONS)
    assert read["memory_tfidf"] == {text for each in found for text in each.texts}


def test_memories_do_not_depend_on_the_block_that_they_are_scored_in(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answered(bench, "memory_retrieved", QUESTIONS)
    monkeypatch.setattr("clara.shell.evaluation.choosing.BLOCK", 2)
    parts = answered(bench, "memory_retrieved", QUESTIONS)
    np.testing.assert_allclose([e.scores for e in parts], [e.scores for e in whole], atol=1e-6)
    assert [each.texts for each in parts] == [each.texts for each in whole]


@pytest.mark.parametrize(
    ("name", "score"), [("text_tfidf", tfidf_scores), ("text_bm25", bm25_scores), ("memory_tfidf", tfidf_scores)]
)
def test_search_by_words_is_in_the_whole_corpus(name: str, score: object, bench: Bench) -> None:
    found = choose(bench, SYSTEMS[name], QUESTIONS)
    index = build_index(LAMPS)
    for question, each in zip(QUESTIONS, found, strict=True):
        assert callable(score)
        order = best(score(index, question.text), 2)
        assert each.documents == tuple(LAMPS[i] for i, _ in order) and each.scores == tuple(s for _, s in order)
        assert each.candidates == 9


def rankings(bench: Bench, name: str, *questions: Question) -> list[dict[str, float]]:
    """Return how a system ranks the candidates of questions."""
    pairs = zip(questions, choose(bench, SYSTEMS[name], questions), strict=True)
    return [ranking_of(bench, SYSTEMS[name], *pair) for pair in pairs]


@pytest.mark.parametrize("name", RANKING)
def test_a_ranking_is_of_the_questions_own_candidates(name: str, bench: Bench) -> None:
    # Whatever the corpus holds besides, three candidates of which one is right always have it among the first three.
    unranked = QUESTIONS[0]._replace(text="lamp 0 burns")
    small = bench._replace(corpus=LAMPS[5:], words=index_words(LAMPS[5:], [unranked]))
    for each in (bench, small):
        (found,) = rankings(each, name, unranked)
        assert found["recall_at_3"] == 1.0 and found["mrr"] >= 1 / 3
    none, alone, all_right = QUESTIONS[2], QUESTIONS[3], QUESTIONS[0]._replace(positives=(0, 1, 2))
    assert rankings(bench, name, none, alone, all_right) == [{}, {}, {}]


@pytest.mark.parametrize("name", ["memory_tfidf", "text_tfidf", "text_bm25"])
@pytest.mark.parametrize("inside", [True, False], ids=["candidates in the corpus", "candidates elsewhere"])
def test_words_rank_candidates_with_the_statistics_of_the_corpus(name: str, inside: bool, bench: Bench) -> None:
    # Alone the two would be alike; in the corpus alpha is common, so that beta tells more.
    question = Question("q", "alpha beta", ("g",), ("alpha one", "beta two"), (1,))
    corpus = ("alpha x", "alpha y", "alpha z", *(question.documents if inside else ()))
    searched = bench._replace(corpus=corpus, words=index_words(corpus, [question]))
    assert rankings(searched, name, question)[0]["mrr"] == 1.0
    (choice,) = choose(searched, SYSTEMS[name], [question])
    assert set(choice.documents) <= set(corpus) and choice.candidates == len(corpus)


def test_a_document_that_is_there_twice_is_one_candidate_and_read_once(bench: Bench) -> None:
    twice = QUESTIONS[0]._replace(documents=(LAMPS[0], LAMPS[1], LAMPS[0]), positives=(0, 2))
    assert candidates_of(bench, twice) == LAMPS[:2] and twice.known == LAMPS[:1]
    (choice,) = choose(bench, SYSTEMS["memory_retrieved"], [twice])
    assert sorted(choice.documents) == sorted(LAMPS[:2])
    assert rankings(bench, "memory_retrieved", twice)[0]["recall_at_3"] == 1.0
    assert candidates_of(bench, twice._replace(documents=(LAMPS[0],) * 2)) == LAMPS, "one document is no choice"


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_size_of_a_prompt_is_that_of_what_is_read(name: str, bench: Bench) -> None:
    for question, choice in zip(QUESTIONS, choose(bench, SYSTEMS[name], QUESTIONS), strict=True):
        texts = sum(map(len, choice.documents))
        memories = (len(choice.documents), len(question.text))
        wanted = memories if SYSTEMS[name].tuned else (0, texts + len(question.text))
        assert prompt_size(bench, name, question) == wanted


def test_a_paraphrase_has_no_ranking(bench: Bench) -> None:
    assert rankings(bench, "memory", PARAPHRASE) == [{}]
