"""Answers: memories that do not depend on their batch, and greedy text that a naive loop gives too."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from folders import tiny_folder, tiny_session

from clara.core.bind import anatomy, head, hidden_states, part_of
from clara.io.examples import encode_prompt
from clara.shell.answer import answer, choose, compress_texts
from clara.shell.setup import Session

TEXTS = ["A lamp.", "x" * 80, "", "The lamp is red and old.", "é日🎉", "Lamps burn.", "b", "c c c", "Nine."]
QUESTIONS = ["Which?", "What burns here, and since when?"]


@pytest.fixture(scope="module", params=[True, False], ids=["anchored", "plain"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session of the tiny base, with and without anchored memory."""
    folder = tiny_folder(tmp_path_factory.mktemp("base"))
    return tiny_session(folder, memory={"anchored": request.param})


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 100])
def test_a_memory_depends_on_neither_batch_nor_padding(session: Session, batch_size: int) -> None:
    together = np.array(compress_texts(session, TEXTS, batch_size))
    alone = np.concatenate([np.array(compress_texts(session, [text])) for text in TEXTS])
    assert together.shape == (len(TEXTS), 4, 32)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_memories_stand_in_the_order_of_their_texts(session: Session) -> None:
    forward, backward = (np.array(compress_texts(session, texts, 4)) for texts in (TEXTS, TEXTS[::-1]))
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-5)
    assert np.abs(forward[0] - forward[3]).max() > 1e-2, "different texts have different memories"


def naive(session: Session, documents: list[str], question: str, max_tokens: int) -> str:
    """Return a greedy answer: the whole sequence anew for each token, memory put in its slots one by one."""
    base, layout = session.base, session.base.layout
    table = part_of(base.module, anatomy(base.module).embedding)
    memory = compress_texts(session, documents).reshape(-1, 32)
    rows = [
        memory[t - layout.first_slot]
        if t >= layout.first_slot
        else base.special_embeddings[1]
        if t == layout.sep_id
        else table(mx.array(t))
        for t in encode_prompt(session.encoder, documents, question).tokens
    ]
    detokenizer = session.tokenizer.hf.detokenizer
    for _ in range(max_tokens):
        adapter, scale = session.params["adapters"]["generator"], session.config.lora.scale
        hidden = hidden_states(base.module, mx.stack(rows)[None], adapter, scale=scale)
        token = int(head(base.module)(hidden[:, -1:])[0, 0].argmax().item())
        if token in session.tokenizer.eos_ids:
            break
        detokenizer.add_token(token)
        rows.append(table(mx.array(token)))
    detokenizer.finalize()
    return str(detokenizer.text)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "documents", [["The lamp is red."], ["A lamp.", "x" * 80, "Lamps burn."]], ids=["one", "three"]
)
def test_an_answer_is_what_a_naive_greedy_loop_gives(session: Session, documents: list[str], question: str) -> None:
    found = "".join(answer(session, documents, question, max_tokens=12))
    assert found == naive(session, documents, question, 12)
    assert len(found) == 12 and found.isascii(), "the tiny base says one letter a token"


def test_answers_are_the_same_each_time_and_depend_on_document_and_question(session: Session) -> None:
    asked = [(text, question) for text in ("A lamp.", "x" * 80) for question in QUESTIONS]
    first, second = (["".join(answer(session, [text], q, max_tokens=12)) for text, q in asked] for _ in range(2))
    assert first == second
    assert len(set(first)) > 1


def test_an_answer_comes_in_pieces_and_is_no_longer_than_asked(session: Session) -> None:
    pieces = list(answer(session, ["A lamp."], "Which?", max_tokens=5))
    assert len([piece for piece in pieces if piece]) == 5
    assert "".join(pieces) == naive(session, ["A lamp."], "Which?", 5)


def test_an_end_token_ends_the_answer_and_is_not_shown(tmp_path: Path) -> None:
    session = tiny_session(tiny_folder(tmp_path))
    whole = "".join(answer(session, ["A lamp."], "Which?", max_tokens=12))
    session.tokenizer.hf.add_eos_token(whole[6])
    assert "".join(answer(session, ["A lamp."], "Which?", max_tokens=12)) == whole[: whole.index(whole[6])] != ""


def test_a_question_without_a_document_is_answered_too(session: Session) -> None:
    assert "".join(answer(session, [], "Which?", max_tokens=4)) != ""


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session of the tiny base that chooses two documents."""
    return tiny_session(tiny_folder(tmp_path_factory.mktemp("base")), stage="end_to_end", retrieval={"top_k": 2})


def test_a_reading_stage_takes_all_documents(session: Session) -> None:
    assert choose(session, compress_texts(session, TEXTS[:4]), "Which?") == [0, 1, 2, 3]


def test_a_choosing_stage_takes_the_best_by_score_wherever_they_stand(choosing: Session) -> None:
    memory = compress_texts(choosing, TEXTS)
    chosen = choose(choosing, memory, "Which?")
    assert len(chosen) == len(set(chosen)) == 2
    turned = choose(choosing, memory[::-1], "Which?")
    assert [len(TEXTS) - 1 - i for i in turned] == chosen
    rest = mx.array([i for i in range(len(TEXTS)) if i not in chosen])
    assert not set(rest[mx.array(choose(choosing, memory[rest], "Which?"))].tolist()) & set(chosen)
    assert choose(choosing, memory[:1], "Which?") == [0]


def test_an_answer_is_given_from_the_documents_that_are_chosen(choosing: Session) -> None:
    chosen = choose(choosing, compress_texts(choosing, TEXTS), "Which?")
    reading = choosing._replace(config=msgspec.structs.replace(choosing.config, stage="instruct"))
    found = "".join(answer(choosing, TEXTS, "Which?", max_tokens=8))
    assert found == "".join(answer(reading, [TEXTS[i] for i in chosen], "Which?", max_tokens=8)) != ""
    assert "".join(answer(choosing, [], "Which?", max_tokens=4)) != ""
