"""What cases share in one process: the base, a tokenizer, stores; each is made when the first case asks for it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from clara.core.flops import Shape, shape_of
from clara.core.types import Base
from clara.io.base import LoadedBase, load_base
from clara.io.examples import layout_for
from clara.io.records import read_records
from clara.io.tokens import Tokenizer, load_tokenizer
from clara.shell.benching.options import BenchOptions
from clara.shell.benching.shapes import SIZES, Size, memory_config, random_layout, random_module, to_base
from clara.shell.ranks import ALONE, Ranks

SPECIAL = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
LARGEST_VOCABULARY = 8192
"""Of a tokenizer that is made for random weights."""


class Workbench(NamedTuple):
    """What cases run on."""

    options: BenchOptions
    size: Size
    rows: int
    passages: int
    batches: int
    growth_steps: int
    compiled: bool
    dtype: mx.Dtype
    base: Callable[[], Base]
    shape: Callable[[], Shape]
    tokenizer: Callable[[], Tokenizer]
    """The base's own, or one made for random weights."""
    folder: Callable[[], Path]
    """A temporary folder."""
    kept: dict[Any, Any]
    """What a case has made for others, by a key of its own."""
    ending: ExitStack
    """Closes what cases open."""
    ranks: Ranks


@contextmanager
def workbench(options: BenchOptions, compiled: bool, ranks: Ranks = ALONE) -> Iterator[Workbench]:
    """Open a workbench; at the end its stores are closed and its files removed. compiled: whether steps are."""
    gpu = mx.default_device() != mx.cpu
    size = SIZES[options.size]
    rows = options.rows or (8 if gpu else 2)
    small = options.size == "tiny"
    dtype = mx.bfloat16 if gpu else mx.float32
    loaded = functools.cache(lambda: load_base(options.model, progress=False))
    base = functools.cache(lambda: make_base(options, size, dtype, loaded))
    with ExitStack() as ending:
        folder = functools.cache(lambda: Path(ending.enter_context(tempfile.TemporaryDirectory())))
        yield Workbench(
            options,
            size,
            rows,
            options.passages or 4 * rows,
            options.batches or (16 if gpu else 4),
            options.growth_steps or (60 if small else 200 if gpu else 30),
            compiled,
            dtype,
            base,
            functools.cache(lambda: shape_of(base().module)),
            functools.cache(lambda: loaded().tokenizer if options.model else made_tokenizer(base(), folder())),
            folder,
            {},
            ending,
            ranks,
        )


def make_base(options: BenchOptions, size: Size, dtype: mx.Dtype, loaded: Callable[[], LoadedBase]) -> Base:
    """Return the base that options name: a real one, or random weights."""
    if not options.model:
        module = random_module(size, dtype)
        return to_base(module, random_layout(module, size))
    found = loaded()
    rows = random_layout(found.module, size).vocab_size
    return to_base(found.module, layout_for(found.tokenizer, rows, memory_config(size)))


def made_tokenizer(base: Base, folder: Path) -> Tokenizer:
    """Return a byte-level BPE learnt from the sample, with no more tokens than the base has rows."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(base.layout.vocab_size, LARGEST_VOCABULARY),
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((text for record in read_records("sample") for text in record.docs), trainer)
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    hf.chat_template = CHAT_TEMPLATE
    path = folder / "tokenizer"
    hf.save_pretrained(path)
    return load_tokenizer(path)
