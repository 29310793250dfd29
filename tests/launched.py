"""Commands as several processes on this machine, joined by MLX's ring: what `mlx.launch` sets up, without its waits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Ended(NamedTuple):
    """What a process left."""

    status: int
    out: str
    err: str


def free_ports(count: int) -> list[int]:
    """Return ports on this machine that nobody listens at."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def launch(size: int, folder: Path, *argv: str, **environment: str) -> list[subprocess.Popen[str]]:
    """Return the processes of a command such as `-m clara.shell.train`, one a rank, begun. folder: for a host file."""
    hosts = folder / f"hosts{size}.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
    known = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "MLX_HOSTFILE": str(hosts), **environment}
    return [
        subprocess.Popen(
            [sys.executable, *argv],
            env=os.environ | known | {"MLX_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 60.0) -> list[Ended]:
    """Return what processes left, by rank; all of them are killed where they do not end in time."""
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=seconds)
            found.append(Ended(process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return found
