"""A tiny memory store: ten passages about lamps, compressed by a run of the tiny base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from folders import tiny_folder
from runs import tiny_run

from clara.io.corpus.passages import Passage, content_hash, encode_record, passage_record
from clara.shell import compress

COLOURS = ("red", "blue", "green", "amber", "white")


def lamp(number: int) -> Passage:
    """Return a passage that no other shares its number with, on two pages of one of two files."""
    text = f"Lamp number{number} burns {COLOURS[number % 5]}."
    return Passage(
        text=text,
        title=f"Lamps {number % 2}",
        source=f"lamps{number % 2}.pdf",
        pages=(number + 1, number + 2) if number % 3 else (number + 1, number + 1),
        tokens=len(text),
        hash=content_hash(text),
    )


def tiny_store(folder: Path, count: int = 10, **sections: Any) -> Path:
    """Return a store in a folder, beside the base and the run of its compressor; sections are the run's options."""
    run = tiny_run(tiny_folder(folder / "base"), folder / "run", **sections)
    corpus = folder / "corpus.jsonl"
    corpus.write_bytes(b"".join(encode_record(passage_record(lamp(i))) for i in range(count)))
    assert compress.main([str(corpus), "--checkpoint", str(run), "--store", str(folder / "store")]) == 0
    return folder / "store"
