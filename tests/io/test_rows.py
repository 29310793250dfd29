"""Rows of tokens: every token has a role, inserts stand where their slots were, and answers end as they should."""

from __future__ import annotations

import pytest
from folders import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from clara.core.collate import ANSWER, FIXED, INPUT
from clara.io.rows import ended, joined_row, plain_row
from clara.io.tokens import Tokenizer, encode, encode_parts

MEMORY = [900, 901]
texts = st.text(alphabet="abc é", max_size=8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return the tiny base's tokenizer."""
    return tiny_tokenizer(tmp_path_factory.mktemp("base"))


@given(parts=st.lists(texts, min_size=3, max_size=3), question=texts, limit=st.none() | st.integers(0, 5))
def test_inserts_and_memory_stand_where_their_slots_were(
    tokenizer: Tokenizer, parts: list[str], question: str, limit: int | None
) -> None:
    inserts = {"q": (question, INPUT, limit)}
    fixed = encode_parts(tokenizer, parts)
    tokens, roles = plain_row(tokenizer, ["m", "q"], fixed, inserts, MEMORY)
    asked = encode(tokenizer, question)[:limit]
    assert tokens == [*fixed[0][0], *MEMORY, *fixed[1][0], *asked, *fixed[2][0]]
    before = len(fixed[0][0]) + 2 + len(fixed[1][0])
    assert roles == [FIXED] * before + [INPUT] * len(asked) + [FIXED] * len(fixed[2][0])


def test_a_joined_row_is_one_text_around_its_memory(tokenizer: Tokenizer) -> None:
    inserts = {"q": ("b", INPUT, None), "a": ("c", ANSWER, None)}
    tokens, roles = joined_row(tokenizer, ["x ", "m", " y ", "q", " ", "a", ""], inserts, MEMORY, "m")
    before, after = encode(tokenizer, "x "), encode(tokenizer, " y b c")
    assert tokens == [*before, *MEMORY, *after]
    assert [role for role in roles if role != FIXED] == [INPUT, ANSWER] and roles[-1] == ANSWER


def test_an_answer_owns_its_end_and_is_the_last(tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_id
    row = ([8, 9, end, 7], [FIXED, ANSWER, FIXED, FIXED])
    alone = ([8, 9, end], [FIXED, ANSWER, ANSWER])
    assert ended(tokenizer, row, whole=False) == alone
    assert ended(tokenizer, ([8, 9], [FIXED, ANSWER]), whole=False) == alone
    assert ended(tokenizer, row, whole=True) == (row[0], [FIXED, ANSWER, ANSWER, ANSWER])


def test_an_open_turn_stays_open(tokenizer: Tokenizer) -> None:
    row = ([1, 2, 3], [FIXED, INPUT, FIXED])
    assert ended(tokenizer, row, whole=False) == row
