"""Files to documents: each kind, folders of all sorts, and what is said of what cannot be read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from pdfs import column, write_pdf

from clara.io.corpus.deadline import within
from clara.io.corpus.passages import Document, PassageRecord
from clara.io.corpus.rawtext import Limits
from clara.io.corpus.sources import Note, find_files, read_source
from clara.io.errors import ClaraError


def one(path: Path, **limits: Any) -> Document:
    """Return the one document of a file that nothing is said about."""
    (found,) = read_source(path, Limits(**limits))
    assert isinstance(found, Document)
    return found


def write(path: Path, content: str | bytes) -> Path:
    """Return a file of this content, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "text", "title"),
    [
        ("a.md", "# Lamps\r\n\r\nThey *burn*.", "# Lamps\n\nThey *burn*.", "Lamps"),
        ("a.MARKDOWN", "They burn.", "They burn.", "a"),
        ("lamps.txt", "They burn.\n", "They burn.\n", "lamps"),
        ("a.txt", "\ufeffOn Lamps\n\nThey burn.", "On Lamps\n\nThey burn.", "On Lamps"),
        ("a.html", "<title>Lamps</title><p>They<p>burn", "They\n\nburn", "Lamps"),
        ("a.htm", b"<meta charset=iso-8859-2><p>\xb1", "ą", "a"),
        ("a.txt", "a\0b\u2028c", "a\0b\u2028c", "a"),
    ],
)
def test_a_file_is_a_document(name: str, content: str | bytes, text: str, title: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    assert one(path) == Document(text, title, str(path), ())


def test_a_pdf_is_a_document_with_pages(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [column(["Lamps burn."]), column(["Doors do not."])], title="Lamps")
    assert one(path) == Document("Lamps burn.\n\nDoors do not.", "Lamps", str(path), (0, 13))


def test_a_guess_at_the_encoding_is_told_but_nothing_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"caf\xe9")
    note, document = read_source(path, Limits())
    assert note == Note(f"{path}: not UTF-8; read as cp1252", lost=False)
    assert isinstance(document, Document) and document.text == "café"


