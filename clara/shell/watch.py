"""Ranks look after each other: one that dies, hangs or ends by an error ends the run on all, and is named.

MLX's engines do not say which process was lost, and some wait for it forever. So every rank keeps a connection to rank
0 and tells it from time to time that it is alive and how far it is: a thread does that beside the work.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

GRACE = 1.5
"""Seconds that rank 0 waits with another rank's error: where it has the same, it says it itself."""

ADVICE = "what was saved before is intact, and the same command, --resume for training, goes on from there"


class Pulse(msgspec.Struct):
    """How far a rank is; changes as it works."""

    ticks: int = 0
    waiting: bool = False
    """For the other ranks."""
    stopping: bool = False
    """Whether all ranks are to stop where they can."""
    ended: bool = False
    seen: float = 0.0
    """When it was last heard of, as `time.monotonic` has it."""


class Watch(NamedTuple):
    """What watches over the ranks, from one of them."""

    rank: int
    size: int
    limit: float
    """Seconds without a sign of life, or without anybody's progress, after which ranks are lost."""
    links: dict[int, socket.socket]
    """Connections by rank: of rank 0 to all others, of another to rank 0."""
    pulses: list[Pulse]
    """Of each rank; a rank other than 0 knows its own and that of 0."""
    lock: threading.Lock


def listen(addresses: Sequence[str]) -> tuple[socket.socket, int, str]:
    """Return (socket, port, secret) to which other ranks can connect; on this host alone where all ranks are here."""
    server = socket.create_server((addresses[0] if addresses[0].startswith("127.") else "", 0), backlog=512)
    return server, server.getsockname()[1], secrets.token_hex(16)


def accept(server: socket.socket, secret: str, size: int, seconds: float) -> dict[int, socket.socket]:
    """Return the connections of the other ranks, of those that came in time and know the secret."""
    links: dict[int, socket.socket] = {}
    end = time.monotonic() + seconds
    with suppress(TimeoutError):
        while len(links) < size - 1:
            server.settimeout(max(end - time.monotonic(), 0.001))
            link, _ = server.accept()
            link.settimeout(5.0)
            try:
                told, rank = link.recv(64).decode().split()
                if not secrets.compare_digest(told, secret):
                    raise ValueError
                links[int(rank)] = link
            except (OSError, ValueError):  # nobody of ours
                link.close()
    server.close()
    return links


def connect(addresses: Sequence[str], port: int, secret: str, rank: int, seconds: float) -> socket.socket | None:
    """Return a connection to rank 0 at the first address where it answers; None where it does at none."""
    for address in addresses:
        with suppress(OSError):
            link = socket.create_connection((address, port), timeout=seconds)
            link.sendall(f"{secret} {rank}\n".encode())
            return link
    return None


def start(rank: int, size: int, links: dict[int, socket.socket], limit: float) -> Watch:
    """Return a watch over the ranks that there are connections to, begun; with none, one that does nothing."""
    now = time.monotonic()
    watch = Watch(rank, size, limit, links, [Pulse(seen=now) for _ in range(size)], threading.Lock())
    for link in links.values():
        link.settimeout(limit)
    if links:
        threading.Thread(target=look_after, args=(watch,), daemon=True).start()
    return watch


def tick(watch: Watch) -> None:
    """Note that this rank has come further."""
    watch.pulses[watch.rank].ticks += 1


def request_stop(watch: Watch) -> None:
    """Ask all ranks to stop where they can."""
    watch.pulses[watch.rank].stopping = True
    say(watch, {"stopping": True})


def finish(watch: Watch) -> None:
    """Say that this rank is done: its end is no loss."""
    watch.pulses[watch.rank].ended = True
    say(watch, {"ended": True})


def fail(watch: Watch, message: str) -> None:
    """Tell rank 0, or all others from there, that this rank ends by an error, and why."""
    say(watch, {"error": message})


