"""The loops of machine code, found by the branches that go back, and what every pass goes through.

Loops are natural ones: a branch back to a block that all ways to the branch lead through. Code that
was merely laid out behind the loop it belongs to is none of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.static.sass import Instruction

Graph = Mapping[int, tuple[int, ...]]  # block, by its first instruction -> those that follow


@dataclass(frozen=True)
class Loop:
    """One loop.

    latch    the instruction that branches back
    blocks   first instructions of its blocks, those of inner loops too
    always   instructions that every pass does, and `at_times` those that a pass may leave out;
             both without the instructions of inner loops
    inner    loops right inside it
    """

    latch: int
    blocks: frozenset[int]
    always: tuple[int, ...]
    at_times: tuple[int, ...]
    inner: tuple[Loop, ...] = ()


@dataclass(frozen=True)
class Flow:
    """A kernel: its outermost loops, and the instructions beside them."""

    loops: tuple[Loop, ...]
    always: tuple[int, ...]
    at_times: tuple[int, ...]

    @property
    def reached(self) -> list[int]:
        """All instructions that can be reached, in their order."""
        found = [*self.always, *self.at_times]
        for loop in every(self.loops):
            found += [*loop.always, *loop.at_times]
        return sorted(found)


def every(loops: Iterable[Loop]) -> Iterable[Loop]:
    """These loops and all within them, outer ones first."""
    for loop in loops:
        yield loop
        yield from every(loop.inner)


def flow_of(code: Sequence[Instruction]) -> Flow:
    """The loops of a kernel."""
    graph, lengths = _blocks(code)
    live = _reached(graph, 0)
    graph = {block: graph[block] for block in live}
    before = _dominators(graph)
    bodies: dict[int, set[int]] = {}
    latches: dict[int, set[int]] = {}
    for block, following in graph.items():
        for header in following:
            if header in before[block]:
                bodies.setdefault(header, set()).update(_body(graph, header, block))
                latches.setdefault(header, set()).add(block)
    # A branch to itself behind the end, and what waits for others, are loops as well.
    order = sorted(bodies, key=lambda header: (len(bodies[header]), header))

    def instructions(blocks: Iterable[int]) -> tuple[int, ...]:
        return tuple(k for b in sorted(blocks) for k in range(b, b + lengths[b]))

    def made(header: int, inside: list[int]) -> Loop:
        body = bodies[header]
        own = _outermost([h for h in inside if h != header and h in body], bodies)
        inner = tuple(made(h, [k for k in inside if k in bodies[h]]) for h in own)
        alone = body - {b for h in own for b in bodies[h]}
        within = {b: tuple(n for n in graph[b] if n in body and n != header) for b in body}
        needed = {b for b in alone if _needed(within, header, latches[header], b)}
        latch = max(latches[header])
        return Loop(
            latch + lengths[latch] - 1,
            frozenset(body),
            instructions(needed),
            instructions(alone - needed),
            inner,
        )

    top = _outermost(order, bodies)
    loops = tuple(made(h, [k for k in order if k in bodies[h]]) for h in sorted(top))
    alone = set(graph) - {b for h in top for b in bodies[h]}
    ends = {b for b in graph if not graph[b]}
    needed = {b for b in alone if _needed(graph, 0, ends, b)}
    return Flow(loops, instructions(needed), instructions(alone - needed))


def _outermost(headers: Sequence[int], bodies: Mapping[int, set[int]]) -> list[int]:
    return sorted(
        h for h in headers if not any(h != other and h in bodies[other] for other in headers)
    )


def _blocks(code: Sequence[Instruction]) -> tuple[dict[int, tuple[int, ...]], dict[int, int]]:
    """What follows each block, and how many instructions it has."""
    starts = {0} | {i.target for i in code if i.target >= 0 and i.root != "BSSY"}
    starts |= {k + 1 for k, i in enumerate(code) if i.root in _LEAVE}
    ordered = sorted(s for s in starts if s < len(code))
    lengths = {a: b - a for a, b in zip(ordered, [*ordered[1:], len(code)], strict=True)}
    graph: dict[int, tuple[int, ...]] = {}
    for start, length in lengths.items():
        last = code[start + length - 1]
        after = (start + length,) if start + length < len(code) else ()
        if last.root == "BRA":
            both = (last.target, *after) if last.guarded else (last.target,)
            graph[start] = tuple(dict.fromkeys(both))
        elif last.root in ("EXIT", "RET"):
            graph[start] = after if last.guarded else ()
        else:
            graph[start] = after
    return graph, lengths


_LEAVE = ("BRA", "EXIT", "RET")


def _reached(graph: Graph, first: int, without: int = -1) -> set[int]:
    found: set[int] = set()
    left = [first]
    while left:
        block = left.pop()
        if block not in found and block != without:
            found.add(block)
            left += graph[block]
    return found


def _needed(graph: Graph, first: int, ends: set[int], block: int) -> bool:
    """Whether all ways from the first block to one of the ends lead through the block."""
    return block == first or not (_reached(graph, first, block) & ends)


def _dominators(graph: Graph) -> dict[int, set[int]]:
    """Of each block, those that all ways to it lead through, itself among them."""
    found: dict[int, set[int]] = {block: set() for block in graph}
    for block in graph:
        for other in set(graph) - (_reached(graph, 0, block) if block else set()):
            found[other].add(block)
    return found


def _body(graph: Graph, header: int, latch: int) -> set[int]:
    """Blocks that lead to the latch without passing the header."""
    into: dict[int, list[int]] = {}
    for block, following in graph.items():
        for n in following:
            into.setdefault(n, []).append(block)
    found, left = {header}, [latch]
    while left:
        block = left.pop()
        if block not in found:
            found.add(block)
            left += into.get(block, [])
    return found
