"""The programs of cooperative decode launches, as far as `tensorlrf_kernels._grid` goes.

Each function is the one of its name there, line by line; a block of threads is one process, since
what its threads do between barriers of the block is in the order of those barriers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.kernels.protocol.explorer import Operation, Place, Process, Wrong


@dataclass(frozen=True)
class Protocol:
    """How the kernels' atomics are ordered, and what a test puts in their place.

    arrive, signal, poll, depart, reset   orders of the atomics, in the kernel's sequence
    signal_first   whether a block is said to be whole before its counter is reset
    resets         who makes the counters ready: the "last" program to leave, the "first", or none
    without_columns   what a program does that has nothing to expand: "wait" and leave as the
                   others do, "leave" at once, or "vanish" without being counted
    """

    arrive: str = "acq_rel"
    signal: str = "release"
    poll: str = "acquire"
    depart: str = "relaxed"
    reset: str = "relaxed"
    signal_first: bool = True
    resets: str = "last"
    without_columns: str = "wait"


@dataclass(frozen=True)
class Launch:
    """One launch.

    number    what its x is told by: a sum or a product of another launch's is wrong
    memory    whose partials and t it writes; a replay writes to those of the launch before
    slot      of its counters
    expands   programs that have columns, the first ones; all if None
    """

    number: int
    programs: int
    blocks: int
    splits: int
    memory: str = "a"
    slot: str = "a"
    expands: int | None = None

    def places(self) -> dict[Place, Any]:
        """All that it reads and writes, as it is before the first launch."""
        parts = [
            (self.memory, "part", b, s) for b in range(self.blocks) for s in range(self.splits)
        ]
        whole = [(self.memory, "t", b) for b in range(self.blocks)]
        counters = [(self.slot, "counter", k) for k in range(2 + self.blocks)]
        return dict.fromkeys([*parts, *whole], 0) | dict.fromkeys(counters, 0)


def cooperative(protocol: Protocol, launch: Launch) -> list[Callable[[], Process]]:
    """PHASE 0 of `decode`: all programs at once."""
    return [partial(_decode, protocol, launch, k) for k in range(launch.programs)]


def counted_by_programs(protocol: Protocol, launch: Launch) -> list[Callable[[], Process]]:
    """`decode` of blr_linear: no block is in parts, and counter 0 counts programs."""

    def program(k: int) -> Process:
        for block in range(k, launch.blocks, launch.programs):
            yield Operation("store", (launch.memory, "t", block), launch.number)
        yield Operation("add", (launch.slot, "counter", 0), 1, protocol.signal)
        yield from _wait(protocol, launch, launch.programs)
        yield from _expand(launch)
        yield from _leave(protocol, launch)

    return [partial(program, k) for k in range(launch.programs)]


def shrink_apart(protocol: Protocol, launch: Launch) -> list[Callable[[], Process]]:
    """PHASE 1: a program for each tile."""

    def program(tile: int) -> Process:
        yield from _bring(protocol, launch, tile, signal=False)

    return [partial(program, tile) for tile in range(launch.blocks * launch.splits)]


def expand_apart(protocol: Protocol, launch: Launch) -> list[Callable[[], Process]]:
    """PHASE 2: nobody is waited for."""
    return [partial(_expand, launch) for _ in range(launch.programs)]


def counters_left(memory: Mapping[Place, Any]) -> str:
    """What is wrong with the counters after a launch."""
    left = {p: v for p, v in memory.items() if isinstance(p, tuple) and p[1] == "counter" and v}
    return f"counters are left at {left}" if left else ""


def _decode(protocol: Protocol, launch: Launch, program: int) -> Process:
    for tile in range(program, launch.blocks * launch.splits, launch.programs):
        yield from _bring(protocol, launch, tile, signal=True)
    expands = launch.programs if launch.expands is None else launch.expands
    if program < expands or protocol.without_columns == "wait":
        yield from _wait(protocol, launch, launch.blocks)
    if program < expands:
        yield from _expand(launch)
    elif protocol.without_columns == "vanish":
        return
    yield from _leave(protocol, launch)


def _bring(protocol: Protocol, launch: Launch, tile: int, *, signal: bool) -> Process:
    block, split = tile // launch.splits, tile % launch.splits
    counter = (launch.slot, "counter", 2 + block)
    yield Operation("store", (launch.memory, "part", block, split), launch.number)
    arrived = yield Operation("add", counter, 1, protocol.arrive)
    if arrived == launch.splits - 1:
        for s in range(launch.splits):
            part = yield Operation("load", (launch.memory, "part", block, s))
            if part != launch.number:
                raise Wrong(f"launch {launch.number} adds up a part of {part}")
        yield Operation("store", (launch.memory, "t", block), launch.number)
        reset = Operation("set", counter, 0, protocol.reset)
        told = Operation("add", (launch.slot, "counter", 0), 1, protocol.signal)
        if not protocol.signal_first:
            yield reset
        if signal:
            yield told
        if protocol.signal_first:
            yield reset


def _wait(protocol: Protocol, launch: Launch, count: int) -> Process:
    yield Operation("until", (launch.slot, "counter", 0), count, protocol.poll)


def _expand(launch: Launch) -> Process:
    for block in range(launch.blocks):
        t = yield Operation("load", (launch.memory, "t", block))
        if t != launch.number:
            raise Wrong(f"launch {launch.number} expands t of {t}")


def _leave(protocol: Protocol, launch: Launch) -> Process:
    left = yield Operation("add", (launch.slot, "counter", 1), 1, protocol.depart)
    if left == {"last": launch.programs - 1, "first": 0, "none": -1}[protocol.resets]:
        yield Operation("set", (launch.slot, "counter", 0), 0, protocol.reset)
        yield Operation("set", (launch.slot, "counter", 1), 0, protocol.reset)
