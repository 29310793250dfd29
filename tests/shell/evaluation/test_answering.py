"""Answers of systems: those that answering alone gives, with what they took."""

from __future__ import annotations

import time
from typing import Any

import pytest
from benches import LAMPS, PARAPHRASE, QUESTIONS, ROOM, lamp_bench
from folders import tiny_folder, tiny_session

from clara.core.collate import ANSWER
from clara.io.evaluation.formats import Question
from clara.io.examples import encode_record
from clara.io.records import Record
from clara.shell.answer import answer, answer_texts_batch, paraphrase
from clara.shell.decode import Reply
from clara.shell.evaluation import answering
from clara.shell.evaluation.answering import answered, predicted, title
from clara.shell.evaluation.choosing import Bench, Choice, ranking_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return the bench of lamps."""
    return lamp_bench(tmp_path_factory.mktemp("bench"))


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


@pytest.fixture(scope="module")
def reading(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return the bench of lamps with a generator that was tuned on the first 16 tokens of documents."""
    folder = tiny_folder(tmp_path_factory.mktemp("reading") / "base")
    memory = {"doc_max_tokens": 16}
    return bench._replace(
        text_session=tiny_session(folder, memory=memory, data={"reads": "text"}, loss={"alignment_weight": 0.0})
    )


def test_a_generator_tuned_on_text_says_what_it_says_alone_of_as_much_as_it_learnt_to_read(reading: Bench) -> None:
    session = reading.text_session
    assert session is not None
    for question, each in zip(QUESTIONS, answered(reading, "tuned_text", QUESTIONS), strict=True):
        assert tuple(each.texts) == question.known, "documents are named whole"
        assert each.prediction == "".join(answer(session, each.texts, question.text, ROOM))
        prompt = encode_record(session.encoder, Record(docs=each.texts, question=question.text, answer="x"), "qa")
        assert each.prompt_tokens == sum(role != ANSWER for role in prompt.roles), "the prompt is that of training"
        assert each.seconds["compress"] == 0.0
    (base,) = answered(reading, "text", QUESTIONS[:1])
    assert base.prompt_tokens > answered(reading, "tuned_text", QUESTIONS[:1])[0].prompt_tokens


def test_a_generator_tuned_on_text_paraphrases_text(reading: Bench) -> None:
    (found,) = answered(reading, "tuned_text", [PARAPHRASE])
    assert found.prediction == "".join(paraphrase(reading.text_session, LAMPS[2], 16)).strip()


@pytest.mark.parametrize("name", ["memory", "text"])
def test_known_documents_are_those_that_hold_the_answer_or_all(name: str, bench: Bench) -> None:
    found = answered(bench, name, QUESTIONS)
    assert [tuple(each.texts) for each in found] == [LAMPS[:1], LAMPS[4:6], LAMPS[6:8], LAMPS[8:]]
    assert [each.positives for each in found] == [[True], [True, True], [], [True]]
    assert all(each.candidates == 0 and each.ranking == {} and each.scores == [] for each in found)


@pytest.mark.parametrize("name", ["closed_book", "tuned_closed_book"])
def test_a_closed_book_has_no_documents(name: str, bench: Bench) -> None:
    assert all(each.documents == [] and each.seconds["retrieve"] == 0.0 for each in answered(bench, name, QUESTIONS))


def test_seconds_are_those_of_the_documents_that_had_to_be_compressed(bench: Bench) -> None:
    assert bench.compressed is not None
    seconds = bench.compressed.seconds
    memory, chosen = (answered(bench, name, QUESTIONS) for name in ("memory", "memory_retrieved"))
    assert memory[1].seconds["compress"] == pytest.approx(seconds[LAMPS[4]] + seconds[LAMPS[5]])
    assert chosen[1].seconds["compress"] == pytest.approx(sum(seconds[text] for text in LAMPS[3:6]))
    found = [*chosen[3:], *answered(bench, "memory_tfidf", QUESTIONS)]
    assert {each.seconds["compress"] for each in found} == {0.0}, "a corpus is compressed beforehand"
    assert chosen[0].seconds["retrieve"] > 0 == memory[0].seconds["retrieve"]
    assert all(each.seconds["prefill"] > 0 and each.seconds["decode"] > 0 for each in [*memory, *chosen])


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
    assert title(text) == expected


def test_retrieval_is_timed_without_what_only_measuring_needs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> dict[str, float]:
        time.sleep(0.5)
        return ranking_of(*arguments)

    monkeypatch.setattr(answering, "ranking_of", slow)
    (found,) = answered(bench, "text_tfidf", QUESTIONS[:1])
    assert found.ranking and 0 < found.seconds["retrieve"] < 0.5


def test_no_document_is_hashed_while_a_question_is_answered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clara.io.memories.document_key", None)
    assert answered(bench, "memory_retrieved", QUESTIONS)


def test_documents_of_which_nothing_is_read_are_not_counted_as_read(bench: Bench) -> None:
    whole = answered(bench, "text", QUESTIONS[1:2])[0]
    # A token is a byte: of "…\n\nLamp 5 burns very very red." the last document goes first, with its two line breaks.
    for cut, kept in ((0, 2), (len(LAMPS[5]) - 1, 2), (len(LAMPS[5]), 1), (len(LAMPS[5]) + 2 + len(LAMPS[4]), 0)):
        small = bench._replace(session=bench.session._replace(context=whole.prompt_tokens + ROOM - cut))
        found = answered(small, "text", QUESTIONS[1:2])[0]
        assert found.texts == whole.texts[:kept] and found.positives == [True] * kept, cut
        assert found.prompt_tokens <= whole.prompt_tokens - cut


def test_a_text_prompt_is_built_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    built = list[str]()

    def counted(session: Any, texts: Any, question: str, room: int) -> Any:
        built.append(question)
        return text_prompt(session, texts, question, room)

    text_prompt = answering.text_prompt
    monkeypatch.setattr(answering, "text_prompt", counted)
    monkeypatch.setattr("clara.shell.answer.text_prompt", counted)
    answered(bench, "text", QUESTIONS)
    assert built == [question.text for question in QUESTIONS]
