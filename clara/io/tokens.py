"""Text to token ids and back: a thin functional layer over a Hugging Face fast tokenizer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import tokenizers
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from mlx_lm.utils import load_config
from mlx_lm.utils import load_tokenizer as load_wrapped
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from clara.io.errors import ClaraError
from clara.io.gguf import metadata_value

CONTROL, USER_DEFINED = 3, 4  # GGUF's token types
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


Piece = tuple[list[int], list[int]]
"""Ids, and where in its text each of them starts."""


class Tokenizer(NamedTuple):
    """A tokenizer and what is asked of it most.

    `hf` is mlx-lm's wrapper, ready for `mlx_lm.generate`, around the Hugging Face tokenizer; `chat_template`
    says whether it has one; `plain` is a copy of its backend that takes special tokens in a text for plain
    characters; `known` are ids of texts that were encoded before.
    """

    hf: Any
    vocab_size: int
    bos_id: int | None
    eos_id: int
    eos_ids: frozenset[int]
    pad_id: int
    chat_template: bool
    plain: tokenizers.Tokenizer
    known: Mapping[str, list[int]] = MappingProxyType({})


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Return the tokenizer of a folder in Hugging Face's layout; its end tokens also count config.json's.

    Raises ClaraError if the folder has no tokenizer, or one without a fast implementation.
    """
    folder = Path(folder)
    try:
        eos_ids = load_config(folder).get("eos_token_id") if (folder / "config.json").is_file() else None
        wrapped = load_wrapped(folder, eos_token_ids=eos_ids)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ClaraError(
            f"{folder}: no tokenizer could be loaded from this folder ({said}); "
            "it should hold tokenizer.json and tokenizer_config.json, as the base's page on Hugging Face does"
        ) from error
    return _from_wrapper(wrapped, str(folder))


def tokenizer_from_gguf(metadata: dict[str, Any], source: str = "the GGUF file") -> Tokenizer:
    """Return the byte-level BPE tokenizer, special tokens and chat template that GGUF metadata describes.

    Raises ClaraError for another kind of vocabulary or an unknown pre-tokenizer; `source` names the file in
    it.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _pre_tokenizers():
        known = ", ".join(sorted(_pre_tokenizers()))
        raise ClaraError(
            f"{source}: tokenizer {kind!r} with pre-tokenizer {pre!r}; "
            f"'gpt2' (byte-level BPE) with {known} is read: "
            "give the base as a folder with tokenizer.json instead"
        )
    names: list[str] = metadata["tokenizer.ggml.tokens"]
    special = {
        f"{role}_token": names[metadata_value(metadata, f"tokenizer.ggml.{key}_token_id")]
        for role, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items()
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    backend = _gguf_backend(names, metadata)
    if metadata_value(metadata, "tokenizer.ggml.add_bos_token", False) and "bos_token" in special:
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, names.index(bos))]
        )
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, padding_side="right", **special
    )
    hf.chat_template = metadata.get("tokenizer.chat_template")
    turn_end = metadata_value(metadata, "tokenizer.ggml.eot_token_id")
    ends = None if turn_end is None else [turn_end]
    return _from_wrapper(TokenizerWrapper(hf, BPEStreamingDetokenizer, eos_token_ids=ends), source)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text, no BOS or EOS added, special tokens in it taken for plain characters.

    Bytes without a token of their own are dropped, as the base's authors have it: SmolLM2's vocabulary lacks
    six control characters and the first bytes of the unassigned planes 4 to 11 (huggingface/smollm issue 81).
    """
    known = tokenizer.known.get(text)
    return list(tokenizer.plain.encode(_valid(text), add_special_tokens=False).ids if known is None else known)


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return what `encode` gives for each text, computed on all cores."""
    encodings = tokenizer.plain.encode_batch_fast([_valid(text) for text in texts], add_special_tokens=False)
    return [list(encoding.ids) for encoding in encodings]


def most_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Return how many tokens a text may have: its bytes, as the tokenizer's normaliser writes it out."""
    normalizer = tokenizer.plain.normalizer
    text = _valid(text)
    return len((normalizer.normalize_str(text) if normalizer else text).encode())


