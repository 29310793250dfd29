"""Logs that grow line by line: wherever a crash cuts one off, what was whole stays and what comes next is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from clara.io import jsonlog
from clara.io.errors import ClaraError
from clara.io.jsonlog import append_lines, encode_lines, read_lines

DOCUMENTS: list[Any] = [{"n": 1}, ["é\n\u2028", None], "red", 4.5]


@pytest.mark.parametrize("durable", [True, False])
def test_lines_come_back_in_their_order(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read_lines(path) == []
    append_lines(path, DOCUMENTS[:1], durable)
    append_lines(path, [], durable)
    append_lines(path, iter(DOCUMENTS[1:]), durable)
    assert [msgspec.json.decode(line) for line in read_lines(path)] == DOCUMENTS
    assert path.read_bytes() == encode_lines(DOCUMENTS) == b"".join(line + b"\n" for line in read_lines(path))


def test_a_line_that_was_cut_off_anywhere_is_left_out_and_gives_way_to_the_next(tmp_path: Path) -> None:
    path, first = tmp_path / "log", encode_lines(DOCUMENTS[:1])
    second = encode_lines(DOCUMENTS[1:2])
    for kept in (b"", first):
        for end in range(len(second)):
            path.write_bytes(kept + second[:end])
            assert read_lines(path) == kept.splitlines(), end
            assert path.read_bytes() == kept + second[:end], "reading changes nothing"
            append_lines(path, DOCUMENTS[2:])
            assert path.read_bytes() == kept + encode_lines(DOCUMENTS[2:]), end


def test_lines_are_flushed_to_the_disk_and_so_is_the_name_of_a_new_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Any] = []
    monkeypatch.setattr(jsonlog, "flush", lambda handle: flushed.append("file"))
    monkeypatch.setattr(jsonlog, "sync", flushed.append)
    append_lines(tmp_path / "log", [1])
    append_lines(tmp_path / "log", [2])
    append_lines(tmp_path / "log", [3], durable=False)
    assert flushed == ["file", tmp_path, "file"]


def test_a_place_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClaraError, match=r"absent/log: cannot be written \(No such file or directory\)"):
        append_lines(tmp_path / "absent" / "log", [1])
    with pytest.raises(ClaraError, match=f"{tmp_path}: cannot be read"):
        read_lines(tmp_path)
