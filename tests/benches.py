"""A bench of lamps: questions with candidates, with one document, and with none that is known to hold the answer."""

from __future__ import annotations

from pathlib import Path

from folders import tiny_folder, tiny_session

from clara.io.evaluation.formats import Question
from clara.io.evaluation.systems import other_documents
from clara.shell.evaluation.choosing import Bench, index_words
from clara.shell.evaluation.documents import compress_documents

LAMPS = tuple(f"Lamp {i} burns {'very ' * (i % 3)}red." for i in range(9))
QUESTIONS = [
    Question("a", "How does lamp 0 burn?", ("red",), LAMPS[:3], (0,)),
    Question("b", "How does lamp 4 burn, and why?", ("very red", "very"), LAMPS[3:6], (1, 2), ("very", "red")),
    Question("c", "What burns?", ("a lamp",), LAMPS[6:8]),
    Question("d", "Who burns?", ("a lamp",), LAMPS[8:], (0,)),
]
PARAPHRASE = Question("p", "", ("Red is lamp 2.",), LAMPS[2:3], (0,), task="paraphrase")
ROOM = 8


def lamp_bench(folder: Path) -> Bench:
    """Return a bench on the tiny base with all lamps compressed."""
    session = tiny_session(tiny_folder(folder / "base"), stage="end_to_end", retrieval={"top_k": 2})
    compressed = compress_documents(session, LAMPS, folder / "memories", folder / "times", lambda line: None)
    others = other_documents(QUESTIONS, 0) | {"p": LAMPS[8:]}
    return Bench(session, LAMPS, index_words(LAMPS, QUESTIONS), others, 2, ROOM, compressed)
