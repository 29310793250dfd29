"""Systems: each reads what it is said to read, and answers what answering that alone gives."""

from __future__ import annotations

import numpy as np
import pytest
from folders import tiny_folder, tiny_session

from clara.core.lexical import best, bm25_scores, build_index, tfidf_scores
from clara.core.scoring import ranking_scores
from clara.io.errors import ClaraError
from clara.io.evaluation.formats import Question
from clara.shell.answer import answer, answer_texts_batch, choose, compress_texts, paraphrase
from clara.shell.decode import Reply
from clara.shell.evaluation.documents import compress_documents
from clara.shell.evaluation.systems import (
    SYSTEMS,
    Bench,
    Choice,
    answered,
    label,
    other_documents,
    predicted,
    read_by,
    serves,
)

LAMPS = tuple(f"Lamp {i} burns {'very ' * (i % 3)}red." for i in range(9))
QUESTIONS = [
    Question("a", "How does lamp 0 burn?", ("red",), LAMPS[:3], (0,)),
    Question("b", "How does lamp 4 burn, and why?", ("very red", "very"), LAMPS[3:6], (1, 2), ("very", "red")),
    Question("c", "What burns?", ("a lamp",), LAMPS[6:8]),
    Question("d", "Who burns?", ("a lamp",), LAMPS[8:], (0,)),
]
PARAPHRASE = Question("p", "", ("Red is lamp 2.",), LAMPS[2:3], (0,), task="paraphrase")
ROOM = 8


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a bench on the tiny base with all lamps compressed."""
    folder = tmp_path_factory.mktemp("bench")
    session = tiny_session(tiny_folder(folder / "base"), stage="end_to_end", retrieval={"top_k": 2})
    compressed = compress_documents(session, LAMPS, folder / "memories", folder / "times", lambda line: None)
    others = other_documents(QUESTIONS, 0) | {"p": LAMPS[8:]}
    return Bench(session, LAMPS, build_index(LAMPS), others, 2, ROOM, compressed)


@pytest.mark.parametrize("name", ["memory", "memory_shuffled", "memory_retrieved", "memory_tfidf", "tuned_closed_book"])
def test_a_tuned_system_says_what_its_memories_say_alone(name: str, bench: Bench) -> None:
    found = answered(bench, name, QUESTIONS)
    assert [each.id for each in found] == ["a", "b", "c", "d"] and {each.system for each in found} == {name}
    for question, each in zip(QUESTIONS, found, strict=True):
        # Lamps are so short that what a prediction keeps of them is all.
        assert each.prediction == "".join(answer(bench.session, each.texts, question.text, ROOM))
        assert 0 < each.tokens <= ROOM and each.prompt_tokens > 0 and each.question == question.text


@pytest.mark.parametrize("name", ["text", "text_tfidf", "text_bm25", "closed_book"])
def test_a_base_system_says_what_the_base_says_of_its_texts(name: str, bench: Bench) -> None:
    found = answered(bench, name, QUESTIONS)
    for question, each in zip(QUESTIONS, found, strict=True):
        (reply,) = answer_texts_batch(bench.session, [(question.text, each.texts)], ROOM)
        assert (each.prediction, each.prompt_tokens) == (reply.text, reply.prompt_tokens)
        assert each.seconds["compress"] == 0.0


@pytest.mark.parametrize("name", ["memory", "text"])
def test_known_documents_are_those_that_hold_the_answer_or_all(name: str, bench: Bench) -> None:
    found = answered(bench, name, QUESTIONS)
    assert [tuple(each.texts) for each in found] == [LAMPS[:1], LAMPS[4:6], LAMPS[6:8], LAMPS[8:]]
    assert [each.positives for each in found] == [[True], [True, True], [], [True]]
    assert all(each.candidates == 0 and each.ranking == {} and each.scores == [] for each in found)


@pytest.mark.parametrize("name", ["closed_book", "tuned_closed_book"])
def test_a_closed_book_has_no_documents(name: str, bench: Bench) -> None:
    assert all(each.documents == [] and each.seconds["retrieve"] == 0.0 for each in answered(bench, name, QUESTIONS))


def test_the_reasoner_chooses_among_candidates_or_in_the_corpus(bench: Bench) -> None:
    found = answered(bench, "memory_retrieved", QUESTIONS)
    pools = [LAMPS[:3], LAMPS[3:6], LAMPS[6:8], LAMPS]
    for question, pool, each in zip(QUESTIONS, pools, found, strict=True):
        chosen = choose(bench.session, compress_texts(bench.session, pool), question.text)
        assert each.texts == [pool[i] for i in chosen] and each.candidates == len(pool)
        assert each.scores == sorted(each.scores, reverse=True) and len(each.scores) == 2
    assert [sorted(each.ranking) != [] for each in found] == [True, True, False, True]
    assert found[1].ranking["recall_at_3"] == 1.0 and found[3].positives == [
        text in LAMPS[8:] for text in found[3].texts
    ]


@pytest.mark.parametrize(
    ("name", "score"), [("text_tfidf", tfidf_scores), ("text_bm25", bm25_scores), ("memory_tfidf", tfidf_scores)]
)
def test_search_by_words_is_in_the_whole_corpus(name: str, score: object, bench: Bench) -> None:
    found = answered(bench, name, QUESTIONS)
    for question, each in zip(QUESTIONS, found, strict=True):
        assert bench.words is not None and callable(score)
        order = best(score(bench.words, question.text), 9)
        assert each.texts == [LAMPS[i] for i, _ in order[:2]] and each.scores == [s for _, s in order[:2]]
        wanted = [LAMPS.index(question.documents[i]) for i in question.positives]
        assert each.ranking == (ranking_scores([i for i, _ in order], wanted, 2) if wanted else {})
        assert each.candidates == 9


def test_a_ranking_counts_only_where_the_answer_could_be_found(bench: Bench) -> None:
    elsewhere = bench._replace(corpus=LAMPS[4:], words=build_index(LAMPS[4:]))
    found = answered(elsewhere, "text_tfidf", QUESTIONS[:2])
    assert found[0].ranking == {} and found[1].ranking != {}
    only = bench._replace(corpus=LAMPS[:1], words=build_index(LAMPS[:1]))
    assert answered(only, "text_tfidf", QUESTIONS[:1])[0].ranking == {}, "one candidate is no choice"


def test_seconds_are_those_of_the_documents_that_had_to_be_compressed(bench: Bench) -> None:
    assert bench.compressed is not None
    seconds = bench.compressed.seconds
    memory, chosen = (answered(bench, name, QUESTIONS) for name in ("memory", "memory_retrieved"))
    assert memory[1].seconds["compress"] == pytest.approx(seconds[LAMPS[4]] + seconds[LAMPS[5]])
    assert chosen[1].seconds["compress"] == pytest.approx(sum(seconds[text] for text in LAMPS[3:6]))
    assert chosen[3].seconds["compress"] == pytest.approx(sum(seconds[text] for text in chosen[3].texts))
    assert chosen[0].seconds["retrieve"] > 0 == memory[0].seconds["retrieve"]
    assert all(each.seconds["prefill"] > 0 and each.seconds["decode"] > 0 for each in [*memory, *chosen])


def test_texts_beyond_the_context_are_not_counted_as_read(bench: Bench) -> None:
    whole = answered(bench, "text", QUESTIONS[1:2])[0]
    small = bench._replace(session=bench.session._replace(context=whole.prompt_tokens + ROOM - 1))
    cut = answered(small, "text", QUESTIONS[1:2])[0]
    assert cut.texts == whole.texts[:1] and cut.positives == [True] and cut.prompt_tokens < whole.prompt_tokens


@pytest.mark.parametrize("name", ["memory", "text", "memory_shuffled"])
def test_a_paraphrase_is_asked_for_in_its_own_words(name: str, bench: Bench) -> None:
    (found,) = answered(bench, name, [PARAPHRASE])
    assert set(found.metrics) == {"rouge_l", "entities"} and ROOM < found.tokens <= 32
    if name == "memory":
        assert found.prediction == "".join(paraphrase(bench.session, LAMPS[2], 32)).strip()


@pytest.mark.parametrize("question", [*QUESTIONS, PARAPHRASE], ids=lambda question: question.id)
def test_an_oracle_scores_1_and_an_empty_answer_0_in_every_metric(question: Question, bench: Bench) -> None:
    def metrics(text: str) -> set[float]:
        reply = Reply(text, True, 5, 1, 0.1, 0.1, 0)
        return set(predicted(bench, "memory", question, Choice(LAMPS[:1]), reply, 0.0).metrics.values())

    gold = "very red" if question.id == "b" else question.golds[0]
    assert metrics(gold) == {1.0} and metrics("") == {0.0}


def test_what_a_system_reads_is_compressed_and_no_more(bench: Bench) -> None:
    bare = bench._replace(compressed=None)
    read = {name: set(read_by(bare, name, QUESTIONS)) for name in SYSTEMS}
    assert {name for name, texts in read.items() if texts} == {name for name in SYSTEMS if name.startswith("memory")}
    assert read["memory"] == {LAMPS[i] for i in (0, 4, 5, 6, 7, 8)} and read["memory_retrieved"] == set(LAMPS)
    assert read["memory_shuffled"] == {text for texts in other_documents(QUESTIONS, 0).values() for text in texts}
    found = answered(bench, "memory_tfidf", QUESTIONS)
    assert read["memory_tfidf"] == {text for each in found for text in each.texts}


@pytest.mark.parametrize("seed", range(5))
def test_other_documents_are_another_questions_and_never_its_own(seed: int) -> None:
    questions = [*QUESTIONS, QUESTIONS[0]._replace(id="again")]
    found = other_documents(questions, seed)
    assert found == other_documents(questions, seed)
    for question in questions:
        assert not set(found[question.id]) & set(question.documents)
        assert found[question.id] in [each.known for each in questions]
    assert found["a"] == found["again"]


def test_other_documents_depend_on_the_seed_and_must_be_there() -> None:
    assert len({str(other_documents(QUESTIONS, seed)) for seed in range(6)}) > 1
    for questions in (QUESTIONS[:1], [QUESTIONS[0], QUESTIONS[0]._replace(id="z", positives=(1,))]):
        with pytest.raises(ClaraError, match="question a: no other question has documents that are not also its own"):
            other_documents(questions, 0)


@pytest.mark.parametrize(
    ("question", "corpus", "expected"),
    [
        (QUESTIONS[0], LAMPS, set(SYSTEMS)),
        (
            QUESTIONS[0]._replace(documents=(), positives=()),
            LAMPS,
            {n for n in SYSTEMS if "known" not in SYSTEMS[n].reads},
        ),
        (QUESTIONS[0]._replace(documents=(), positives=()), (), {"closed_book", "tuned_closed_book"}),
        (PARAPHRASE, LAMPS, {"memory", "text", "memory_shuffled"}),
    ],
    ids=["documents", "corpus", "nothing", "paraphrase"],
)
def test_a_system_is_asked_what_it_can_be(question: Question, corpus: tuple[str, ...], expected: set[str]) -> None:
    served = {name for name in SYSTEMS if serves(name, question, corpus)}
    assert served == expected - ({"memory_shuffled"} if not question.documents else set())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Marie Curie: A physicist.", "Marie Curie"),
        ("A lamp.", "A lamp."),
        ("word\n" * 30, "word word word word word word word word word word word word"),
        (f"{'x' * 81}: y", "x" * 60),
    ],
)
def test_a_document_is_called_by_its_title_or_first_words(text: str, expected: str) -> None:
    assert label(text) == expected


def test_memories_do_not_depend_on_the_block_that_they_are_scored_in(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answered(bench, "memory_retrieved", QUESTIONS)
    monkeypatch.setattr("clara.shell.evaluation.systems.BLOCK", 2)
    parts = answered(bench, "memory_retrieved", QUESTIONS)
    np.testing.assert_allclose([e.scores for e in parts], [e.scores for e in whole], atol=1e-6)
    assert [each.texts for each in parts] == [each.texts for each in whole]
