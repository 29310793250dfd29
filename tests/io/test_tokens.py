"""Text to ids and back, special tokens kept out of documents, and chat templates cut at their slots."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from clara.io.download import fetch_builtin
from clara.io.errors import ClaraError
from clara.io.gguf import load_gguf
from clara.io.tokens import (
    Tokenizer,
    acquainted,
    chat_parts,
    chat_pieces,
    decode,
    encode,
    encode_batch,
    encode_parts,
    load_tokenizer,
    tokenizer_from_gguf,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2", "2 3"]
CHATML = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DOCUMENT, QUESTION, ANSWER = "\ue000", "\ue001", "\ue002"


def gguf_metadata(**changes: Any) -> dict[str, Any]:
    """Return the metadata of a byte-level vocabulary with a few merges."""
    names = [
        *SPECIAL,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(merge.replace(" ", "") for merge in MERGES),
    ]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": mx.array([3] * len(SPECIAL) + [1] * (len(names) - len(SPECIAL)), mx.int32),
        "tokenizer.ggml.bos_token_id": mx.array(1, mx.uint32),
        "tokenizer.ggml.eos_token_id": mx.array(2, mx.uint32),
        "tokenizer.ggml.padding_token_id": mx.array(0, mx.uint32),
        "tokenizer.chat_template": CHATML,
    }
    return metadata | {f"tokenizer.{key}".replace("__", "."): value for key, value in changes.items()}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Return the tokenizer of that vocabulary."""
    return tokenizer_from_gguf(gguf_metadata())


