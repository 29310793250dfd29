"""Processes that work as one, started by `mlx.launch` over MLX's own engine: who does what, and what all know.

Each process is a rank, counted from 0. Rank 0 alone prints, logs and saves. Without a launcher there is one rank, and
nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import msgspec
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from clara.core.packing import ADAPTERS
from clara.io.errors import ClaraError
from clara.shell.watch import Watch, tick

MESSAGE_BYTES = 2**25
"""Arrays are put together to messages of about this size; a larger one is a message by itself."""

Item = TypeVar("Item")
Tree = TypeVar("Tree")


class Ranks(NamedTuple):
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    """Which one this is."""
    size: int = 1
    group: Any = None
    """MLX's, where there are several."""
    watch: Watch | None = None
    cut: bool = False
    """Whether they have one base together, cut over them, and so all work on the same; otherwise each has its own."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """Which share of the work is this process's: (i, of how many)."""
        return (0, 1) if self.cut else (self.rank, self.size)


ALONE = Ranks()


def share(ranks: Ranks, tree: Tree) -> Tree:
    """Return the leaf-by-leaf sum of a pytree of arrays over all ranks, in few large messages.

    Lazy, and fit for `mx.compile`. All ranks must call it with the same shapes, in the same order.
    """
    if ranks.size == 1:
        return tree
    leaves: list[tuple[str, mx.array]] = tree_flatten(tree)
    done: dict[int, mx.array] = {}
    before: list[mx.array] = []
    for members in messages([leaf for _, leaf in leaves]):
        arrays = [leaves[i][1] for i in members]
        flat = mx.concatenate([each.reshape(-1) for each in arrays]) if len(arrays) > 1 else arrays[0]
        # One after the other: the order of messages must be the same on all ranks.
        flat = mx.depends(flat, before) if before else flat
        summed = sum_of(ranks, flat)
        ends = np.cumsum([each.size for each in arrays])[:-1].tolist()
        parts = mx.split(summed, ends) if ends else [summed]
        before = [summed]
        done |= {i: part.reshape(each.shape) for i, part, each in zip(members, parts, arrays, strict=True)}
    numbers = iter(range(len(leaves)))
    found: Tree = tree_map(lambda _: done[next(numbers)], tree)
    return found


def combined(ranks: Ranks, tree: Tree) -> Tree:
    """Return a pytree of what a step computes (counts, losses, gradients) as it is for all ranks together.

    With a base each it is the sum, as `share` has it. With one that is cut over them all have the same of everything
    but the gradients of adapters, which are sums.
    """
    if not ranks.cut:
        return share(ranks, tree)
    leaves: list[tuple[str, mx.array]] = tree_flatten(tree)
    summed = share(ranks, {name: leaf for name, leaf in leaves if name.rpartition(".")[2] in ADAPTERS})
    found: Tree = tree_map_with_path(lambda name, leaf: summed.get(name, leaf), tree)
    return found


def sum_of(ranks: Ranks, array: mx.array) -> mx.array:
    """Return the sum of an array over all ranks, in its shape.

    It travels with at least an element for each rank: MLX's ring does not take fewer from some hundred ranks on.
    """
    if array.size >= ranks.size:
        return mx.distributed.all_sum(array, group=ranks.group)
    padded = mx.pad(array.reshape(-1), (0, ranks.size - array.size))
    return mx.distributed.all_sum(padded, group=ranks.group)[: array.size].reshape(array.shape)


def messages(arrays: Sequence[mx.array]) -> list[list[int]]:
    """Return arrays, by their places, as they travel together: of one dtype, up to `MESSAGE_BYTES`."""
    found: list[list[int]] = []
    filling: dict[mx.Dtype, int] = {}
    for i, array in enumerate(arrays):
        if array.nbytes >= MESSAGE_BYTES:
            found.append([i])
        elif array.dtype in filling:
            place = filling[array.dtype]
            found[place].append(i)
            if sum(arrays[j].nbytes for j in found[place]) >= MESSAGE_BYTES:
                del filling[array.dtype]
        else:
            filling[array.dtype] = len(found)
            found.append([i])
    return found


