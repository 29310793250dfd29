"""Files to records: what is kept, dropped and counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from folders import tiny_tokenizer

from clara.io.corpus.passages import PassageRecord
from clara.io.corpus.rawtext import Limits
from clara.io.tokens import Tokenizer
from clara.shell.preparing.corpus import Tally, corpus_records


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer that has a token for each byte."""
    return tiny_tokenizer(tmp_path_factory.mktemp("base"))


def draw(files: list[Path], tokenizer: Tokenizer) -> tuple[list[PassageRecord], Tally, list[str | None]]:
    """Return the records of files, what was counted, and what was told."""
    tally, told = Tally(Counter(), Counter()), list[str | None]()
    return list(corpus_records(files, tokenizer, 20, Limits(), tally, told.append)), tally, told


def test_good_and_bad_files_are_gone_through_to_the_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.txt", "bad.pdf", "b.md", "empty.txt", "c.jsonl")]
    contents = ["One lamp.\n\nTwo.", "%PDF", "# One door", "", '{"text": "Three."}\n{}\n']
    for path, content in zip(files, contents, strict=True):
        path.write_text(content)
    records, tally, told = draw(files, tokenizer)
    assert [(record.docs, Path(record.source).name) for record in records] == [
        (["One lamp.\n\nTwo."], "a.txt"),
        (["# One door"], "b.md"),
        (["Three."], "c.jsonl"),
    ]
    assert dict(tally.counts) == dict(
        files=3, skipped=2, documents=3, pages=0, characters=31, passages=3, tokens=31, left_out=1
    )
    assert [str(note).split(":")[0] for note in told if note] == [str(files[i]) for i in (1, 3, 4)]
    assert told.count(None) == 5


def test_a_passage_that_was_there_is_dropped_but_no_record_with_questions(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One lamp.")
    (tmp_path / "b.md").write_text("One lamp.\n")
    asked = {"docs": ["One lamp."], "question": "What?", "answer": "a lamp"}
    rows = [{"docs": ["One lamp."], "data_type": "autoencode"}, asked, {"docs": ["Two."], "data_type": "autoencode"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.txt").write_text("Two.")
    records, tally, _ = draw(sorted(tmp_path.iterdir()), tokenizer)
    assert [(record.docs[0], record.data_type) for record in records] == [
        ("One lamp.", "autoencode"),
        ("One lamp.", "qa"),
        ("Two.", "autoencode"),
    ]
    assert (tally.counts["duplicates"], tally.counts["records"], tally.counts["passages"]) == (3, 3, 1)