def names(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the tokens of a text by name."""
    named: list[str] = tokenizer.hf.convert_ids_to_tokens(encode(tokenizer, text))
    return named


def test_ids_come_from_the_metadata(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == len(gguf_metadata()["tokenizer.ggml.tokens"])
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.eos_ids == {2} and tokenizer.chat_template


def test_an_end_of_turn_is_an_end() -> None:
    ends = tokenizer_from_gguf(gguf_metadata(ggml__eot_token_id=mx.array(0, mx.uint32)))
    assert ends.eos_ids == {0, 2} and ends.eos_id == 2


def test_smollm_splits_digits_one_by_one_and_spaces_from_them(tokenizer: Tokenizer) -> None:
    assert names(tokenizer, "hello world") == ["hello", "Ġworld"]
    assert names(tokenizer, "in 123") == ["i", "n", "Ġ", "1", "2", "3"]


def test_gpt2_keeps_digits_together() -> None:
    gpt2 = tokenizer_from_gguf(gguf_metadata(ggml__pre="gpt-2"))
    assert names(gpt2, "123") == ["12", "3"]


def test_llama_3_keeps_a_line_break_with_the_mark_before_it() -> None:
    llama3 = tokenizer_from_gguf(gguf_metadata(ggml__pre="llama-bpe"))
    cut = llama3.plain.pre_tokenizer.pre_tokenize_str("Don't 12345!\n\n  ok")
    assert [piece for piece, _ in cut] == ["Don", "'t", "Ġ", "123", "45", "!ĊĊ", "Ġ", "Ġok"]


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(ClaraError, match=r"x\.gguf: tokenizer 'llama' with pre-tokenizer 'smollm'"):
        tokenizer_from_gguf(gguf_metadata(ggml__model="llama"), "x.gguf")
    with pytest.raises(ClaraError, match="pre-tokenizer 'qwen2'"):
        tokenizer_from_gguf(gguf_metadata(ggml__pre="qwen2"))


@given(text=st.text(max_size=60) | st.text(alphabet=" \n\t1é日🎉\u200d<|im_end|>'s", max_size=60))
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_decoding_undoes_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert decode(tokenizer, encode(tokenizer, text)) == text


@given(texts=st.lists(st.text(max_size=20), max_size=5))
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_batch_is_encoded_like_its_texts(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert encode_batch(tokenizer, texts) == [encode(tokenizer, text) for text in texts]


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_in_a_document_are_plain_characters(tokenizer: Tokenizer, token: str) -> None:
    ids = encode(tokenizer, f"a {token} b")
    assert not set(ids) & {0, 1, 2}
    assert decode(tokenizer, ids) == f"a {token} b"
    assert encode_batch(tokenizer, [f"a {token} b"]) == [ids]


def test_special_tokens_are_shown_only_if_asked_for(tokenizer: Tokenizer) -> None:
    ids = [1, *encode(tokenizer, "hello"), 2]
    assert decode(tokenizer, ids) == "hello"
    assert decode(tokenizer, ids, skip_special=False) == "<|im_start|>hello<|im_end|>"


def test_half_a_surrogate_pair_becomes_a_question_mark(tokenizer: Tokenizer) -> None:
    assert decode(tokenizer, encode(tokenizer, json.loads('"a\\ud800b"'))) == "a?b"


def test_the_streaming_detokenizer_of_mlx_lm_agrees(tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.hf.detokenizer
    for token in encode(tokenizer, "hello world 日本 12"):
        detokenizer.add_token(token)
    detokenizer.finalize()
    assert detokenizer.text == "hello world 日本 12"


def joined(tokenizer: Tokenizer, pieces: list[list[int] | str]) -> str:
    """Return pieces as text, with their special tokens."""
    return "".join(p if isinstance(p, str) else decode(tokenizer, p, skip_special=False) for p in pieces)


def test_a_question_is_cut_at_its_slots_and_opens_the_answer(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": f"Read {DOCUMENT} and {DOCUMENT}.\n{QUESTION}"}]
    pieces = chat_pieces(tokenizer, messages, [DOCUMENT, QUESTION])
    assert [piece for piece in pieces if isinstance(piece, str)] == [DOCUMENT, DOCUMENT, QUESTION]
    written = f"<|im_start|>user\nRead {DOCUMENT} and {DOCUMENT}.\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert joined(tokenizer, pieces) == written
    assert pieces[0][0] == 1 and pieces[-1][0] == 2  # type: ignore[comparison-overlap]


def test_a_conversation_with_its_answer_begins_like_the_question(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    asked = chat_pieces(tokenizer, messages, [QUESTION])
    answered = chat_pieces(tokenizer, [*messages, {"role": "assistant", "content": ANSWER}], [QUESTION, ANSWER])
    assert answered[: len(asked)] == asked
    assert answered[len(asked)] == ANSWER
    assert answered[-1][0] == 2  # type: ignore[comparison-overlap]


def test_a_conversation_as_text_alternates_with_its_slots(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": f"Read {DOCUMENT}{DOCUMENT}.\n{QUESTION}"}]
    parts = chat_parts(tokenizer, messages, [DOCUMENT, QUESTION])
    assert parts == [
        *("<|im_start|>user\nRead ", DOCUMENT, "", DOCUMENT, ".\n", QUESTION),
        "<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert chat_parts(tokenizer, messages) == ["".join(parts)]


written_parts = st.lists(
    st.text(max_size=20) | st.sampled_from(["hello world", "<|im_end|>", " <|im_start|>1"]), min_size=1
)


@given(texts=written_parts)
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_parts_are_encoded_each_by_itself_with_the_place_of_each_token(tokenizer: Tokenizer, texts: list[str]) -> None:
    parts = encode_parts(tokenizer, texts)
    assert [decode(tokenizer, ids, skip_special=False) for ids, _ in parts] == texts
    for text, (ids, starts) in zip(texts, parts, strict=True):
        assert len(ids) == len(starts)
        assert starts == sorted(starts) and starts[:1] == [0][: len(text)]
        for token, start in zip(ids, starts, strict=True):
            shown = decode(tokenizer, [token], skip_special=False)
            assert "\ufffd" in shown or text.startswith(shown, start)


def test_without_a_token_that_leaves_spaces_alone_each_part_is_encoded_alone(tmp_path: Path) -> None:
    backend = Backend(models.BPE({"a": 0, "b": 1, " ": 2, "<s>": 3}, []))
    backend.add_special_tokens([AddedToken("<s>", normalized=False, special=True, lstrip=True, rstrip=True)])
    loaded = load_tokenizer(save_folder(tmp_path, backend, eos_token="<s>"))
    assert encode_parts(loaded, ["a ", " b"]) == [([0, 2], [0, 1]), ([2, 1], [0, 1])]


def test_without_slots_there_is_one_piece(tokenizer: Tokenizer) -> None:
    (piece,) = chat_pieces(tokenizer, [{"role": "user", "content": "hello"}])
    assert joined(tokenizer, [piece]) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_refuses_is_quoted(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    with pytest.raises(ClaraError, match=r"roles \['system', 'user'\]: no system here"):
        chat_pieces(tokenizer, messages)


def test_a_slot_that_the_template_drops_is_named() -> None:
    deaf = tokenizer_from_gguf(gguf_metadata(chat_template="<|im_start|>"))
    with pytest.raises(ClaraError, match="dropped or repeated"):
        chat_pieces(deaf, [{"role": "user", "content": QUESTION}], [QUESTION])


def test_a_conversation_ends_with_the_user_or_the_assistant(tokenizer: Tokenizer) -> None:
    for messages in ([], [{"role": "system", "content": "x"}]):
        with pytest.raises(ClaraError, match="ends with"):
            chat_pieces(tokenizer, messages)


def test_without_a_template_contents_are_joined_by_blank_lines() -> None:
    bare = tokenizer_from_gguf(gguf_metadata(chat_template=None))
    assert not bare.chat_template
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    pieces = chat_pieces(bare, messages, [QUESTION])
    assert joined(bare, pieces) == f"Be brief.\n\n{QUESTION}\n\n"
    answered = chat_pieces(bare, [*messages, {"role": "assistant", "content": ANSWER}], [QUESTION, ANSWER])
    assert answered == [*pieces, ANSWER]


def save_folder(folder: Path, backend: Backend, **options: Any) -> Path:
    """Return a folder in Hugging Face's layout with a tokenizer."""
    options = {"eos_token": "<|im_end|>"} | options
    PreTrainedTokenizerFast(tokenizer_object=backend, **options).save_pretrained(folder)
    return folder


def byte_level() -> Backend:
    """Return the backend of the tiny vocabulary."""
    backend: Backend = tokenizer_from_gguf(gguf_metadata()).hf.backend_tokenizer
    return backend


def test_a_folder_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = load_tokenizer(save_folder(tmp_path, byte_level(), chat_template=CHATML))
    assert encode(loaded, "hello <|im_end|> 12") == encode(tokenizer, "hello <|im_end|> 12")
    messages = [{"role": "user", "content": f"a{QUESTION}b"}]
    assert chat_pieces(loaded, messages, [QUESTION]) == chat_pieces(tokenizer, messages, [QUESTION])
    assert loaded.bos_id is None and loaded.pad_id == loaded.eos_id == 2


def test_the_end_tokens_of_the_configuration_count(tmp_path: Path) -> None:
    save_folder(tmp_path, byte_level())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [0]}))
    assert load_tokenizer(tmp_path).eos_ids == {0, 2}