def say(watch: Watch, message: dict[str, Any], but: int = -1) -> None:
    """Send a message to every rank that there is a connection to, but one."""
    line = msgspec.json.encode(message) + b"\n"
    for rank, link in list(watch.links.items()):
        if rank != but:
            with suppress(OSError), watch.lock:
                link.sendall(line)


def look_after(watch: Watch) -> None:
    """Send signs of life and read the others', until this rank or rank 0 is done; end the process for a lost rank."""
    period, heard = min(watch.limit / 4, 2.0), dict.fromkeys(watch.links, b"")
    beaten, moved, ticks = 0.0, time.monotonic(), -1
    while not watch.pulses[watch.rank].ended and not watch.pulses[0].ended:
        if time.monotonic() - beaten > period:
            own, beaten = watch.pulses[watch.rank], time.monotonic()
            say(watch, {"ticks": own.ticks, "waiting": own.waiting})
        open_links = {link: rank for rank, link in watch.links.items() if not watch.pulses[rank].ended}
        for link in select.select(list(open_links), [], [], period)[0]:
            heard[open_links[link]] = read(watch, open_links[link], link, heard[open_links[link]])
        now, reached = time.monotonic(), sum(pulse.ticks for pulse in watch.pulses)
        moved, ticks = (now, reached) if reached != ticks else (moved, ticks)
        for rank in open_links.values():
            if now - watch.pulses[rank].seen > watch.limit:
                lose(watch, [rank], f"gave no sign of life for {watch.limit:g} s")
        if watch.rank == 0 and now - moved > watch.limit and (late := stuck(watch.pulses)):
            lose(watch, late, f"came no further for {watch.limit:g} s")


def read(watch: Watch, rank: int, link: socket.socket, before: bytes) -> bytes:
    """Take in what a rank says and return the rest, an unfinished message. before: that of the last time."""
    try:
        received = link.recv(65536)
    except OSError:
        received = b""
    if not received:
        if not watch.pulses[rank].ended:
            lose(watch, [rank], "its process or its connection ended")
        return b""
    *lines, rest = (before + received).split(b"\n")
    for line in lines:
        take(watch, rank, msgspec.json.decode(line))
    return rest


def take(watch: Watch, rank: int, message: dict[str, Any]) -> None:
    """Take in one message of a rank."""
    pulse = watch.pulses[rank]
    pulse.seen = time.monotonic()
    pulse.ticks, pulse.waiting = message.get("ticks", pulse.ticks), message.get("waiting", pulse.waiting)
    pulse.ended = pulse.ended or "ended" in message
    if "stopping" in message:
        watch.pulses[watch.rank].stopping = True
        say(watch, message, rank)
    if "error" in message and watch.rank:
        end("")
    elif "error" in message:
        time.sleep(GRACE)
        say(watch, {"error": ""}, rank)
        end(f"error: rank {rank}: {message['error']}" if message["error"] else f"error: rank {rank} stopped")


def stuck(pulses: Sequence[Pulse]) -> list[int]:
    """Return the ranks for which others wait: none where nobody waits, all where all wait for each other."""
    going = {rank: pulse.waiting for rank, pulse in enumerate(pulses) if not pulse.ended}
    busy = [rank for rank, waits in going.items() if not waits]
    return (busy or list(going)) if len(busy) < len(going) else []


def lose(watch: Watch, ranks: Sequence[int], why: str) -> None:
    """End this process, and from rank 0 all others, with a message that names the lost ranks."""
    names = ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
    verb = "was" if len(ranks) == 1 else "were"
    if watch.rank == 0:
        say(watch, {"error": ""})
    end(f"error: {names} of {watch.size} {verb} lost ({why}); {ADVICE}")


def end(message: str) -> None:
    """End the process at once, with a message; what waits inside of MLX would otherwise keep it."""
    if message:
        print(message, file=sys.__stderr__, flush=True)
    if sys.__stdout__:
        with suppress(OSError, ValueError):
            sys.__stdout__.flush()
    os._exit(1)
