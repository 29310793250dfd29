"""Answers: memories that do not depend on their batch, and greedy text that a naive loop gives too."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from folders import tiny_folder, tiny_session

from clara.core.bind import anatomy, head, hidden_states, part_of
from clara.core.config import Relevance
from clara.io.errors import ClaraError
from clara.io.examples import encode_prompt
from clara.io.tokens import decode
from clara.shell.answer import (
    Asked,
    answer,
    answer_batch,
    answer_chosen,
    answer_from,
    answer_texts_batch,
    best_first,
    choose,
    compress_questions,
    compress_texts,
    longest,
    memory_prompt,
    no_memory,
    paraphrase,
    rank,
    read_prompt,
    relevances,
    text_generator,
    text_prompt,
)
from clara.shell.decode import stream
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
    found = "".join(answer_chosen(choosing, TEXTS, "Which?", max_tokens=8))
    assert found == "".join(answer(choosing, [TEXTS[i] for i in chosen], "Which?", max_tokens=8)) != ""
    assert "".join(answer_chosen(choosing, [], "Which?", max_tokens=4)) != ""


def test_questions_answered_together_are_answered_as_alone(session: Session) -> None:
    documents = [["The lamp is red."], [], ["A lamp.", "x" * 80, "Lamps burn."], ["b"]]
    asked = [Asked(f"{QUESTIONS[i % 2]} {i}", compress_texts(session, texts)) for i, texts in enumerate(documents)]
    together = answer_batch(session, asked, max_tokens=9)
    alone = ["".join(answer_from(session, each.memory, each.question, 9)) for each in asked]
    assert [reply.text for reply in together] == [text.strip() for text in alone]
    assert len(set(alone)) > 1
    counts = [
        len(memory_prompt(session, len(texts), each.question)) for texts, each in zip(documents, asked, strict=True)
    ]
    assert [(reply.prompt_tokens, reply.tokens, reply.finished) for reply in together] == [
        (n, 9, False) for n in counts
    ]
    assert answer_batch(session, []) == []


def test_a_paraphrase_comes_from_the_memory_of_its_document(session: Session) -> None:
    found = ["".join(paraphrase(session, text, max_tokens=8)) for text in TEXTS]
    assert len(set(found)) > 1
    assert {len(text) for text in found} == {8}


def test_the_base_answers_from_texts_without_any_adapter(session: Session) -> None:
    asked = [("Which?", ["A lamp."]), ("Which?", []), ("Since when?", ["b", "c"])]
    replies = answer_texts_batch(session, asked, 6)
    prompts = [text_prompt(session, texts, question)[0] for question, texts in asked]
    alone = [list(stream(session.base.module, session.tokenizer, prompt, 6))[-1].reply for prompt in prompts]
    assert [reply.text for reply in replies] == [reply and reply.text for reply in alone]
    assert [reply.prompt_tokens for reply in replies] == [len(prompt) for prompt in prompts]
    bare = answer_texts_batch(session._replace(params={}), asked, 6)
    assert [reply.text for reply in bare] == [reply.text for reply in replies]


def test_a_ranking_holds_every_document_with_its_score_best_first(choosing: Session) -> None:
    memory = compress_texts(choosing, TEXTS)
    found = rank(choosing, memory, "Which?")
    assert sorted(i for i, _ in found) == list(range(len(TEXTS)))
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert all(-1.001 <= score <= 1.001 for _, score in found)
    assert [i for i, _ in found][:2] == choose(choosing, memory, "Which?")
    assert rank(choosing, no_memory(choosing), "Which?") == []


@pytest.mark.parametrize("how", ["flattened", "late", "pooled"])
def test_documents_rank_alike_in_blocks_of_any_size(choosing: Session, how: Relevance) -> None:
    memory = compress_texts(choosing, TEXTS)
    memory = mx.concatenate([memory, memory[:1]])
    query = compress_questions(choosing, ["Which?"])[0]
    config = choosing.config
    retrieval = msgspec.structs.replace(config.retrieval, relevance=how)
    session = choosing._replace(config=msgspec.structs.replace(config, retrieval=retrieval))
    whole = best_first(relevances(session, query, [memory]))
    (first,) = (place for place, (i, _) in enumerate(whole) if i == 0)
    assert whole[first + 1] == (len(TEXTS), whole[first][1]), "of equal ones the earlier first"
    parts = best_first(relevances(session, query, [memory[:1], memory[:0], memory[1:]]))
    assert [i for i, _ in parts] == [i for i, _ in whole]
    assert [score for _, score in parts] == pytest.approx([score for _, score in whole], abs=1e-5)
    assert relevances(session, query, []) == []


def test_a_question_is_compressed_by_the_reasoner_or_else_by_the_compressor(choosing: Session) -> None:
    def query(**adapters: object) -> np.ndarray:
        params = {**choosing.params, "adapters": {**choosing.params["adapters"], **adapters}}
        return np.array(compress_questions(choosing._replace(params=params), ["Which?", "And since when?"]))

    own = choosing.params["adapters"]
    assert np.abs(query() - query(reasoner=own["compressor"])).max() > 1e-3
    without = {name: leaf for name, leaf in own.items() if name != "reasoner"}
    session = choosing._replace(params={**choosing.params, "adapters": without})
    np.testing.assert_array_equal(
        np.array(compress_questions(session, ["Which?", "And since when?"])), query(reasoner=own["compressor"])
    )


def test_a_prompt_fits_into_the_context_with_its_answer(session: Session) -> None:
    whole, _ = text_prompt(session, [], "q" * 50)
    tight = session._replace(context=len(whole) + 20)
    assert text_prompt(tight, [], "q" * 50, room=20) == (whole, 0)
    for room in (10, 40):
        assert len(memory_prompt(tight, 0, "q" * 90, room)) == longest(tight, room) == len(whole) + 20 - room
    cut, _ = text_prompt(tight, [], "0123456789" * 8, room=20)
    kept = decode(session.tokenizer, cut)
    assert len(cut) == len(whole) and "0123456789" * 8 not in kept and "0123456789" * 4 in kept


@pytest.mark.parametrize("excess", [1, 5, 40, 61])
def test_texts_lose_their_end_where_the_context_does_not_hold_them(session: Session, excess: int) -> None:
    texts = ["first " * 4, "second " * 4, "third"]
    whole, _ = text_prompt(session, texts, "Q?")
    prompt, cut = text_prompt(session._replace(context=len(whole) - excess + 64), texts, "Q?")
    joined = "\n\n".join(texts)
    assert (len(prompt), cut) == (len(whole) - excess, excess)
    written = decode(session.tokenizer, prompt)
    assert f"Background: {joined[: len(joined) - excess]}\n\nAnswer" in written
    assert written.endswith(decode(session.tokenizer, whole)[-20:])
    assert text_prompt(session._replace(context=None), texts, "Q?") == (whole, 0)


@pytest.mark.parametrize("count", [0, 3])
def test_a_context_too_small_for_anything_is_named(session: Session, count: int) -> None:
    with pytest.raises(ClaraError, match=r"the base reads 40 tokens: too few for .* an answer of 64; lower"):
        memory_prompt(session._replace(context=40), count, "Q?")
    with pytest.raises(ClaraError, match=r"the base reads 40 tokens"):
        text_prompt(session._replace(context=40), ["a text"] * count, "Q?")


def test_a_generator_tuned_on_text_answers_from_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session(tiny_folder(tmp_path), data={"reads": "text"}, loss={"alignment_weight": 0.0})
    monkeypatch.setattr("clara.shell.answer.compress_texts", None)
    prompt = encode_prompt(session.encoder, TEXTS[:2], QUESTIONS[1])
    assert read_prompt(session, TEXTS[:2], QUESTIONS[1]) == (prompt.tokens, 0)
    model = text_generator(session)
    wanted = "".join(piece.text for piece in stream(model, session.tokenizer, prompt.tokens, 12))
    assert "".join(answer(session, TEXTS[:2], QUESTIONS[1], 12)) == wanted
    assert "".join(answer_chosen(session, TEXTS[:2], QUESTIONS[1], 12)) == wanted
    others = {"".join(answer(session, [text], QUESTIONS[1], 12)) for text in TEXTS[3:6]}
    assert len(others) == 3, "it depends on the text"
    assert "".join(paraphrase(session, TEXTS[3], 12)) != "".join(paraphrase(session, TEXTS[5], 12))
    assert (
        memory_prompt(session, 1, "Which?")[5:]
        and max(memory_prompt(session, 1, "Which?")) > session.base.layout.sep_id
    )
