"""What cases share: made once, when it is first asked for, and gone at the end."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from folders import VOCAB_SIZE, tiny_folder
from workbenches import tiny_bench

from clara.io.tokens import chat_pieces, decode, encode
from clara.shell.benching.options import BenchOptions
from clara.shell.benching.workbench import workbench


def test_the_base_is_made_once() -> None:
    with tiny_bench() as bench:
        assert bench.base() is bench.base()
        assert bench.shape().hidden == 64 and bench.base().layout.num_memory_tokens == 8


def test_files_are_gone_at_the_end_and_stores_closed_before() -> None:
    closed = []
    with tiny_bench() as bench:
        folder = bench.folder()
        bench.ending.callback(lambda: closed.append(folder.is_dir()))
        assert folder.is_dir()
    assert closed == [True] and not folder.exists()


def test_random_weights_get_a_tokenizer_that_fits_their_table_and_gives_texts_back() -> None:
    with tiny_bench() as bench:
        tokenizer, rows = bench.tokenizer(), bench.base().layout.vocab_size
        ids = encode(tokenizer, "The lamp burns très red.")
        assert decode(tokenizer, ids) == "The lamp burns très red." and max(ids) < tokenizer.vocab_size <= rows
        assert len(ids) < len("The lamp burns très red.".encode())
        assert chat_pieces(tokenizer, [{"role": "user", "content": "hello"}])


def test_a_real_base_comes_with_its_own_tokenizer_and_table(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base")
    with tiny_bench(model=str(folder)) as bench:
        assert bench.base().layout.vocab_size == VOCAB_SIZE and bench.shape().hidden == 32
        assert encode(bench.tokenizer(), "a") and bench.tokenizer().chat_template


def test_what_is_left_open_depends_on_the_device() -> None:
    on_cpu = mx.default_device() == mx.cpu
    with workbench(BenchOptions(), compiled=False) as bench:
        assert (bench.rows, bench.passages, bench.batches) == ((2, 8, 4) if on_cpu else (8, 32, 16))
        assert bench.dtype == (mx.float32 if on_cpu else mx.bfloat16)
    with workbench(BenchOptions(rows=3, batches=5, growth_steps=7), compiled=True) as bench:
        assert (bench.rows, bench.passages, bench.batches, bench.growth_steps, bench.compiled) == (3, 12, 5, 7, True)