def acquainted(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer with the ids of texts at hand, encoded in one go and no others."""
    texts = list(dict.fromkeys(texts))
    return tokenizer._replace(known=dict(zip(texts, encode_batch(tokenizer, texts), strict=True)))


def decode(tokenizer: Tokenizer, ids: Sequence[int], skip_special: bool = True) -> str:
    """Return the text of ids, without the special tokens unless they are asked for."""
    text: str = tokenizer.hf.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
    return text


def chat_parts(tokenizer: Tokenizer, messages: list[dict[str, str]], slots: Sequence[str] = ()) -> list[str]:
    """Return a conversation as text, slot, text, …, text: what the chat template writes, split at the slots.

    A last message of the user is followed by the opening of the assistant's. Without a template the contents are
    joined by blank lines. Raises ClaraError if the template refuses the messages or does not keep every slot.
    """
    asks = bool(messages) and messages[-1]["role"] == "user"
    if not asks and not (messages and messages[-1]["role"] == "assistant"):
        raise ClaraError(f"a conversation ends with a message of the user or the assistant, not so: {messages[-1:]}")
    rendered = _render(tokenizer, messages, asks)
    contents = "\n".join(message["content"] for message in messages)
    lost = [slot for slot in slots if rendered.count(slot) != contents.count(slot)]
    if lost:
        raise ClaraError(f"the chat template dropped or repeated {lost}: change the messages or the template")
    if not slots:
        return [rendered]
    return re.split("(" + "|".join(re.escape(slot) for slot in sorted(slots, key=len, reverse=True)) + ")", rendered)


def chat_pieces(
    tokenizer: Tokenizer, messages: list[dict[str, str]], slots: Sequence[str] = ()
) -> list[list[int] | str]:
    """Return a conversation as token ids, with the slots in its contents left in their places as strings.

    The template's special tokens are recognised and no BOS or EOS is added to what it writes. A text from outside
    belongs in a slot, so that special tokens in it stay plain characters. Otherwise as `chat_parts`.
    """
    parts = chat_parts(tokenizer, messages, slots)
    fixed: list[list[int] | str] = [ids for ids, _ in encode_parts(tokenizer, parts[::2])]
    woven = itertools.chain.from_iterable(itertools.zip_longest(fixed, parts[1::2], fillvalue=""))
    return [piece for piece in woven if piece]


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], asks: bool) -> str:
    """Return the conversation as text, by the chat template if there is one."""
    if not tokenizer.chat_template:
        # A blank line comes before an answer that is given, so also before one that is asked for.
        return "\n\n".join(message["content"] for message in messages) + ("\n\n" if asks else "")
    try:
        # Without thinking, an answer asked for and one given have the same opening in templates that know it.
        rendered: str = tokenizer.hf.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asks, enable_thinking=False
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = [message["role"] for message in messages]
        raise ClaraError(f"the base's chat template refuses messages of the roles {roles}: {error}") from error
    return rendered


def encode_parts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Piece]:
    """Return (ids, start of each in its text) of texts that follow each other with something between.

    Special tokens are recognised. The texts are encoded as one with a special token in the gaps, as the original does
    with its memory tokens: a tokenizer that marks the beginning of a text then marks only the first of them. Where no
    special token leaves the spaces around it alone, each text is encoded by itself.
    """
    texts = [_valid(text) for text in texts]
    backend = tokenizer.hf.backend_tokenizer
    markers = [
        (token_id, token.content)
        for token_id, token in sorted(tokenizer.hf.added_tokens_decoder.items())
        if token.special and not (token.lstrip or token.rstrip or token.single_word)
    ]
    marker_id, marker = (markers or [(-1, "")])[0]
    encoding = backend.encode(marker.join(texts), add_special_tokens=False)
    begins = [0, *itertools.accumulate(len(text) + len(marker) for text in texts[:-1])]
    gaps = {begin - len(marker) for begin in begins[1:]}
    pieces: list[Piece] = [([], [])]
    for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
        if token == marker_id and start in gaps:
            pieces.append(([], []))
        else:
            pieces[-1][0].append(token)
            pieces[-1][1].append(start - begins[len(pieces) - 1])
    if len(pieces) == len(texts):
        return pieces
    alone = [backend.encode(text, add_special_tokens=False) for text in texts]
    return [(encoding.ids, [start for start, _ in encoding.offsets]) for encoding in alone]


def _from_wrapper(wrapped: Any, source: str) -> Tokenizer:
    """Return the tokenizer around mlx-lm's wrapper, with the ids that every base needs."""
    backend = getattr(wrapped, "backend_tokenizer", None)
    if backend is None:
        raise ClaraError(f"{source}: its tokenizer has no fast implementation; a base with tokenizer.json is wanted")
    backend.no_truncation()
    backend.no_padding()
    plain = tokenizers.Tokenizer.from_str(backend.to_str())
    plain.encode_special_tokens = True
    ends = frozenset(wrapped.eos_token_ids)
    if not ends:
        raise ClaraError(
            f"{source}: no end token; set eos_token_id in config.json or eos_token in tokenizer_config.json"
        )
    eos = wrapped.eos_token_id if wrapped.eos_token_id is not None else min(ends)
    pad = wrapped.pad_token_id if wrapped.pad_token_id is not None else eos
    chat = bool(wrapped.has_chat_template)
    return Tokenizer(wrapped, len(wrapped), wrapped.bos_token_id, eos, ends, pad, chat, plain)


def _pre_tokenizers() -> dict[str, pre_tokenizers.PreTokenizer]:
    """Return how a text is cut before BPE, by llama.cpp's names."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return {
        "gpt-2": gpt2,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), byte_level]),
    }


def _gguf_backend(names: list[str], metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    """Return the BPE model with its pre-tokenizer, decoder and added tokens."""
    pre = metadata["tokenizer.ggml.pre"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    backend.pre_tokenizer = _pre_tokenizers()[pre]
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    added = {
        kind: [name for name, k in zip(names, kinds, strict=True) if k == kind] for kind in (CONTROL, USER_DEFINED)
    }
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in added[CONTROL]])
    backend.add_tokens([AddedToken(name, normalized=False) for name in added[USER_DEFINED]])
    return backend


def _valid(text: str) -> str:
    """Return the text with half surrogate pairs, which JSON can carry and UTF-8 cannot, as question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