def exchanged(ranks: Ranks, value: Any) -> list[Any]:
    """Return the plain values that all ranks give, by rank. Whoever calls waits here for all others."""
    if ranks.size == 1:
        return [value]
    content = np.frombuffer(msgspec.msgpack.encode(value), np.uint8)
    with waiting(ranks):
        sizes = gather(ranks, np.array([len(content)], np.int32))[:, 0]
        rows = gather(ranks, np.pad(content, (0, int(sizes.max()) - len(content))))
    return [msgspec.msgpack.decode(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def told(ranks: Ranks, value: Any) -> Any:
    """Return the plain value that rank 0 gives; the others' does not count. Whoever calls waits here for all others."""
    if ranks.size == 1:
        return value
    content = np.frombuffer(msgspec.msgpack.encode(value), np.uint8) if ranks.leads else np.zeros(1, np.uint8)
    with waiting(ranks):
        size = int(gather(ranks, np.array([len(content)], np.int32))[0, 0])
        sent = mx.array(content) if ranks.leads else mx.zeros((size,), mx.uint8)
        received = as_numpy(sum_of(ranks, sent))
    return msgspec.msgpack.decode(received.tobytes())


def gather(ranks: Ranks, row: np.ndarray) -> np.ndarray:
    """Return the rows of all ranks, of one length, by rank."""
    found = mx.distributed.all_gather(mx.array(row), group=ranks.group)
    return as_numpy(found).reshape(ranks.size, -1)


def as_numpy(array: mx.array) -> np.ndarray:
    """Return an array's numbers; while they are waited for, other threads run, such as the watch's."""
    mx.eval(array)
    return np.array(array)


def totals(ranks: Ranks, values: Sequence[int]) -> list[int]:
    """Return the sums of whole numbers below 2^31 over all ranks."""
    if ranks.size == 1:
        return list(values)
    with waiting(ranks):
        return [int(total) for total in as_numpy(sum_of(ranks, mx.array(list(values), mx.int32)))]


def first(ranks: Ranks, tree: Tree) -> Tree:
    """Return the pytree of arrays that rank 0 has, on all ranks."""
    if ranks.size == 1:
        return tree
    found = share(ranks, tree if ranks.leads else tree_map(mx.zeros_like, tree))
    mx.eval(found)  # now, as messages must go out in the same order on all ranks
    return found


def dealt(ranks: Ranks, items: Sequence[Item]) -> list[Item]:
    """Return this rank's share of what is to be done, the same on all ranks."""
    index, count = ranks.part
    return list(items[index::count])


def progressing(ranks: Ranks, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; each is noted as progress."""
    for item in items:
        if ranks.watch:
            tick(ranks.watch)
        yield item


def awaited(ranks: Ranks, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, each of which all ranks make together: until it is there, this one waits for the others."""
    iterator = iter(items)
    while True:
        with waiting(ranks):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


@contextmanager
def waiting(ranks: Ranks) -> Iterator[None]:
    """Note that this rank waits for others in the block, and afterwards that it has come further."""
    if ranks.watch is None:
        yield
        return
    pulse = ranks.watch.pulses[ranks.rank]
    pulse.waiting = True
    try:
        yield
    finally:
        pulse.waiting = False
        tick(ranks.watch)


def require_same(ranks: Ranks, values: Mapping[str, Any], advice: str) -> None:
    """Raise ClaraError, naming the rank and what differs, where a rank has another value than rank 0."""
    all_values = exchanged(ranks, dict(values))
    for rank, own in enumerate(all_values):
        for name, value in own.items():
            if value != all_values[0][name]:
                raise ClaraError(f"{name}: {value!r} on rank {rank}, but {all_values[0][name]!r} on rank 0; {advice}")


def require_even(ranks: Ranks, batch_size: int, records: int, data: str) -> None:
    """Raise ClaraError where the batches do not divide by the ranks. records: of the training data."""
    size, few = min(batch_size, records), records < batch_size
    if size % ranks.part[1]:
        raise ClaraError(
            (f"{data}: has {records} records, which is all of a batch" if few else f"--batch-size {batch_size}")
            + f"; {ranks.size} ranks want a --batch-size that divides by {ranks.size}"
            + (f", at most {records}" if few else "")
        )
