"""Examples: which tokens are learnt, where memory goes, what is cut, and that asking sees the prompt of training."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from folders import CHAT_TEMPLATE, SPECIAL, VOCAB_SIZE, tiny_encoder, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import GOLDEN, STAGES, TOP_K, load_reference, records_of

from clara.core import prompts
from clara.core.collate import ANSWER, FIXED, INPUT, Example
from clara.core.config import MemoryConfig
from clara.core.prompts import Wording
from clara.io.errors import ClaraError
from clara.io.examples import (
    QUESTION_MAX_TOKENS,
    Encoder,
    encode_choice,
    encode_document,
    encode_paraphrase,
    encode_prompt,
    encode_question,
    encode_record,
    encode_text_prompt,
    layout_for,
    make_encoder,
    shortened,
    turns,
)
from clara.io.records import Record
from clara.io.tokens import Tokenizer, decode, encode, load_tokenizer

BOS, EOS = 1, 2
ENC, SEP, FIRST_SLOT = VOCAB_SIZE, VOCAB_SIZE + 1, VOCAB_SIZE + 2
MEMORY_TOKENS = 4
RECORD = Record(
    id="lamp",
    docs=["The lamp is red and was lit in 1907 by Ada."],
    question=["What colour is it?", "When was it lit?", "By whom?"],
    answers=["red", "1907", "Ada"],
    paraphrase="Ada lit a red lamp in 1907.",
)
words = st.text(min_size=1, max_size=60)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a byte-level tokenizer with a chat template."""
    return tiny_tokenizer(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a byte-level tokenizer without a chat template."""
    return tiny_tokenizer(tmp_path_factory.mktemp("bare"), chat_template=None)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Encoder:
    """Return an encoder with room for everything."""
    return tiny_encoder(tokenizer, doc_max_tokens=32, compression_rate=8)


@pytest.fixture(scope="module")
def reference_encoder() -> Encoder:
    """Return an encoder of the reference's base that joins texts and cuts documents as the original does."""
    tokenizer, meta = load_tokenizer(GOLDEN / "base"), json.loads((GOLDEN / "meta.json").read_text())
    longest, rate = meta["doc_max_length"], meta["compr_rate"]
    memory = MemoryConfig(doc_max_tokens=longest, compression_rate=rate, cuts_suffix=True)
    return make_encoder(tokenizer, layout_for(tokenizer, tokenizer.vocab_size, memory), longest, 2048)


def spans(example: Example, role: int) -> list[tuple[int, ...]]:
    """Return the runs of tokens that have a role."""
    runs = itertools.groupby(zip(example.tokens, example.roles, strict=True), key=lambda pair: pair[1])
    return [tuple(token for token, _ in run) for found, run in runs if found == role]


def texts(encoder: Encoder, example: Example, role: int) -> list[str]:
    """Return the texts of those runs, special tokens shown."""
    return [decode(encoder.tokenizer, span, skip_special=False) for span in spans(example, role)]


def written(encoder: Encoder, example: Example) -> str:
    """Return an example as text, with [m] for a slot and [s] for `<SEP>`."""
    pieces = [
        "[s]" if t == SEP else "[m]" if t >= FIRST_SLOT else decode(encoder.tokenizer, [t], skip_special=False)
        for t in example.tokens
    ]
    return "".join(pieces)


def test_a_conversation_reads_as_the_chat_template_has_it(encoder: Encoder) -> None:
    record = Record(docs=["d"], question=["Q?", "R?"], answers=["a", "b"])
    assert written(encoder, encode_record(encoder, record, "qa")) == (
        "<|im_start|>user\nBackground: [m][m][m][m][s]\n\nAnswer briefly from the background.\nQuestion: Q?<|im_end|>\n"
        "<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nQuestion: R?<|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>"
    )


def test_answers_are_learnt_in_order_each_with_its_end_token(encoder: Encoder) -> None:
    example = encode_record(encoder, RECORD, "qa")
    assert texts(encoder, example, ANSWER) == [f"{answer}<|im_end|>" for answer in RECORD.answers]
    assert texts(encoder, example, INPUT) == RECORD.questions


@settings(max_examples=60)
@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=4), form=st.sampled_from(["turns", "pairs"]))
def test_whatever_is_asked_the_learnt_tokens_are_the_answers(
    encoder: Encoder, pairs: list[tuple[str, str]], form: str
) -> None:
    record = Record(docs=["d"], question=[q for q, _ in pairs], answers=[a for _, a in pairs])
    learnt = spans(encode_record(encoder, record, "qa", form=form), ANSWER)
    wanted = [a for _, a in pairs] if form == "turns" else ["\n".join(f"Question: {q}\nAnswer: {a}" for q, a in pairs)]
    assert [decode(encoder.tokenizer, span[:-1], skip_special=False) for span in learnt] == wanted
    assert {span[-1] for span in learnt} == {EOS}


