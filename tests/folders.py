"""A tiny random base in Hugging Face's layout, and records, an encoder and a session to go with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from clara.core.config import MemoryConfig, Stage
from clara.io.examples import Encoder, layout_for, make_encoder
from clara.io.tokens import Tokenizer, load_tokenizer
from clara.shell.options import Options, merge, stage_defaults, to_options
from clara.shell.setup import Session, open_session

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCAB_SIZE = 260
"""Rows of the embedding table: 3 special tokens, 256 bytes, and one row that no token has."""
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_folder(path: Path, seed: int = 0, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Return the folder of a tiny random llama with a byte-level tokenizer, as `load_base` takes it."""
    path.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({token: i for i, token in enumerate([*SPECIAL, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    names = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    hf.chat_template = chat_template
    hf.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(CONFIG))
    mx.random.seed(seed)
    module: Any = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    # MLX may still have an older file of this name open: take a new one.
    (path / "model.safetensors").unlink(missing_ok=True)
    # Rows of all but printable ASCII are made small: the base then says what can be read, and never ends by itself.
    printable = mx.array([len(token) == 1 and "!" <= token <= "~" for token in [*SPECIAL, *alphabet, ""]])
    table = module.model.embed_tokens
    table.weight = mx.where(printable[:, None], table.weight, 0.1 * table.weight)
    weights = dict(tree_flatten(module.parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    return path


def tiny_tokenizer(path: Path, chat_template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    """Return the tokenizer of a tiny base, written to path: ids 0 to 2 are special, and every byte is one token."""
    return load_tokenizer(tiny_folder(path, chat_template=chat_template))


def tiny_encoder(
    tokenizer: Tokenizer, doc_max_tokens: int = 32, compression_rate: int = 8, max_tokens: int = 2048
) -> Encoder:
    """Return an encoder for the tiny base."""
    memory = MemoryConfig(doc_max_tokens=doc_max_tokens, compression_rate=compression_rate)
    return make_encoder(tokenizer, layout_for(tokenizer, VOCAB_SIZE, memory), doc_max_tokens, max_tokens)


def write_records(path: Path, numbers: Sequence[int]) -> Path:
    """Return a JSON Lines file with a qa record for each number: two pairs, a paraphrase, documents of many lengths."""
    records = [
        {
            "id": f"r{i}",
            "docs": [f"Lamp {i} burns {'very ' * (i % 4)}red."],
            "question": ["Which lamp?", f"How does lamp {i} burn?"],
            "answers": [str(i), "red" if i % 2 else "very red"],
            "paraphrase": f"Red burns lamp {i}.",
        }
        for i in numbers
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_choices(path: Path, numbers: Sequence[int]) -> Path:
    """Return a JSON Lines file with a qa record for each number: three documents, of which one holds the answer."""
    records = [
        {
            "id": f"c{i}",
            "docs": [f"Lamp {j} burns {'very ' * (j % 3)}red." for j in (i, i + 1, i + 2)],
            "question": f"How does lamp {i + i % 3} burn?",
            "answer": f"red {i}",
            "pos_index": [i % 3],
        }
        for i in numbers
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def tiny_options(folder: Path, **sections: Any) -> Options:
    """Return options of a run on the tiny base in folder, over the defaults of their stage."""
    options = {
        "model": str(folder),
        "memory": {"doc_max_tokens": 32, "compression_rate": 8, "anchored": True, "anchor_gain": 0.3},
        "lora": {"rank": 4, "dropout": 0.0},
        "data": {"max_tokens": 512},
    }
    return to_options(merge(stage_defaults(sections.get("stage", "pretrain")), options, sections))


def options_of(base: Path, data: Path, run: Path, stage: Stage = "pretrain", **sections: Any) -> Options:
    """Return options of a short run; a choosing stage has four candidates."""
    settings = {"data": str(data), "batch_size": 2, "max_tokens": 512}
    settings |= {"candidates": 4} if stage in ("retrieval", "end_to_end") else {}
    return tiny_options(base, stage=stage, steps=4, run=str(run), data=settings, **sections)


def tiny_session(folder: Path, **sections: Any) -> Session:
    """Return a session of the tiny base in folder, whose adapters do something; sections are options of a run."""
    session = open_session(tiny_options(folder, **sections))
    keys = iter(mx.random.split(mx.random.key(1), len(tree_flatten(session.params))))
    moved = tree_map(lambda leaf: leaf + 0.1 * mx.random.normal(leaf.shape, key=next(keys)), session.params)
    return session._replace(params=moved)
