"""How the processes of a run begin and end together, where `mlx.launch` or MPI started several.

Rank 0 alone is heard. An error on any rank ends all, and is said once. Without a launcher nothing is set up.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import msgspec

from clara.io.errors import ClaraError
from clara.shell import watch as watching
from clara.shell.interrupt import interruptible
from clara.shell.ranks import ALONE, Ranks, exchanged, told
from clara.shell.watch import Watch

LIMIT = "CLARA_RANK_TIMEOUT"
"""Environment variable: seconds without a sign of life, or without anybody's progress, after which a rank is lost."""

SECONDS = 600.0
"""Of that limit, where it is not set."""

LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Environment variables that a launcher sets."""

GUARD = """
import os, sys, time
parent, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == parent and time.monotonic() < end:
    time.sleep(0.1)
if os.getppid() == parent:
    print(sys.argv[3], file=sys.stderr, flush=True)
    os.kill(parent, 9)
"""
"""What a process of its own does that ends a rank which waits in vain: MLX's `init` lets no thread of this one run."""

GIVEN = 5.0
"""Seconds that a rank which ends by an error gives the watch to say it, or to say whose end it is."""


@contextlib.contextmanager
def stoppable(ranks: Ranks, what: str) -> Iterator[Callable[[], bool]]:
    """Yield what `interruptible` yields; with several ranks, true on all of them after Ctrl-C on any.

    Then the signals count too by which a launcher, a closed terminal or a batch system ends processes.
    """
    with interruptible(what) as interrupted:
        if ranks.watch is None:
            yield interrupted
            return
        watch, before = ranks.watch, {}
        for name in (signal.SIGTERM, signal.SIGHUP):
            before[name] = signal.signal(name, lambda *_: signal.raise_signal(signal.SIGINT))

        def stopped() -> bool:
            if interrupted() and not watch.pulses[ranks.rank].stopping:
                watching.request_stop(watch)
            return watch.pulses[ranks.rank].stopping

        try:
            yield stopped
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def ranked(work: Callable[[Ranks], int]) -> int:
    """Return the exit status of a command's work, which is given the ranks that a launcher started.

    With several, rank 0 alone is heard. An error on any of them ends all, and is said once.
    """
    ranks = join()
    if ranks.watch is None:
        return work(ranks)
    heard = io.StringIO()
    try:
        with contextlib.ExitStack() as stack:
            if not ranks.leads:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
                stack.enter_context(contextlib.redirect_stderr(heard))
            print(f"ranks     {ranks.size} work as one; this is what rank 0 says", flush=True)
            status = work(ranks)
            sys.stdout.flush()
            exchanged(ranks, None)  # a launcher ends all as soon as one has ended otherwise than well
    except BaseException as error:
        failed(ranks, error, heard.getvalue())
        raise
    watching.finish(ranks.watch)
    return status


def failed(ranks: Ranks, error: BaseException, heard: str) -> None:
    """Tell the other ranks of an error that ends this one. Ends the process, but where rank 0 can say the error.

    heard: what was written to standard error before.
    """
    assert ranks.watch is not None
    if isinstance(error, RuntimeError) and not isinstance(error, ClaraError):
        time.sleep(GIVEN)  # a lost connection is another rank's end, of which the watch knows
    if ranks.leads:
        watching.fail(ranks.watch, "")
        return
    if isinstance(error, ClaraError):
        message = str(error)
    elif isinstance(error, SystemExit | KeyboardInterrupt):
        message = heard.strip()
    else:
        message = "".join(traceback.format_exception(error)).strip()
    watching.fail(ranks.watch, message)
    time.sleep(GIVEN)
    watching.end("")


def join() -> Ranks:
    """Return the ranks that a launcher started; `ALONE` without one.

    Raises ClaraError where they do not come together; SystemExit where rank 0 says what is wrong for all.
    """
    own = next((os.environ[name] for name in LAUNCHED if name in os.environ), None)
    if own is None or launched_alone():
        return ALONE
    try:
        limit = time_limit()
    except ClaraError:
        if own == "0":
            raise
        time.sleep(GIVEN)  # a launcher ends all as soon as one has ended, and rank 0 is to say it before
        raise SystemExit(1) from None
    message = f"error: not all ranks had started after {limit:g} s ({LIMIT})"
    guard = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", GUARD, str(os.getpid()), str(limit), message],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        group = mx.distributed.init()
        ranks = Ranks(group.rank(), group.size(), group)
        return ranks if ranks.size == 1 else ranks._replace(watch=watched(ranks, limit))
    except RuntimeError as error:
        raise ClaraError(f"the ranks do not come together ({error})") from error
    finally:
        guard.kill()
        guard.wait()


def launched_alone() -> bool:
    """Return whether `mlx.launch` started one process, for which it writes an empty host file."""
    file = os.environ.get("MLX_HOSTFILE", "")
    return bool(file) and not Path(file).read_text().strip()


def time_limit() -> float:
    """Return the seconds after which a rank is lost. Raises ClaraError where the variable is no positive number."""
    text = os.environ.get(LIMIT, str(SECONDS))
    try:
        if (found := float(text)) > 0:
            return found
    except ValueError:
        pass
    raise ClaraError(f"{LIMIT}={text}: wanted a number of seconds above 0")


def watched(ranks: Ranks, limit: float) -> Watch:
    """Return the watch over the ranks, with connections to those that can reach rank 0."""
    server = watching.listen(addresses()) if ranks.leads else None
    hosts, port, secret = told(ranks, (addresses(), *server[1:]) if server else None)
    seconds = min(limit, 10.0)
    if server:
        links = watching.accept(server[0], secret, ranks.size, seconds * 2)
    else:
        link = watching.connect(hosts, port, secret, ranks.rank, seconds)
        links = {0: link} if link else {}
    reached = exchanged(ranks, bool(links))
    if lacking := [rank for rank in range(1, ranks.size) if not reached[rank]]:
        print(f"note      ranks {lacking} cannot connect to rank 0 at {', '.join(hosts)}: they are not watched")
    return watching.start(ranks.rank, ranks.size, links, limit)


def addresses() -> list[str]:
    """Return the names by which other ranks may find this host."""
    environment, found = os.environ, list[str]()
    if file := environment.get("MLX_HOSTFILE"):
        own = msgspec.json.decode(Path(file).read_bytes())[int(environment["MLX_RANK"])]
        found += [address.rpartition(":")[0] for address in own]
    for name in ("NCCL_HOST_IP", "MLX_JACCL_COORDINATOR"):
        if name in environment:
            found.append(environment[name].partition(":")[0])
    return list(dict.fromkeys([*found, socket.gethostname()]))