def test_turns_ask_and_pairs_write_down(encoder: Encoder) -> None:
    turns, pairs = (encode_record(encoder, RECORD, "qa", form=form) for form in ("turns", "pairs"))
    lines = "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in zip(RECORD.questions, RECORD.answers, strict=True))
    assert texts(encoder, pairs, ANSWER) == [f"{lines}<|im_end|>"]
    assert texts(encoder, pairs, INPUT) == []
    assert len(spans(turns, ANSWER)) == len(spans(turns, INPUT)) == 3


@pytest.mark.parametrize("turn", range(4))
def test_one_asks_a_single_question_another_each_turn(encoder: Encoder, turn: int) -> None:
    example, first = encode_record(encoder, RECORD, "qa", turn, form="one"), turn % 3
    assert texts(encoder, example, INPUT) == [RECORD.questions[first]]
    assert texts(encoder, example, ANSWER) == [f"{RECORD.answers[first]}<|im_end|>"]


def test_a_record_repeats_itself_after_its_turns(encoder: Encoder) -> None:
    for task, count in (("qa", 3), ("paraphrase", len(encoder.prompts.paraphrases)), ("autoencode", 1)):
        assert turns(encoder, RECORD, task) == count
        seen = [encode_record(encoder, RECORD, task, turn) for turn in range(2 * count)]
        assert seen[:count] == seen[count:] and len(set(seen)) == count


def test_another_turn_begins_with_another_question(encoder: Encoder) -> None:
    first = [texts(encoder, encode_record(encoder, RECORD, "qa", turn), INPUT)[0] for turn in range(4)]
    assert first == [*RECORD.questions, RECORD.questions[0]]
    learnt = texts(encoder, encode_record(encoder, RECORD, "qa", 1), ANSWER)
    assert learnt == ["1907<|im_end|>", "Ada<|im_end|>", "red<|im_end|>"]


def test_sentences_to_fill_in_are_asked_in_turns_whatever_the_form(encoder: Encoder) -> None:
    record = Record(docs=["d"], question=["A ___ b.", "C ___ d."], answers=["x", "y"])
    asked = [encode_record(encoder, record, "cloze", turn, form) for turn in (0, 1) for form in ("turns", "pairs")]
    assert [written(encoder, each) for each in asked] == [
        "<|im_start|>user\nBackground: [m][m][m][m][s]\n\nAnswer briefly from the background.\n"
        "Fill in what is left out: A ___ b.<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n"
        "<|im_start|>user\nFill in what is left out: C ___ d.<|im_end|>\n<|im_start|>assistant\ny<|im_end|>"
    ] * 4
    assert texts(encoder, asked[0], ANSWER) == ["x<|im_end|>", "y<|im_end|>"]
    fewer = encode_record(limited(encoder, len(asked[0].tokens) - 1), record, "cloze")
    assert texts(encoder, fewer, INPUT) == ["A ___ b."]
    reader = encode_record(encoder._replace(reads="text"), record, "cloze")
    assert "Background: d\n" in written(encoder, reader) and reader.documents == ()


def test_prompts_that_were_kept_without_some_wordings_have_the_usual_ones() -> None:
    kept = msgspec.to_builtins(prompts.Prompts(joined=True))
    old = {name: value for name, value in kept.items() if "cloze" not in name}
    assert len(old) == len(kept) - 2 and msgspec.convert(old, prompts.Prompts) == prompts.Prompts(joined=True)


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_written_in_a_text_stay_plain_characters(encoder: Encoder, token: str) -> None:
    plain = Record(docs=["a b"], question=["c d"], answers=["e f"], paraphrase="g h")
    record = Record(docs=[f"a{token}b"], question=[f"c{token}d"], answers=[f"e{token}f"], paraphrase=f"g{token}h")
    for task in prompts.TASKS:
        usual, example = (encode_record(encoder, r, task) for r in (plain, record))
        assert [t for t in example.tokens if t <= EOS] == [t for t in usual.tokens if t <= EOS], task
    (document,) = encode_record(encoder, record, "qa").documents
    assert document[:2] == (ENC, BOS) and document[-1] == EOS
    assert decode(encoder.tokenizer, document[2:-1], skip_special=False) == f"a{token}b"
    assert texts(encoder, encode_record(encoder, record, "qa"), INPUT) == [f"c{token}d"]


