"""All interleavings of a few processes on a memory that orders no more than it is told to.

A process is a generator that yields its operations and is sent their results. A plain load returns
any value that was written and that the process has not been ordered behind; atomics act on the
latest one. A release hands on all that its process has seen, to who acquires it, and so do atomics
on top of it. A relaxed atomic whose result nobody asks for may be delayed past all that follows in
its process, up to the next release, or the end of the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Place = Hashable
Process = Generator["Operation", Any, None]


class Wrong(Exception):
    """What a process raises that has seen what it must not see."""


@dataclass(frozen=True)
class Operation:
    """One step of a process: "store", "load", "add", "set" (an exchange whose result is not asked
    for), or "until" (a loop of looks, which ends once the value is at least so large).

    order   of the last three: "relaxed", "acquire", "release" or "acq_rel"
    """

    kind: str
    place: Place
    value: Any = 0
    order: str = "relaxed"

    @property
    def acquires(self) -> bool:
        return self.order in ("acquire", "acq_rel")

    @property
    def releases(self) -> bool:
        return self.order in ("release", "acq_rel")


View = tuple[tuple[Place, int], ...]
"""Of each place, how old a value may still be read: its number, if it is not the first."""


@dataclass(frozen=True)
class At:
    """Where a process is: the results that it has been sent, what it has seen, and what is
    delayed."""

    results: tuple[Any, ...] = ()
    view: View = ()
    delayed: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class State:
    """All processes, and of each place the values written to it, with what each hands on."""

    processes: tuple[At, ...]
    memory: tuple[tuple[Place, tuple[tuple[Any, View], ...]], ...]


def explore(
    launches: Sequence[Sequence[Callable[[], Process]]],
    memory: Mapping[Place, Any],
    after: Callable[[Mapping[Place, Any]], str],
) -> int:
    """How many states there are; each launch is a set of processes, and begins where all of the one
    before has ended. Raises Wrong with what went wrong: in a process, of the memory `after` a
    launch, or since nobody can go on.
    """
    before, states = [dict(memory)], 0
    for number, launch in enumerate(launches):
        ends: dict[frozenset[tuple[Place, Any]], Mapping[Place, Any]] = {}
        for given in before:
            count, found = _explore(launch, given)
            states += count
            for end in found:
                if problem := after(end):
                    raise Wrong(f"after launch {number}: {problem}")
                ends[frozenset(end.items())] = end
        before = [dict(end) for end in ends.values()]
    return states


def _explore(
    launch: Sequence[Callable[[], Process]], memory: Mapping[Place, Any]
) -> tuple[int, list[Mapping[Place, Any]]]:
    known: dict[tuple[int, tuple[Any, ...]], Operation | None] = {}

    def following(process: int, results: tuple[Any, ...]) -> Operation | None:
        """What a process does next, None at its end."""
        key = (process, results)
        if key not in known:
            known[key] = _replayed(launch[process], results)
        return known[key]

    written = tuple((place, ((value, ()),)) for place, value in memory.items())
    first = State(tuple(At() for _ in launch), written)
    seen, left = {first}, [first]
    ends: list[Mapping[Place, Any]] = []
    while left:
        state = left.pop()
        moved = False
        for process, at in enumerate(state.processes):
            for after in _steps(state, process, at, following(process, at.results)):
                moved = True
                if after not in seen:
                    seen.add(after)
                    left.append(after)
        if not moved:
            stuck = [k for k, at in enumerate(state.processes) if following(k, at.results)]
            if stuck:
                raise Wrong(f"processes {stuck} wait for ever")
            ends.append({place: values[-1][0] for place, values in state.memory})
    return len(seen), ends


def _replayed(start: Callable[[], Process], results: Sequence[Any]) -> Operation | None:
    process = start()
    try:
        operation = next(process)
        for result in results:
            operation = process.send(result)
    except StopIteration:
        return None
    return operation


def _steps(state: State, process: int, at: At, operation: Operation | None) -> Iterator[State]:
    """All that one process can do."""
    for k, delayed in enumerate(at.delayed):
        if all(other.place != delayed.place for other in at.delayed[:k]):
            rest = at.delayed[:k] + at.delayed[k + 1 :]
            yield _written(state, process, replace(at, delayed=rest), delayed, delayed.value)
    if operation is None:
        return
    busy = any(other.place == operation.place for other in at.delayed)
    if busy or (operation.releases and at.delayed):
        return
    values = dict(state.memory)[operation.place]
    last, handed = values[-1]
    if operation.kind == "store":
        yield _written(state, process, _sent(at, None), operation, operation.value)
    elif operation.kind == "load":
        for number in range(dict(at.view).get(operation.place, 0), len(values)):
            view = _joined(at.view, ((operation.place, number),) if number else ())
            yield _moved(state, process, replace(_sent(at, values[number][0]), view=view))
    elif operation.kind == "set" and operation.order == "relaxed":
        delayed = (*at.delayed, operation)
        yield _moved(state, process, replace(_sent(at, None), delayed=delayed))
    elif operation.kind == "until":
        if last >= operation.value:
            yield _moved(state, process, _sent(_acquired(at, operation, handed), last))
    else:
        new = last + operation.value if operation.kind == "add" else operation.value
        sent = _sent(_acquired(at, operation, handed), last)
        yield _written(state, process, sent, operation, new, handed)


def _sent(at: At, result: Any) -> At:
    return replace(at, results=(*at.results, result))


def _acquired(at: At, operation: Operation, handed: View) -> At:
    return replace(at, view=_joined(at.view, handed)) if operation.acquires else at


def _moved(state: State, process: int, at: At) -> State:
    processes = tuple(at if k == process else p for k, p in enumerate(state.processes))
    return replace(state, processes=processes)


def _written(
    state: State, process: int, at: At, operation: Operation, value: Any, handed: View = ()
) -> State:
    """A value more of the operation's place. What it hands on is what the value before it did,
    where it is an atomic's, and with a release all that its process has seen."""
    place = operation.place
    memory = dict(state.memory)
    own = ((place, len(memory[place])),)
    view = _joined(at.view, own)
    message = _joined(_joined(handed, own), view if operation.releases else ())
    memory[place] = (*memory[place], (value, message))
    moved = _moved(state, process, replace(at, view=view))
    return replace(moved, memory=tuple(memory.items()))


def _joined(a: View, b: View) -> View:
    if not b:
        return a
    found = dict(a)
    for place, number in b:
        found[place] = max(number, found.get(place, 0))
    return tuple(sorted(found.items(), key=repr))
