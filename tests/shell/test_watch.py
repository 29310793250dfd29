"""The watch over ranks: who is lost, who is told, and who is left in peace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clara.shell import watch as module
from clara.shell.watch import (
    Pulse,
    Watch,
    accept,
    connect,
    fail,
    finish,
    listen,
    look_after,
    request_stop,
    start,
    stuck,
)


class Ended(Exception):
    """What stands in for the end of the process."""


@pytest.fixture(autouse=True)
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an error where the process would end."""

    def end(message: str) -> None:
        raise Ended(message)

    monkeypatch.setattr(module, "end", end)
    monkeypatch.setattr(module, "GRACE", 0.0)


@pytest.fixture
def others() -> Iterator[list[socket.socket]]:
    """Return the far ends of the connections that rank 0 of three has to the others."""
    pairs = [socket.socketpair() for _ in range(2)]
    yield [far for _, far in pairs] + [near for near, _ in pairs]
    for near, far in pairs:
        near.close()
        far.close()


def leader(others: list[socket.socket], limit: float = 30.0) -> Watch:
    """Return the watch of rank 0, which nobody runs yet."""
    watch = start(0, 3, {}, limit)
    watch.links.update({1: others[2], 2: others[3]})
    return watch


def told(link: socket.socket) -> list[dict[str, object]]:
    """Return what was said to a far end, signs of life left out."""
    link.settimeout(0.2)
    lines = [msgspec.json.decode(line, type=dict[str, object]) for line in link.recv(4096).split(b"\n") if line]
    return [line for line in lines if "ticks" not in line]


def test_a_connection_that_ends_names_its_rank_and_ends_the_others(others: list[socket.socket]) -> None:
    others[1].close()
    with pytest.raises(Ended, match=r"^error: rank 2 of 3 was lost \(its process or its connection ended\); "):
        look_after(leader(others))
    assert told(others[0]) == [{"error": ""}]


def test_silence_names_its_rank(others: list[socket.socket]) -> None:
    watch = leader(others, 0.4)
    watch.pulses[2].seen += 60.0
    with pytest.raises(Ended, match=r"^error: rank 1 of 3 was lost \(gave no sign of life for 0.4 s\)"):
        look_after(watch)


def test_a_rank_that_others_wait_for_is_named(others: list[socket.socket]) -> None:
    watch = leader(others, 0.4)
    for pulse in watch.pulses:
        pulse.seen += 60.0
    watch.pulses[0].waiting = watch.pulses[2].waiting = True
    with pytest.raises(Ended, match=r"^error: rank 1 of 3 was lost \(came no further for 0.4 s\)"):
        look_after(watch)


@pytest.mark.parametrize(
    ("waiting", "late"),
    [((0, 0, 0), []), ((1, 0, 1), [1]), ((1, 0, 0), [1, 2]), ((1, 1, 1), [0, 1, 2])],
)
def test_those_are_stuck_for_whom_others_wait(waiting: tuple[int, ...], late: list[int]) -> None:
    assert stuck([Pulse(waiting=bool(each)) for each in waiting]) == late


def test_a_rank_that_is_done_is_no_loss(others: list[socket.socket]) -> None:
    for far in others[:2]:
        far.sendall(b'{"ended":true}\n')
        far.close()
    watch = leader(others)
    watch.pulses[0].waiting = True

    class Done(Exception):
        pass

    def beat(*_: object) -> None:
        if all(pulse.ended for pulse in watch.pulses[1:]):
            raise Done

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Done):
        patched.setattr(module, "stuck", beat)
        look_after(watch._replace(limit=0.2))


@pytest.mark.parametrize(
    ("message", "said"), [("no such file", "^error: rank 1: no such file$"), ("", "^error: rank 1 stopped$")]
)
def test_an_error_is_said_by_rank_0_and_ends_all(others: list[socket.socket], message: str, said: str) -> None:
    others[0].sendall(msgspec.json.encode({"error": message}) + b"\n")
    with pytest.raises(Ended, match=said):
        look_after(leader(others))
    assert told(others[1]) == [{"error": ""}]


def test_an_error_of_rank_0_ends_another_without_a_word() -> None:
    near, far = socket.socketpair()
    with near, far:
        fail(start(0, 2, {}, 30.0)._replace(links={1: far}), "")
        with pytest.raises(Ended, match=r"^$"):
            look_after(start(1, 2, {}, 30.0)._replace(links={0: near}))


def test_a_stop_of_one_reaches_all(others: list[socket.socket]) -> None:
    request_stop(start(1, 3, {}, 30.0)._replace(links={0: others[0]}))
    watch = leader(others)
    module.read(watch, 1, others[2], b"")
    assert watch.pulses[0].stopping and told(others[1]) == [{"stopping": True}]
    other = start(2, 3, {}, 30.0)
    module.take(other, 0, {"stopping": True})
    assert other.pulses[2].stopping


def test_messages_may_come_in_pieces(others: list[socket.socket]) -> None:
    watch, rest = leader(others), b""
    for piece in (b'{"ticks":3,"wait', b'ing":true}\n{"tic', b'ks":4}\n'):
        others[0].sendall(piece)
        rest = module.read(watch, 1, others[2], rest)
    assert (watch.pulses[1].ticks, watch.pulses[1].waiting, rest) == (4, True, b"")


def test_a_watch_that_is_done_ends(others: list[socket.socket]) -> None:
    watch = leader(others)
    finish(watch)
    look_after(watch)
    assert told(others[0]) == [{"ended": True}]


def test_only_who_knows_the_secret_is_let_in() -> None:
    server, port, secret = listen(["127.0.0.1"])
    links = [connect(["127.0.0.1"], port, said, rank, 2.0) for said, rank in (("guessed", 1), (secret, 2))]
    accepted = accept(server, secret, 3, 0.5)
    assert list(accepted) == [2] and all(links)
    for link in (*links, *accepted.values()):
        assert link is not None
        link.close()


def test_an_address_where_nobody_listens_is_passed_over() -> None:
    server, port, secret = listen(["127.0.0.1"])
    assert connect(["127.0.0.1"], port + 1 if port < 65535 else port - 1, secret, 1, 0.5) is None
    link = connect(["no-such-host.invalid", "127.0.0.1"], port, secret, 1, 2.0)
    (accepted,) = accept(server, secret, 2, 2.0).values()
    assert link is not None
    link.close()
    accepted.close()


def test_the_end_is_said_and_is_an_end() -> None:
    code = "from clara.shell.watch import end\ntry: end('error: over')\nfinally: print('after')"
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: over\n")
