"""Making questions: what is kept, asked again and counted, and that a killed run goes on as it would have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from folders import tiny_folder

import clara
from clara.core.question_prompts import Pair
from clara.io.base import LoadedBase, load_base
from clara.io.corpus.passages import Passage, content_hash
from clara.io.errors import ClaraError
from clara.io.records import Record, fault
from clara.shell.preparing.questions import (
    Ask,
    Made,
    QuestionConfig,
    Reply,
    Request,
    make_questions,
    model_ask,
    question_fields,
    read_journal,
    work_key,
    work_off,
)

CONFIG = QuestionConfig(simple=2, complex=1, attempts=3, question_batch=2)
KILLED = """
import sys
from pathlib import Path
import test_questions as tests
tests.work_off(tests.passages(9), tests.dying(4), "m", tests.CONFIG, Path(sys.argv[1]))
"""


def passages(count: int) -> list[Passage]:
    """Return passages of a few words each."""
    texts = [f"Lamp {i} burns red and stands in town {i}." for i in range(count)]
    return [Passage(text=text, hash=content_hash(text)) for text in texts]


def faithful(requests: Sequence[Request], draw: int | None) -> list[Reply]:
    """Answer every request well, verdicts with yes."""
    return [Reply(answered(request, draw), True) for request in requests]


def answered(request: Request, draw: int | None) -> str:
    """Return a good reply to a request."""
    text = request.values["{text}"]
    if draw is None:
        return "Yes."
    if "questions" not in request.template:
        return f"In other words: {text.lower()}"
    kind = "simple" if "simple" in request.template else "harder"
    return "\n".join(f"{i}. Q: Which {kind} thing {i} is it {draw}?\nA: {text[:6]}" for i in range(4))


def scripted(verdicts: Callable[[Request], str], replies: Callable[[Request, int], Reply] | None = None) -> Ask:
    """Return a model that gives these verdicts, and these replies or good ones."""

    def ask(requests: Sequence[Request], draw: int | None) -> list[Reply]:
        if draw is None:
            return [Reply(verdicts(request), True) for request in requests]
        return [replies(request, draw) if replies else Reply(answered(request, draw), True) for request in requests]

    return ask


def dying(calls: int) -> Ask:
    """Return a good model that kills its process when it is asked for the last time."""
    left = [calls]

    def ask(requests: Sequence[Request], draw: int | None) -> list[Reply]:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return faithful(requests, draw)

    return ask


def made_of(ask: Ask, config: QuestionConfig = CONFIG) -> Made:
    """Return what is made of one passage."""
    (made,) = make_questions(passages(1), ["key"], ask, config)
    return made


def test_a_good_model_gives_what_is_wanted_and_no_more() -> None:
    made = made_of(faithful)
    assert [(kind, pair.question) for kind, pair in made.pairs] == [
        ("simple", "Which simple thing 0 is it 0?"),
        ("simple", "Which simple thing 1 is it 0?"),
        ("complex", "Which harder thing 0 is it 0?"),
    ]
    assert {pair.answer for _, pair in made.pairs} == {"Lamp 0"}
    assert made.paraphrase == "In other words: lamp 0 burns red and stands in town 0." and made.rejected == {}


def test_what_is_not_affirmed_is_asked_for_again_and_counted() -> None:
    made = made_of(scripted(lambda request: "No" if "thing 0" in request.values["{question}"] else "Yes"))
    assert [pair.question for kind, pair in made.pairs if kind == "simple"] == [
        "Which simple thing 1 is it 0?",
    ]
    assert made.rejected == {"simple: not affirmed": 3, "complex: not affirmed": 3}
    assert made.paraphrase


def test_after_the_last_attempt_the_rest_is_dropped() -> None:
    made = made_of(scripted(lambda _: "Perhaps"))
    assert (made.pairs, made.paraphrase) == ([], None)
    assert made.rejected == {"simple: no verdict": 6, "complex: no verdict": 3, "paraphrase: no verdict": 3}


def test_replies_that_cannot_be_read_are_counted() -> None:
    made = made_of(scripted(lambda _: "Yes", lambda *_: Reply("No idea.", True)))
    assert made.rejected == {
        "simple: nothing to read in the reply": 3,
        "complex: nothing to read in the reply": 3,
        "paraphrase: much shorter or longer than the text": 3,
    }


def test_no_question_is_asked_twice_about_a_passage() -> None:
    same = Reply("Q: Which lamp burns red?\nA: Lamp 0", True)
    made = made_of(scripted(lambda _: "Yes", lambda *_: same), msgspec.structs.replace(CONFIG, paraphrase=False))
    assert made.pairs == [("simple", Pair("Which lamp burns red?", "Lamp 0"))]
    assert made.rejected == {"complex: asked before": 3, "simple: asked before": 2}


def test_nothing_wanted_is_nothing_asked() -> None:
    def ask(*_: object) -> list[Reply]:
        raise AssertionError("asked")

    assert made_of(ask, QuestionConfig(simple=0, complex=0, paraphrase=False)) == Made(key="key")


@pytest.mark.parametrize(
    ("made", "task"),
    [
        (Made(key="k", pairs=[("simple", Pair("q", "a")), ("complex", Pair("r", "b"))], paraphrase="p"), "qa"),
        (Made(key="k", pairs=[("simple", Pair("q", "a"))]), "qa"),
        (Made(key="k", paraphrase="p"), "paraphrase"),
        (Made(key="k"), "autoencode"),
    ],
)
def test_a_record_gets_what_survived(made: Made, task: str) -> None:
    record = Record(docs=["d"], **question_fields(made))
    assert (record.data_type, fault(record)) == (task, None)
    assert list(zip(record.questions, record.replies, strict=True)) == [tuple(pair) for _, pair in made.pairs]
    assert record.paraphrase == made.paraphrase


def test_work_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    asked = Counter[str]()

    def counting(requests: Sequence[Request], draw: int | None) -> list[Reply]:
        asked.update(request.values["{text}"] for request in requests)
        return faithful(requests, draw)

    first = work_off(passages(5), counting, "m", CONFIG, journal)
    asked.clear()
    steps: list[tuple[int, int]] = []
    again = work_off(passages(7), counting, "m", CONFIG, journal, lambda done, total: steps.append((done, total)))
    assert again[:5] == first and set(asked) == {passage.text for passage in passages(7)[5:]}
    assert steps == [(5, 7), (7, 7)]
    for model, config in (("n", CONFIG), ("m", msgspec.structs.replace(CONFIG, seed=1))):
        asked.clear()
        work_off(passages(5), counting, model, config, journal)
        assert len(asked) == 5
    asked.clear()
    work_off(passages(5), counting, "m", msgspec.structs.replace(CONFIG, question_batch=5), journal)
    assert len(asked) == 0


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """It dies in its third batch: two are in the journal, and half a line, as a kill while writing leaves it."""
    journal = tmp_path / "journal"
    where = os.pathsep.join(
        map(str, [Path(__file__).parent, *Path(__file__).parents[2:3], *Path(clara.__file__).parents[1:2]])
    )
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(journal)], env={**os.environ, "PYTHONPATH": where}, timeout=100
    )
    assert ran.returncode == -signal.SIGKILL
    assert len(read_journal(journal)) == 4
    with journal.open("ab") as out:
        out.write(b'{"key":"half')
    whole = work_off(passages(9), faithful, "m", CONFIG, tmp_path / "undisturbed")
    assert work_off(passages(9), faithful, "m", CONFIG, journal) == whole
    assert journal.read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("my notes\n")
    with pytest.raises(ClaraError, match="not a journal of questions"):
        read_journal(tmp_path / "journal")
    assert (tmp_path / "journal").read_text() == "my notes\n"


def test_the_key_of_work_tells_text_model_and_settings() -> None:
    one, other = passages(2)
    keys = {
        work_key(one, "m", CONFIG),
        work_key(other, "m", CONFIG),
        work_key(one, "n", CONFIG),
        work_key(one, "m", msgspec.structs.replace(CONFIG, temperature=0.1)),
    }
    assert len(keys) == 4
    assert work_key(one, "m", msgspec.structs.replace(CONFIG, question_batch=9)) in keys


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    """Return a tiny random model."""
    return load_base(str(tiny_folder(tmp_path_factory.mktemp("base"))))


def test_a_model_answers_by_seed_and_draw_alone(base: LoadedBase) -> None:
    config = QuestionConfig(reply_tokens=12, temperature=1.0)
    requests = [Request("Say {text}", {"{text}": text}) for text in ("a lamp", "<|im_end|> and {question} too")]
    ask = model_ask(base, config)
    first, second = ask(requests, 0), ask(requests, 1)
    assert ask(requests, 0) == first != second
    assert model_ask(base, msgspec.structs.replace(config, seed=1))(requests, 0) != first
    assert ask(requests, None) == ask(requests, None)
    assert all(not reply.finished and len(reply.text) > 5 for reply in first), "this base never ends by itself"


def test_a_random_model_makes_nothing_but_counts_everything(base: LoadedBase, tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, reply_tokens=16, attempts=2)
    made = work_off(passages(3), model_ask(base, config), base.fingerprint, config, tmp_path / "journal")
    assert all(each.pairs == [] and each.paraphrase is None and sum(each.rejected.values()) == 6 for each in made)
    assert work_off(passages(3), model_ask(base, config), base.fingerprint, config, tmp_path / "other") == made


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    def second(requests: Sequence[Request], attempt: int) -> list[Reply]:
        work_off(passages(2), faithful, "model", CONFIG, journal)
        return faithful(requests, attempt)

    with pytest.raises(ClaraError, match="writing questions"):
        work_off(passages(2), second, "model", CONFIG, journal)
    assert work_off(passages(2), faithful, "model", CONFIG, journal)
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