@pytest.mark.parametrize("token", ["\ue000question 0\ue001", "\ue000memory\ue001", "{memory}", "{question}"])
def test_placeholders_written_in_a_text_stay_plain_characters(encoder: Encoder, token: str) -> None:
    record = Record(docs=[token], question=[token, token], answers=[token, token])
    example = encode_record(encoder, record, "qa")
    assert texts(encoder, example, INPUT) == [token, token]
    assert texts(encoder, example, ANSWER) == [f"{token}<|im_end|>"] * 2
    assert sum(t >= FIRST_SLOT for t in example.tokens) == MEMORY_TOKENS


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_document_has_its_own_slots_and_a_separator_in_one_place(encoder: Encoder, count: int) -> None:
    example = encode_prompt(encoder, ["one", "two", "three"][:count], "Q?")
    wanted = [
        t
        for i in range(count)
        for t in (*range(FIRST_SLOT + i * MEMORY_TOKENS, FIRST_SLOT + (i + 1) * MEMORY_TOKENS), SEP)
    ]
    assert [t for t in example.tokens if t > ENC] == wanted
    slots = "[m][m][m][m][s]" * count
    assert f"Background: {slots}\n\nAnswer" in written(encoder, example)
    assert {role for t, role in zip(example.tokens, example.roles, strict=True) if t > ENC} <= {FIXED}
    assert [len(document) for document in example.documents] == [len(t) + 3 for t in ("one", "two", "three")[:count]]


@pytest.mark.parametrize(("text", "kept"), [("short", "short"), ("x" * 31 + "abc", "x" * 31 + "a")])
def test_autoencode_learns_the_document_as_far_as_it_is_compressed(encoder: Encoder, text: str, kept: str) -> None:
    example = encode_record(encoder, Record(docs=[text], data_type="autoencode"), "autoencode")
    (learnt,) = spans(example, ANSWER)
    assert decode(encoder.tokenizer, learnt, skip_special=False) == f"{kept}<|im_end|>"
    assert example.documents == ((ENC, BOS, *learnt[:-1], EOS),)


def test_the_wording_of_a_paraphrase_depends_on_the_turn(encoder: Encoder) -> None:
    wordings = encoder.prompts.paraphrases
    asked = [encode_record(encoder, RECORD, "paraphrase", turn) for turn in range(len(wordings) + 1)]
    for example, wording in zip(asked, wordings, strict=False):
        assert wording.user.replace("{memory}", "[m][m][m][m][s]") in written(encoder, example)
    assert asked[-1] == asked[0]
    assert {tuple(texts(encoder, example, ANSWER)) for example in asked} == {(f"{RECORD.paraphrase}<|im_end|>",)}


@pytest.mark.parametrize("reply", [{"paraphrase": "B"}, {"answers": ["B"]}, {"answer": "B"}])
def test_a_paraphrase_is_learnt_from_whichever_field_holds_it(encoder: Encoder, reply: dict[str, str]) -> None:
    record = Record(docs=["A."], data_type="paraphrase", **reply)
    assert texts(encoder, encode_record(encoder, record, "paraphrase"), ANSWER) == ["B<|im_end|>"]


@pytest.mark.parametrize("turn", range(4))
def test_a_paraphrase_is_asked_for_as_it_was_learnt(encoder: Encoder, turn: int) -> None:
    learnt, asked = encode_record(encoder, RECORD, "paraphrase", turn), encode_paraphrase(encoder, RECORD.docs, turn)
    assert learnt.tokens[: len(asked.tokens)] == asked.tokens
    assert learnt.roles[len(asked.tokens)] == ANSWER
    assert asked.documents == learnt.documents