def test_lines_of_json_are_documents_and_records_and_bad_ones_are_named(tmp_path: Path) -> None:
    record = {"docs": ["A lamp."], "data_type": "autoencode", "title": "T", "id": "r"}
    rows = [
        {"text": "One.", "title": "Lamps"},
        record,
        {"text": "Two.", "source": "x.pdf", "more": 1},
        "",
        {"text": 3},
        {},
    ]
    rows += [{"docs": []}, {"text": " "}]
    path = write(
        tmp_path / "a.jsonl", "\n".join(json.dumps(row) if row != "" else "" for row in rows) + '\n{"text": "x'
    )
    found = list(read_source(path, Limits()))
    assert found[0] == Document("One.", "Lamps", str(path)), "all lines of a file have it as their source"
    assert found[1] == PassageRecord(docs=["A lamp."], data_type="autoencode", title="T", id="r")
    assert found[2] == Document("Two.", "", "x.pdf")
    notes = [note.text for note in found[3:] if isinstance(note, Note) and note.lost]
    assert [note.split(": ")[0] for note in notes] == [f"{path}:{number}" for number in (5, 6, 7, 8, 9)]
    assert "wanted an object with text or docs" in notes[0] and "docs is empty" in notes[2] and "no text" in notes[3]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a\xff"}', "invalid UTF-8 at byte 11 of the line"),
        (b'{"docs": ["a\xff"]}', "invalid UTF-8 at byte 12 of the line"),
        (b'{"more": ' + b"[" * 100_000, "nested too deep"),
        (b'{"docs": ' + b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_line_that_no_reader_can_take_is_left_out(line: bytes, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", line + b'\n{"text": "A lamp."}\n')
    note, document = read_source(path, Limits())
    assert isinstance(note, Note) and note.lost and note.text.startswith(f"{path}:1: ") and said in note.text
    assert document == Document("A lamp.", "", str(path))


@pytest.mark.parametrize("name", ["b\udcff.txt", "b\udcff.jsonl", "b\udcff.pdf"])
def test_a_name_that_is_not_utf8_is_a_source_that_can_be_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    try:
        if name.endswith(".pdf"):
            write_pdf(path, [column(["Lamps burn."])])
        else:
            write(path, json.dumps({"text": "Lamps burn."}))
    except OSError:
        pytest.skip("this file system has no such names")
    document = one(path)
    assert document.source == str(path).replace("\udcff", "?") and document.title.encode() is not None


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for ending in (".jsonl", ".txt", ".pdf"):
        path = tmp_path / f"a{ending}"
        os.mkfifo(path)
        with pytest.raises(ClaraError, match="not a plain file"), within(5):
            list(read_source(path, Limits()))


@pytest.mark.parametrize(
    ("name", "content", "limits", "said"),
    [
        ("a.txt", " \n", {}, "no text in it"),
        ("a.html", "<script>x</script>", {}, "no text in it"),
        ("a.md", "lamp " * 99, {"max_characters": 100}, "more than 100 characters; raise --max-characters"),
        ("a.txt", "lamp " * 999, {"max_megabytes": 0.001}, "larger than 0.001 MB"),
        ("a.jsonl", '{"text": "' + "x" * 2000 + '"}', {"max_megabytes": 0.001}, "a line of more than 0.001 MB"),
        ("a.jsonl", '{"text": "x"}\n' * 3, {"max_megabytes": 1e-6}, ":1: a line of more than"),
        ("a.jsonl", '\ufeff{"text": "x"}\n{"text": "y"}'.encode("utf-16-le"), {}, "UTF-16; save it as UTF-8"),
        ("a.html", "<!--" * 500_000, {"page_seconds": 0.2}, "takes more than 0.2 s; raise --page-seconds"),
        ("a.pdf", "lamp", {}, "not a PDF or damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(
    name: str, content: str | bytes, limits: dict[str, float], said: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    if "seconds" in said and sys.version_info >= (3, 13):
        pytest.skip("this Python's parser takes linear time")
    with pytest.raises(ClaraError) as caught:
        list(read_source(path, Limits(**limits)))
    assert str(caught.value).startswith(str(path)) and said in str(caught.value)


def test_folders_are_searched_in_order_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.pdf", "a.txt", ".hidden.txt", ".git/x.txt", "c.xyz", "README", "d.HTML"):
        write(tmp_path / name, "x")
    found = find_files([str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in found.files] == [
        "a/b/c.pdf",
        "a/z.md",
        "a.txt",
        "b.txt",
        "d.HTML",
    ]
    assert (found.notes, found.unknown) == ([], 2)


def test_files_that_are_named_are_each_read_once_and_unknown_ones_noted(tmp_path: Path) -> None:
    text, other, hidden = (write(tmp_path / name, "x") for name in ("b.txt", "a.xyz", ".h.txt"))
    assert find_files(["~nobody-of-this-name/a.txt"]).files == [Path("~nobody-of-this-name/a.txt")]
    found = find_files([str(text), str(other), str(tmp_path / "absent.pdf"), str(hidden), str(tmp_path)])
    assert found.files == [text, tmp_path / "absent.pdf", hidden]
    assert [note.text.split(";")[0] for note in found.notes] == [f"{other}: unknown kind of file"]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "x.txt", "x")
    os.symlink(tmp_path, tmp_path / "a" / "b" / "up")
    os.symlink("itself", tmp_path / "itself")
    os.symlink("absent", tmp_path / "broken.txt")
    found = find_files([str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in found.files] == ["a/b/x.txt", "broken.txt"]


def test_a_folder_deeper_than_any_stack_is_searched(tmp_path: Path) -> None:
    where = os.open(tmp_path, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=where)
        inner = os.open("d", os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = inner
    os.close(os.open("x.txt", os.O_CREAT | os.O_WRONLY, dir_fd=where))
    os.close(where)
    assert [path.name for path in find_files([str(tmp_path)]).files] == ["x.txt"]
