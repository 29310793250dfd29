"""The whole way on the real base: trained on the sample, asked about a PDF of documents that it has never seen."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from pdfs import column, write_pdf

from clara.core.scoring import cover_exact_match
from clara.shell import ask, compress, prepare, train

QUESTIONS = {
    "When was Cinnabar Arcade completed?": ("1907", "1888"),
    "How much halvorine do ten kilos of bark yield?": ("45 grams", "71 grams"),
    "On which day of the week does the Kestova fault slip?": ("Thursday", "Sunday"),
    "On what day is goosewing pie served?": ("Rope Monday", "Kite Friday"),
    "How many customers did the books of Xanthe Morrowind-Pak list?": ("2,318", "5,904"),
}
"""Question → the answer in the sample's held-out documents, and what another document says in its place."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a run that has learnt to answer from memory; some ten minutes on two cores."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train.main(["--steps", "60", "--batch-size", "4", "--run", str(folder)]) == 0
    yield folder
    mx.enable_compile()


def heldout() -> list[str]:
    """Return the documents of the sample that nothing was trained on."""
    lines = (files("clara.io") / "data" / "sample_heldout.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["docs"][0] for line in lines]


def asked(run: Path, folder: Path, texts: list[str]) -> list[Any]:
    """Return the answers to `QUESTIONS` from a PDF of texts, prepared, compressed and asked."""
    folder.mkdir()
    lines = [[*textwrap.wrap(text, 85), ""] for text in texts]
    pages = [column([line for each in lines[i : i + 5] for line in each]) for i in range(0, len(lines), 5)]
    write_pdf(folder / "gazetteer.pdf", pages, title="A gazetteer")
    corpus, store, questions, answers = (str(folder / name) for name in ("c.jsonl", "s.clara", "q.jsonl", "a.jsonl"))
    Path(questions).write_text("".join(json.dumps({"question": question}) + "\n" for question in QUESTIONS))
    assert prepare.main([str(folder / "gazetteer.pdf"), "--out", corpus, "--checkpoint", str(run)]) == 0
    assert compress.main([corpus, "--checkpoint", str(run), "--store", store]) == 0
    assert ask.main(["--store", store, "--batch", questions, "--out", answers, "--max-tokens", "16"]) == 0
    return [json.loads(line) for line in Path(answers).read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_answers_name_facts_of_the_right_passage_and_change_with_it(run: Path, tmp_path: Path) -> None:
    texts = heldout()
    swapped = texts
    for fact, other in QUESTIONS.values():
        assert any(fact in text for text in texts)
        swapped = [text.replace(fact, other) for text in swapped]
    before, after = asked(run, tmp_path / "before", texts), asked(run, tmp_path / "after", swapped)
    for found, which in ((before, 0), (after, 1)):
        for (question, facts), answer in zip(QUESTIONS.items(), found, strict=True):
            assert facts[which] in " ".join(answer["sources"][0]["text"].split()), question
            assert answer["sources"][0]["title"] == "A gazetteer" and answer["sources"][0]["pages"]
    right = [cover_exact_match(a["answer"], [facts[0]]) for a, facts in zip(before, QUESTIONS.values(), strict=True)]
    assert sum(right) >= 3
    assert sum(a["answer"] != b["answer"] for a, b in zip(before, after, strict=True)) >= 4