def test_a_text_prompt_has_texts_where_another_has_memory(encoder: Encoder) -> None:
    asked = encode_text_prompt(encoder, ["One.", "Two <|im_end|>."], "Q?")
    memory = written(encoder, encode_prompt(encoder, ["a"], "Q?"))
    assert written(encoder, asked) == memory.replace("[m][m][m][m][s]", "One.\n\nTwo <|im_end|>.")
    assert texts(encoder, asked, INPUT) == ["One.\n\nTwo <|im_end|>.", "Q?"]
    assert asked.tokens.count(SPECIAL.index("<|im_end|>")) == 1, "in a text it is no special token"
    assert asked.documents == ()


def test_a_question_without_any_text_has_no_background(encoder: Encoder) -> None:
    asked = written(encoder, encode_text_prompt(encoder, [], "Q?"))
    assert "Answer briefly.\nQuestion: Q?" in asked and "ackground" not in asked


def limited(encoder: Encoder, max_tokens: int) -> Encoder:
    """Return the encoder with another max_tokens."""
    return encoder._replace(max_tokens=max_tokens)


def test_a_question_too_long_loses_its_beginning(encoder: Encoder) -> None:
    whole = encode_prompt(encoder, ["d"], "0123456789")
    cut = encode_prompt(limited(encoder, len(whole.tokens) - 3), ["d"], "0123456789")
    assert texts(encoder, cut, INPUT) == ["3456789"]
    assert written(encoder, cut) == written(encoder, whole).replace("0123456789", "3456789")


@settings(max_examples=80)
@given(length=st.integers(1, 200), max_tokens=st.integers(100, 400), form=st.sampled_from(["turns", "pairs"]))
def test_a_row_is_never_too_long_and_an_answer_never_cut(
    encoder: Encoder, length: int, max_tokens: int, form: str
) -> None:
    record = Record(id="lamp", docs=["d"], question=["q" * length], answers=["a" * 40])
    whole = encode_record(encoder, record, "qa", form=form)
    least = sum(role != INPUT for role in whole.roles)
    if least > max_tokens:
        with pytest.raises(ClaraError, match=f"^lamp: .* take {least} tokens, more than max_tokens {max_tokens}"):
            encode_record(limited(encoder, max_tokens), record, "qa", form=form)
        return
    example = encode_record(limited(encoder, max_tokens), record, "qa", form=form)
    assert len(example.tokens) == min(len(whole.tokens), max_tokens)
    assert spans(example, ANSWER) == spans(whole, ANSWER)
    assert sum(example.roles.count(role) for role in (FIXED, ANSWER)) == least


@pytest.mark.parametrize("task", prompts.TASKS)
def test_the_record_whose_answer_cannot_fit_is_named(encoder: Encoder, task: str) -> None:
    record = Record(id="r-17", docs=["x" * 60], question=["q"], answers=["a" * 60], paraphrase="p" * 60)
    with pytest.raises(ClaraError, match=r"^r-17: .*more than max_tokens 60; raise max_tokens or shorten the answer"):
        encode_record(limited(encoder, 60), record, task)


def test_a_prompt_whose_template_cannot_fit_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ClaraError, match="max_tokens 30"):
        encode_prompt(limited(encoder, 30), ["d"], "What?")


