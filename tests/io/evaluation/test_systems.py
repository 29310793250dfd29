"""Systems: which questions they can be asked, and the documents of another question."""

from __future__ import annotations

import pytest
from benches import LAMPS, PARAPHRASE, QUESTIONS

from clara.io.errors import ClaraError
from clara.io.evaluation.formats import Question
from clara.io.evaluation.systems import SYSTEMS, other_documents, serves
from clara.io.report.png import MARKS as LETTERS
from clara.io.report.style import LIGHT
from clara.io.report.svg import MARKS


def test_no_two_systems_look_alike() -> None:
    looks = {(each.style % len(LIGHT.series), each.style >= len(LIGHT.series)) for each in SYSTEMS.values()}
    assert len(looks) == len(SYSTEMS), "colour and dashes tell them apart in lines"
    for marks in (MARKS, LETTERS):
        assert len({(e.style % len(LIGHT.series), e.style % len(marks)) for e in SYSTEMS.values()}) == len(SYSTEMS)


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
        (PARAPHRASE, LAMPS, {"memory", "text", "tuned_text", "memory_shuffled"}),
    ],
    ids=["documents", "corpus", "nothing", "paraphrase"],
)
def test_a_system_is_asked_what_it_can_be(question: Question, corpus: tuple[str, ...], expected: set[str]) -> None:
    served = {name for name in SYSTEMS if serves(name, question, corpus)}
    assert served == expected - ({"memory_shuffled"} if not question.documents else set())