def test_truncation_and_padding_of_the_file_are_put_aside(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    loaded = load_tokenizer(save_folder(tmp_path, backend))
    assert decode(loaded, encode(loaded, "a b c d")) == "a b c d"


def test_only_the_first_piece_of_a_prompt_gets_the_mark_of_a_beginning(tmp_path: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(["<s>", "▁", "a", "b", ":"])}
    backend = Backend(models.BPE(vocabulary, [], unk_token=":"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("<s>", normalized=False, special=True)])
    loaded = load_tokenizer(save_folder(tmp_path, backend, eos_token="<s>"))
    messages = [{"role": "user", "content": f"a{DOCUMENT}b"}]
    assert chat_pieces(loaded, messages, [DOCUMENT])[:2] == [[1, 2], DOCUMENT]
    assert chat_pieces(loaded, messages, [DOCUMENT])[2][0] == 3  # type: ignore[comparison-overlap]


def test_spaces_around_slots_survive_a_normalizer(tmp_path: Path) -> None:
    backend = byte_level()
    backend.normalizer = normalizers.Replace(Regex("ﬁ"), "fi")
    loaded = load_tokenizer(save_folder(tmp_path, backend))
    pieces = chat_pieces(loaded, [{"role": "user", "content": f"ﬁ {DOCUMENT} ﬁ"}], [DOCUMENT])
    assert joined(loaded, pieces) == f"fi {DOCUMENT} fi\n\n"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=r"no tokenizer could be loaded.*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match="no end token"):
        load_tokenizer(save_folder(tmp_path, byte_level(), eos_token=None))


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    """Return the tokenizer of the built-in base."""
    if "CLARA_SMOLLM2_WHEEL" not in os.environ:
        pytest.skip("needs CLARA_SMOLLM2_WHEEL")
    return tokenizer_from_gguf(load_gguf(fetch_builtin()).metadata)


@pytest.mark.slow
def test_smollm2_gives_its_known_ids(smollm2: Tokenizer) -> None:
    assert encode(smollm2, "hello world") == [28120, 905]
    assert names(smollm2, "In 2024") == ["In", "Ġ", "2", "0", "2", "4"]


def in_smollm2(character: str) -> bool:
    """Return whether SmolLM2's vocabulary has the bytes of a character."""
    return character not in "\x04\x06\x13\x14\x16\x1d" and not 0x40000 <= ord(character) < 0xC0000


@pytest.mark.slow
@given(text=st.text(st.characters(exclude_categories=["Cs"]).filter(in_smollm2), max_size=60))
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_smollm2_gives_back_what_its_vocabulary_can_write(smollm2: Tokenizer, text: str) -> None:
    ids = encode(smollm2, text)
    assert decode(smollm2, ids) == text and not set(ids) & set(range(17))


def test_an_acquainted_tokenizer_gives_the_same_ids_and_does_not_ask_again(
    tokenizer: Tokenizer,
) -> None:
    texts = ["Where is Orrel?", "", "é 漢 <|im_end|>", "Where is Orrel?"]
    known = acquainted(tokenizer, texts)
    assert [encode(known, text) for text in texts] == [encode(tokenizer, text) for text in texts]
    encode(known, texts[0]).append(1)
    assert encode(known, texts[0]) == encode(tokenizer, texts[0]), "what is given may be changed"
    broken = known._replace(plain=None)
    assert encode(broken, texts[0]) == encode(tokenizer, texts[0])
