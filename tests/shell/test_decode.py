"""Decoding: a stream and a batch say the same, end where they should, and count what they took."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest
from folders import tiny_folder, tiny_session

from clara.core.beams import Search, best, extended, likeliest
from clara.io.tokens import decode, encode
from clara.shell.decode import Piece, Reply, decode_batch, stream
from clara.shell.setup import Session

PROMPTS = ["Lamps burn red.", "x", "The lamp was lit in 1907 by Ada, who owned it."]
LENGTH = 10


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Return a session of the tiny base, which never ends by itself."""
    yield tiny_session(tiny_folder(tmp_path_factory.mktemp("base")))
    mx.enable_compile()


def streamed(session: Session, prompt: str, length: int = LENGTH, temperature: float = 0.0) -> list[Piece]:
    tokens = encode(session.tokenizer, prompt)
    return list(stream(session.base.module, session.tokenizer, tokens, length, temperature))


def batched(session: Session, prompts: list[str], length: int = LENGTH) -> list[Reply]:
    tokens = [encode(session.tokenizer, prompt) for prompt in prompts]
    return decode_batch(session.base.module, session.tokenizer, tokens, length)


def test_a_stream_ends_with_the_whole_of_its_pieces(session: Session) -> None:
    *pieces, last = streamed(session, PROMPTS[0])
    assert [piece.reply for piece in pieces] == [None] * len(pieces)
    assert last.text == "" and last.reply is not None
    assert last.reply.text == "".join(piece.text for piece in pieces).strip() != ""
    assert (last.reply.prompt_tokens, last.reply.tokens, last.reply.finished) == (len(PROMPTS[0]), LENGTH, False)
    assert last.reply.prefill > 0 and last.reply.decode > 0


def test_the_cache_of_a_stream_grows_with_its_prompt(session: Session) -> None:
    short, long = (streamed(session, "x" * count, 2)[-1].reply for count in (10, 600))
    assert short is not None and long is not None
    assert long.cache_bytes > 2 * short.cache_bytes > 0


def test_a_batch_says_what_streams_say_in_the_order_of_its_prompts(session: Session) -> None:
    alone = [streamed(session, prompt)[-1].reply for prompt in PROMPTS]
    for order in ([0, 1, 2], [2, 0, 1]):
        together = batched(session, [PROMPTS[i] for i in order])
        assert [reply.text for reply in together] == [alone[i].text for i in order]  # type: ignore[union-attr]
        assert [reply.prompt_tokens for reply in together] == [len(PROMPTS[i]) for i in order]
    assert batched(session, []) == []


def test_an_end_token_ends_a_reply_and_is_not_counted(tmp_path_factory: pytest.TempPathFactory) -> None:
    session = tiny_session(tiny_folder(tmp_path_factory.mktemp("ends")))
    whole = streamed(session, PROMPTS[0])[-1].reply
    assert whole is not None
    end = whole.text[4]
    count = whole.text.index(end)
    session.tokenizer.hf.add_eos_token(end)
    ended = session.tokenizer._replace(eos_ids=session.tokenizer.eos_ids | set(encode(session.tokenizer, end)))
    session = session._replace(tokenizer=ended)
    for reply in (streamed(session, PROMPTS[0])[-1].reply, batched(session, PROMPTS[:1])[0]):
        assert reply is not None
        assert (reply.text, reply.tokens, reply.finished) == (whole.text[:count], count, True)


def test_sampling_differs_from_the_likeliest_and_follows_the_seed(session: Session) -> None:
    def sampled(seed: int) -> str:
        mx.random.seed(seed)
        reply = streamed(session, PROMPTS[0], temperature=5.0)[-1].reply
        assert reply is not None
        return reply.text

    greedy = streamed(session, PROMPTS[0])[-1].reply
    assert greedy is not None
    assert sampled(1) == sampled(1) != sampled(2)
    assert sampled(1) != greedy.text
    assert decode(session.tokenizer, encode(session.tokenizer, greedy.text)) == greedy.text


def searched(session: Session, prompts: list[str], beams: int, length: int = LENGTH) -> list[Reply]:
    tokens = [encode(session.tokenizer, prompt) for prompt in prompts]
    return decode_batch(session.base.module, session.tokenizer, tokens, length, beams)


def searched_slowly(session: Session, prompt: str, beams: int, length: int = LENGTH) -> str:
    """Return the reply that a search finds which reads each beginning from its first token on."""
    given, search = encode(session.tokenizer, prompt), Search()
    while search.live:
        rows = mx.array([[*given, *beam.tokens] for beam in search.live])
        values, tokens = likeliest(session.base.module(rows)[:, -1], 2 * beams)
        found = [
            (place, token, value)
            for place, pairs in enumerate(zip(tokens.tolist(), values.tolist(), strict=True))  # type: ignore[arg-type]
            for token, value in zip(*pairs, strict=True)
        ]
        search, _ = extended(search, found, session.tokenizer.eos_ids, beams, length)
    return decode(session.tokenizer, best(search).tokens).strip()


def with_end(session: Session, end: str) -> Session:
    """Return the session with a further character that ends a reply."""
    ends = session.tokenizer.eos_ids | set(encode(session.tokenizer, end))
    return session._replace(tokenizer=session.tokenizer._replace(eos_ids=ends))


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_a_search_with_caches_and_others_beside_it_is_one_without(beams: int, session: Session) -> None:
    greedy = streamed(session, PROMPTS[0])[-1].reply
    assert greedy is not None
    for own in (session, with_end(session, greedy.text[4])):
        expected = [searched_slowly(own, prompt, beams) for prompt in PROMPTS]
        for order in ([0, 1, 2], [2, 0, 1], [1]):
            replies = searched(own, [PROMPTS[i] for i in order], beams)
            assert [reply.text for reply in replies] == [expected[i] for i in order]
            assert [reply.prompt_tokens for reply in replies] == [len(PROMPTS[i]) for i in order]
            assert all(reply.tokens <= LENGTH and reply.decode > 0 for reply in replies)


def test_a_search_says_whether_its_reply_ended(session: Session) -> None:
    (cut,) = searched(session, PROMPTS[:1], 3)
    assert (cut.finished, cut.tokens) == (False, LENGTH)
    (ended,) = searched(with_end(session, cut.text[3]), PROMPTS[:1], 3)
    assert ended.finished and ended.tokens < LENGTH
    assert searched(session, [], 3) == []


def test_a_stream_of_a_search_comes_in_one_piece(session: Session) -> None:
    tokens = encode(session.tokenizer, PROMPTS[2])
    first, last = stream(session.base.module, session.tokenizer, tokens, LENGTH, beams=3)
    (reply,) = searched(session, PROMPTS[2:], 3)
    assert last.reply is not None and (first.text, last.reply.text) == (reply.text, reply.text)
    assert last.reply.cache_bytes > 0
