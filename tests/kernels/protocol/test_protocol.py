"""The grid barrier in all interleavings, which an interpreter that runs programs one after another
never tries: the kernels' protocol is right, and each fault that is planted in it is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.kernels.protocol.explorer import Operation, Place, Process, Wrong, explore
from tests.kernels.protocol.programs import (
    Launch,
    Protocol,
    cooperative,
    counted_by_programs,
    counters_left,
    expand_apart,
    shrink_apart,
)

KERNEL = Protocol()
ORDERED = Protocol(depart="acq_rel", reset="acq_rel", signal_first=False)
RIGHT = {
    "as in the kernel": KERNEL,
    "all in order": ORDERED,
    "reset before the signal": replace(KERNEL, signal_first=False),
    "exit without columns": replace(KERNEL, without_columns="leave"),
}
SIZES = [(2, 1, 2), (2, 2, 1), (2, 2, 2), (3, 1, 2), (3, 2, 1)]
"""Programs, blocks of t, parts of a block."""
FAULTS = {
    "parts that are not released": (replace(KERNEL, arrive="acquire"), "adds up a part of 0"),
    "parts that are not acquired": (replace(KERNEL, arrive="release"), "adds up a part of 0"),
    "a signal without release": (replace(KERNEL, signal="relaxed"), "expands t of 0"),
    "a look without acquire": (replace(KERNEL, poll="relaxed"), "expands t of 0"),
    "a reset before all have looked": (replace(KERNEL, resets="first"), "wait for ever|are left"),
    "no reset": (replace(KERNEL, resets="none"), "counters are left"),
    "not counted": (replace(KERNEL, without_columns="vanish"), "counters are left"),
}
OF_ALL = tuple(name for name in FAULTS if "part" not in name and name != "not counted")
"""Those that a launch without parts can have, whose programs all leave."""


def replayed(protocol: Protocol, launch: Launch, launched: Any = cooperative) -> int:
    """States of two launches one after the other, on the same memory and counters."""
    launches = [launched(protocol, replace(launch, number=k)) for k in (1, 2)]
    return explore(launches, launch.places(), counters_left)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("protocol", RIGHT.values(), ids=RIGHT)
def test_every_interleaving_is_right_and_repeats(
    protocol: Protocol, sizes: tuple[int, int, int]
) -> None:
    launch = Launch(1, *sizes, expands=sizes[0] - 1)
    for launched in (cooperative, counted_by_programs):
        assert replayed(protocol, launch, launched) > 10


@pytest.mark.parametrize(("protocol", "found"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(protocol: Protocol, found: str) -> None:
    assert_found(protocol, found, cooperative)


@pytest.mark.parametrize("name", OF_ALL)
def test_faults_are_found_where_programs_are_counted(name: str) -> None:
    assert_found(*FAULTS[name], counted_by_programs)


def assert_found(protocol: Protocol, found: str, launched: Any) -> None:
    def all_sizes() -> None:
        for sizes in SIZES:
            replayed(protocol, Launch(1, *sizes, expands=sizes[0] - 1), launched)

    with pytest.raises(Wrong, match=found):
        all_sizes()


def side_by_side(protocol: Protocol, slots: Sequence[str]) -> int:
    """Two launches at the same time, and then both again."""
    pair = [Launch(k + 1, 2, 1, 2, memory=f"{k}", slot=slot) for k, slot in enumerate(slots)]
    places: dict[Place, Any] = {}
    for launch in pair:
        places |= launch.places()
    both = [process for launch in pair for process in cooperative(protocol, launch)]
    return explore([both], places, counters_left)


@pytest.mark.parametrize("protocol", [KERNEL, ORDERED], ids=["kernel", "in order"])
def test_launches_at_the_same_time_need_two_slots(protocol: Protocol) -> None:
    assert side_by_side(protocol, "ab") > 1000
    with pytest.raises(Wrong):
        side_by_side(protocol, "aa")


@pytest.mark.parametrize("protocol", [KERNEL, ORDERED], ids=["kernel", "in order"])
def test_a_refused_launch_is_made_apart_on_the_same_counters(protocol: Protocol) -> None:
    """Refused, it has run nothing; then both phases run, and the next launch is not refused."""
    first, second = Launch(1, 2, 1, 2), Launch(2, 2, 1, 2)
    refused: list[Any] = []
    launches = [refused, shrink_apart(protocol, first), expand_apart(protocol, first)]
    launches.append(cooperative(protocol, second))
    assert explore(launches, first.places(), counters_left) > 10


def test_the_explorer_knows_the_tests_of_memory_models() -> None:
    """A message behind a flag: read as it was sent where one releases and one acquires, and else
    possibly older; a delayed atomic passes what follows it, and no release."""

    def sender(order: str) -> Process:
        yield Operation("store", "message", 1)
        yield Operation("add", "flag", 1, order)

    def receiver(order: str) -> Process:
        yield Operation("until", "flag", 1, order)
        message = yield Operation("load", "message")
        if not message:
            raise Wrong("an old message")

    def run(release: str, acquire: str) -> int:
        processes = [lambda: sender(release), lambda: receiver(acquire)]
        return explore([processes], {"message": 0, "flag": 0}, lambda _: "")

    assert run("release", "acquire") > 3
    for orders in (("relaxed", "acquire"), ("release", "relaxed")):
        with pytest.raises(Wrong, match="an old message"):
            run(*orders)

    def resets(order: str) -> Process:
        yield Operation("set", "message", 1)
        yield Operation("add", "flag", 1, order)

    def looks() -> Process:
        yield Operation("until", "flag", 1, "acquire")
        found = yield Operation("add", "message", 0)
        if not found:
            raise Wrong("it was delayed")

    start = {"message": 0, "flag": 0}
    assert explore([[lambda: resets("release"), looks]], start, lambda _: "") > 3
    with pytest.raises(Wrong, match="delayed"):
        explore([[lambda: resets("relaxed"), looks]], start, lambda _: "")


def test_waiting_for_ever_is_found() -> None:
    def waits() -> Process:
        yield Operation("until", "flag", 1, "acquire")

    with pytest.raises(Wrong, match="wait for ever"):
        explore([[waits]], {"flag": 0}, lambda _: "")