@pytest.mark.parametrize("form", ["turns", "pairs"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_long_record_takes_as_many_pairs_as_fit(encoder: Encoder, count: int, form: str) -> None:
    fewer = Record(docs=RECORD.docs, question=RECORD.questions[:count], answers=RECORD.answers[:count])
    whole = encode_record(encoder, fewer, "qa", form=form)
    taken = encode_record(limited(encoder, len(whole.tokens)), RECORD, "qa", form=form)
    assert (taken.tokens, taken.roles) == (whole.tokens, whole.roles)


def test_one_pair_that_is_too_long_loses_its_question_not_its_answer(encoder: Encoder) -> None:
    one = Record(docs=RECORD.docs, question=RECORD.questions[:1], answers=RECORD.answers[:1])
    whole = encode_record(encoder, one, "qa")
    cut = encode_record(limited(encoder, len(whole.tokens) - 5), RECORD, "qa")
    assert texts(encoder, cut, INPUT) == [RECORD.questions[0][5:]]
    assert texts(encoder, cut, ANSWER) == ["red<|im_end|>"]


@pytest.mark.parametrize("template", [True, False], ids=["chat template", "no template"])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_question_is_asked_as_it_was_trained(
    tokenizer: Tokenizer, bare: Tokenizer, template: bool, turn: int
) -> None:
    encoder = tiny_encoder(tokenizer if template else bare)
    trained = encode_record(encoder, RECORD, "qa", turn)
    asked = encode_prompt(encoder, RECORD.docs, RECORD.questions[turn])
    first_answer = trained.roles.index(ANSWER)
    assert trained.tokens[:first_answer] == asked.tokens
    assert trained.roles[:first_answer] == asked.roles
    assert trained.documents == asked.documents


def test_without_a_chat_template_the_last_answer_is_ended_too(bare: Tokenizer) -> None:
    encoder = tiny_encoder(bare)
    example = encode_record(encoder, RECORD, "qa")
    assert written(encoder, example).endswith("\n\nQuestion: By whom?\n\nAda<|im_end|>")
    assert [text.removesuffix("<|im_end|>") for text in texts(encoder, example, ANSWER)] == RECORD.answers


def test_a_document_is_framed_and_cut(encoder: Encoder) -> None:
    framed = encode_document(encoder, "x" * 100)
    assert framed == (ENC, BOS, *[framed[2]] * 32, EOS) and len(framed) == 35
    assert encode_document(encoder, "") == (ENC, BOS, EOS)


def test_a_question_is_framed_like_a_document_and_cut_at_its_own_length(encoder: Encoder) -> None:
    assert encode_question(encoder, "Which?") == encode_document(encoder, "Which?")
    letter = encode(encoder.tokenizer, "x")[0]
    assert encode_question(encoder, "x" * 600) == (ENC, BOS, *[letter] * QUESTION_MAX_TOKENS, EOS)


@pytest.mark.parametrize(("length", "end"), [(31, (EOS,)), (32, (EOS,)), (33, ()), (90, ())])
def test_a_document_that_is_cut_late_loses_its_end(tokenizer: Tokenizer, length: int, end: tuple[int, ...]) -> None:
    memory = MemoryConfig(doc_max_tokens=32, compression_rate=8, cuts_suffix=True)
    encoder = make_encoder(tokenizer, layout_for(tokenizer, VOCAB_SIZE, memory), 32, 2048)
    letter = encode(tokenizer, "x")[0]
    assert encode_document(encoder, "x" * length) == (ENC, BOS, *[letter] * min(length, 33), *end)


CANDIDATES = Record(
    id="lamps",
    docs=["one", "two", "three", "four"],
    question=["Which?", "Why?"],
    answers=["three", "because"],
    pos_index=[2, 0],
)


@pytest.mark.parametrize("top_k", [1, 3, 4, 9])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_choice_has_all_candidates_and_slots_for_those_it_takes(encoder: Encoder, top_k: int, turn: int) -> None:
    example, first = encode_choice(encoder, CANDIDATES, top_k, turn), turn % 2
    assert example.documents == tuple(encode_document(encoder, text) for text in CANDIDATES.docs)
    assert [t for t in example.tokens if t >= FIRST_SLOT] == list(range(FIRST_SLOT, FIRST_SLOT + 4 * min(top_k, 4)))
    assert example.tokens.count(SEP) == min(top_k, 4)
    assert texts(encoder, example, INPUT) == [CANDIDATES.questions[first]]
    assert texts(encoder, example, ANSWER) == [f"{CANDIDATES.replies[first]}<|im_end|>"]
    assert example.question == encode_question(encoder, CANDIDATES.questions[first])
    assert example.positives == (2, 0)


def test_a_choice_is_asked_as_it_was_trained(encoder: Encoder) -> None:
    trained, asked = encode_choice(encoder, CANDIDATES, 3), encode_prompt(encoder, CANDIDATES.docs, "Which?", top_k=3)
    first_answer = trained.roles.index(ANSWER)
    assert (trained.tokens[:first_answer], trained.roles[:first_answer]) == (asked.tokens, asked.roles)
    assert (trained.documents, trained.question) == (asked.documents, asked.question)


def test_a_choice_of_as_many_as_there_are_reads_like_a_question_about_all(encoder: Encoder) -> None:
    choice, record = encode_choice(encoder, CANDIDATES, 4), encode_record(encoder, CANDIDATES, "qa", form="one")
    assert choice == record._replace(question=choice.question, positives=choice.positives)
    assert (record.question, record.positives) == ((), ())


def test_a_choice_that_is_not_answered_has_no_prompt(encoder: Encoder) -> None:
    bare = encode_choice(limited(encoder, 1), CANDIDATES, 3, answered=False)
    assert bare == encode_choice(encoder, CANDIDATES, 3)._replace(tokens=(), roles=())


def test_a_record_without_positives_has_none(encoder: Encoder) -> None:
    assert encode_choice(encoder, RECORD, 3).positives == ()


def test_a_choice_that_cannot_fit_is_named(encoder: Encoder) -> None:
    with pytest.raises(ClaraError, match=r"^lamps: .*more than max_tokens 60; raise max_tokens or shorten the answer"):
        encode_choice(limited(encoder, 60), CANDIDATES, 3)


def worded(encoder: Encoder, **wordings: Any) -> Encoder:
    """Return the encoder with other wordings."""
    return encoder._replace(prompts=prompts.Prompts(**wordings))


def test_a_system_message_opens_the_conversation_once(encoder: Encoder) -> None:
    brief = worded(encoder, answer=Wording("{memory}{question}", system="Be brief."), next_question="And {question}")
    record = Record(docs=["d"], question=["Q?", "R?"], answers=["a", "b"])
    assert written(encoder, encode_record(brief, record, "qa")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n[m][m][m][m][s]Q?<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nAnd R?<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    )


def test_where_the_template_has_no_system_its_message_opens_the_first_turn(tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
    encoder = tiny_encoder(tiny_tokenizer(tmp_path, chat_template=refusing))
    brief = worded(encoder, answer=Wording("{memory}{question}", system="Be brief."))
    slots = "[m]" * encoder.layout.num_memory_tokens
    assert written(encoder, encode_prompt(brief, ["d"], "Q?")) == (
        f"<|im_start|>user\nBe brief.\n{slots}[s]Q?<|im_end|>\n<|im_start|>assistant\n"
    )


@settings(max_examples=60)
@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=4), form=st.sampled_from(["turns", "pairs", "one"]))
def test_joined_text_has_the_tokens_and_roles_of_its_parts_where_no_token_crosses_a_border(
    encoder: Encoder, pairs: list[tuple[str, str]], form: str
) -> None:
    record = Record(docs=["d"], question=[q for q, _ in pairs], answers=[a for _, a in pairs])
    plain = encode_record(encoder, record, "qa", form=form)
    whole = encode_record(worded(encoder, joined=True), record, "qa", form=form)
    count = len(plain.tokens)
    assert (whole.tokens[:count], whole.roles[:count]) == (plain.tokens, plain.roles)
    assert decode(encoder.tokenizer, whole.tokens[count:]) == "\n"
    assert set(whole.roles[count:]) == {ANSWER}


def test_joined_text_is_tokenised_across_the_borders_of_its_parts(reference_encoder: Encoder) -> None:
    tokenizer = reference_encoder.tokenizer
    known = (decode(tokenizer, [token]) for token in range(3, tokenizer.vocab_size))
    word = next(each for each in known if each.isalpha() and len(each) == 2 and len(encode(tokenizer, each)) == 1)
    asking = Wording(f"{{memory}}{word[0]}{{question}}")
    rows = [
        encode_prompt(worded(reference_encoder, answer=asking, joined=joined), [], word[1]) for joined in (True, False)
    ]
    joined, apart = (decode(tokenizer, row.tokens, skip_special=False) for row in rows)
    assert joined == apart
    assert len(rows[0].tokens) == len(rows[1].tokens) - 1


def test_a_document_repeated_in_joined_text_is_cut_where_it_is_compressed(encoder: Encoder) -> None:
    record = Record(docs=["x" * 31 + "abc"], data_type="autoencode")
    example = encode_record(worded(encoder, joined=True), record, "autoencode")
    assert texts(encoder, example, ANSWER) == ["x" * 31 + "a<|im_end|>\n"]


def wording_of(encoder: Encoder, example: Example, question: str) -> Wording:
    """Return how an example of the reference asks, read off its tokens."""
    ids = [encoder.layout.vocab_size if t == encoder.layout.first_slot else t for t in example.tokens]
    runs = itertools.groupby(
        (t for t in ids if t <= encoder.layout.vocab_size), lambda t: t < encoder.layout.vocab_size
    )
    shown = "".join(decode(encoder.tokenizer, list(r), skip_special=False) if own else "{memory}" for own, r in runs)
    system, user, _ = re.findall(r"<\|im_start\|>\w+\n(.*?)<\|im_end\|>", shown, re.DOTALL)
    return Wording(user.replace(question, "{question}"), system=system)


@pytest.mark.parametrize("name", STAGES)
def test_the_texts_of_the_reference_become_its_inputs(reference_encoder: Encoder, name: str) -> None:
    expected, records = load_reference(name).examples, [msgspec.convert(each, Record) for each in records_of(name)]
    wording = wording_of(reference_encoder, expected[0], records[0].questions[0])
    encoder = worded(reference_encoder, joined=True, **{"pairs" if name == "stage1" else "answer": wording})
    for record, example in zip(records, expected, strict=True):
        if example.question:
            own = encode_choice(encoder, record, TOP_K)
        else:
            own = encode_record(encoder, record, "qa", form="pairs" if name == "stage1" else "one")
        roles = tuple(FIXED if role == INPUT else role for role in own.roles)  # the reference never cuts a question
        assert own._replace(name=example.name, roles=roles) == example


def test_the_layout_leaves_out_a_beginning_that_the_base_does_not_have(tokenizer: Tokenizer) -> None:
    memory = MemoryConfig(doc_max_tokens=32, compression_rate=8)
    without = layout_for(tokenizer._replace(bos_id=None), VOCAB_SIZE, memory)
    assert (without.prefix, without.suffix, without.num_memory_tokens) == ((ENC,), (EOS,), MEMORY_TOKENS)
    assert layout_for(tokenizer, VOCAB_SIZE, memory).prefix == (ENC, BOS)


def test_a_shape_of_conversation_is_rendered_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    real = tokenizer.hf.apply_chat_template

    def counted(*args: object, **kwargs: object) -> object:
        rendered.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(type(tokenizer.hf), "apply_chat_template", lambda _, *a, **k: counted(*a, **k))
    encoder = make_encoder(tokenizer, tiny_encoder(tokenizer).layout, 32, 2048)
    for question in ("one?", "two?", "three?"):
        encode_prompt(encoder, ["d"], question)
    assert len(rendered) == 1


def test_documents_are_read_as_text_where_the_encoder_says_so(encoder: Encoder) -> None:
    reader = encoder._replace(reads="text")
    record = Record(docs=["A lamp.", "x" * 40], question=["Q?"], answers=["a"])
    example = encode_record(reader, record, "qa")
    assert example.documents == (), "nothing is compressed"
    assert written(reader, example) == (
        f"<|im_start|>user\nBackground: A lamp.\n\n{'x' * 32}\n\nAnswer briefly from the background.\n"
        "Question: Q?<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    )
    assert texts(reader, example, INPUT) == ["Q?"], "documents are never cut further"
    asked = encode_text_prompt(reader, ["A lamp.", "x" * 32], "Q?")
    assert example.tokens[: len(asked.tokens)] == asked.tokens
    assert encode_prompt(reader, record.docs, "Q?").tokens == asked.tokens


@pytest.mark.parametrize("task", ["paraphrase", "autoencode"])
def test_text_is_what_every_task_reads(encoder: Encoder, task: str) -> None:
    record = Record(docs=["A lamp."], data_type=task, paraphrase="Lamp.")
    example = encode_record(encoder._replace(reads="text"), record, task)
    assert "A lamp." in written(encoder, example).partition("assistant")[0] and max(example.tokens) < FIRST_SLOT


def test_text_that_leaves_no_room_for_the_answer_is_refused(encoder: Encoder) -> None:
    record = Record(id="r", docs=["x" * 32], question="q", answer="a" * 20)
    size = len(encode_record(encoder._replace(reads="text"), record, "qa").tokens)
    assert encode_record(encoder._replace(reads="text", max_tokens=size - 1), record, "qa")
    with pytest.raises(ClaraError, match=f"^r: .*max_tokens {size - 2}"):
        encode_record(encoder._replace(reads="text", max_tokens=size - 2), record, "qa")


@pytest.mark.parametrize(
    ("text", "kept"), [("a" * 32, "a" * 32), ("a" * 33, "a" * 32), ("a" * 31 + "é", "a" * 31), ("é" * 40, "é" * 16)]
)
def test_a_text_is_shortened_to_whole_characters(encoder: Encoder, text: str, kept: str) -> None:
    assert shortened(encoder, text) == kept
