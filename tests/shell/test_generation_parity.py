"""A converted checkpoint of the original chooses the original's documents and greedily gives its answers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from reference import GOLDEN, TOP_K

from clara.core.prompts import MEMORY, QUESTION, Prompts, Wording
from clara.io.checkpoint import newest_checkpoint
from clara.io.examples import encode_prompt
from clara.io.tokens import decode, load_tokenizer
from clara.shell import convert
from clara.shell.answer import answer_chosen, choose, compress_texts
from clara.shell.options import to_options
from clara.shell.setup import Session, open_session

TEXTS = json.loads((GOLDEN / "texts.json").read_text())
ASKED = TEXTS["generate_from_questions"]
CASES = list(zip(ASKED["questions"], ASKED["documents"], ASKED["answers"], ASKED["topk"], strict=True))


def golden_wording() -> Wording:
    """Return the wording of the original's questions, out of the token ids of its golden input."""
    tokenizer = load_tokenizer(GOLDEN / "base")
    with np.load(GOLDEN / "expected.npz") as file:
        row = file["stage3_end_to_end/dec_input_ids"][0][file["stage3_end_to_end/dec_attention_mask"][0].astype(bool)]
    ids = row.tolist()
    places = [i for i, token in enumerate(ids) if token >= tokenizer.vocab_size]
    before, after = (decode(tokenizer, part, False) for part in (ids[: places[0]], ids[places[-1] + 1 :]))
    text = before + MEMORY + after.replace(TEXTS["stage3_end_to_end"][0]["question"], QUESTION)
    found = re.match(r"<\|im_start\|>system\n(.*)<\|im_end\|>\n<\|im_start\|>user\n(.*?)<\|im_end\|>", text, re.DOTALL)
    assert found
    return Wording(found[2], found[1])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return the session of the golden checkpoint of the last stage, converted."""
    pytest.importorskip("torch")
    run = tmp_path_factory.mktemp("converted") / "run"
    source = str(GOLDEN / "checkpoint_stage3")
    assert convert.main([source, str(run), "--model", str(GOLDEN / "base")]) == 0
    checkpoint, problems = newest_checkpoint(run)
    assert problems == []
    opened = open_session(to_options(checkpoint.config), checkpoint)
    prompts = Prompts(answer=golden_wording(), joined=True)
    return opened._replace(encoder=opened.encoder._replace(prompts=prompts))


def test_a_prompt_has_the_tokens_of_the_golden_one(session: Session) -> None:
    with np.load(GOLDEN / "expected.npz") as file:
        row = file["stage3_end_to_end/dec_input_ids"][0][file["stage3_end_to_end/dec_attention_mask"][0].astype(bool)]
    question, size = TEXTS["stage3_end_to_end"][0]["question"], session.tokenizer.vocab_size
    tokens = encode_prompt(session.encoder, ["a"] * TOP_K, question).tokens
    own = [t if t < size else -1 for t in tokens]
    assert own == [t if t < size else -1 for t in row.tolist()][: len(own)]


@pytest.mark.parametrize(("question", "documents", "expected", "chosen"), CASES)
def test_the_chosen_documents_are_the_originals(
    session: Session, question: str, documents: list[str], expected: str, chosen: list[int]
) -> None:
    assert choose(session, compress_texts(session, documents), question) == chosen


@pytest.mark.parametrize(("question", "documents", "expected", "chosen"), CASES)
def test_the_greedy_answer_is_the_originals(
    session: Session, question: str, documents: list[str], expected: str, chosen: list[int]
) -> None:
    length = len(session.tokenizer.hf.encode(expected, add_special_tokens=False))
    # mlx-lm leaves the space before the first word out.
    assert "".join(answer_chosen(session, documents, question, length)) == expected.lstrip()


@pytest.mark.parametrize(("question", "documents", "expected", "chosen"), CASES)
def test_under_another_wording_it_says_something_else(
    session: Session, question: str, documents: list[str], expected: str, chosen: list[int]
) -> None:
    other = session._replace(encoder=session.encoder._replace(prompts=Prompts()))
    assert "".join(answer_chosen(other, documents, question, 12)) != expected.lstrip()
