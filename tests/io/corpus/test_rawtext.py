"""Bytes of files: limits, and the encodings that text comes in."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.io.corpus.rawtext import Limits, clean, decode_text, json_lines, read_bytes
from clara.io.errors import ClaraError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_unicode_with_its_mark_is_read(encoding: str) -> None:
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    assert decode_text(mark + "Zoë's 灯\r\nlamp\r".encode(encoding)) == ("Zoë's 灯\nlamp\n", "")


@pytest.mark.parametrize(
    ("raw", "declared", "text", "note"),
    [
        (b"caf\xe9 \x93", "", "café “", "not UTF-8; read as cp1252"),
        (b"caf\xe9\x81", "", "café\x81", "not UTF-8; read as latin-1"),
        (b"\xb1\xe6", "iso-8859-2", "ąć", ""),
        (b"\xe9", "no-such-encoding", "é", "not UTF-8; read as cp1252"),
        ("é".encode(), "iso-8859-2", "é", ""),
        (b"\xff\xfea\0b", "", "a\ufffd", "not all of it is the utf-16-le that it begins as"),
        (b"a\0b", "", "a\0b", ""),
        (b"", "", "", ""),
    ],
)
def test_other_bytes_are_read_and_the_guess_is_told(raw: bytes, declared: str, text: str, note: str) -> None:
    assert decode_text(raw, declared) == (text, note)


@given(st.binary(max_size=60), st.sampled_from(["", "utf-7", "utf-16", "cp037", "idna", "zlib", "x y"]))
def test_any_bytes_are_text_that_can_be_encoded(raw: bytes, declared: str) -> None:
    text, _ = decode_text(raw, declared)
    assert text.encode() is not None and "\r" not in text


def test_a_file_within_its_limit_is_read_and_one_beyond_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 1000)
    assert read_bytes(path, Limits(max_megabytes=0.001)) == b"x" * 1000
    path.write_bytes(b"x" * 1001)
    with pytest.raises(ClaraError, match=r"a\.txt: larger than 0\.001 MB; raise --max-megabytes or split it"):
        read_bytes(path, Limits(max_megabytes=0.001))


@pytest.mark.parametrize(("name", "said"), [("", "not a plain file"), ("absent", "does not exist")])
def test_what_is_no_file_is_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=said):
        read_bytes(tmp_path / name, Limits())


def test_the_largest_limit_does_not_take_the_memory_it_allows(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    assert read_bytes(path, Limits(max_megabytes=1e6)) == b"x"


def test_lines_are_counted_with_blank_ones_and_come_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b"a\n \r\nb")
    assert list(json_lines(path)) == [(1, b"a\n"), (3, b"b")]
    assert list(json_lines(path, Limits(max_megabytes=1e6))) == [(1, b"a\n"), (3, b"b")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("order", ["le", "be"])
def test_lines_in_other_encodings_are_refused_at_once(encoding: str, order: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes("\ufeff{}\n{}\n".encode(f"{encoding}-{order}"))
    with pytest.raises(ClaraError, match=rf"a\.jsonl: {encoding.upper()}; save it as UTF-8$"):
        list(json_lines(path))


def test_half_surrogate_pairs_are_question_marks() -> None:
    assert clean("a\udcffé") == "a?é"
