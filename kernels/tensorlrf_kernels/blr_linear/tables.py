"""What the grouped kernels read about a form: small tables of int32, made once a device."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tensorlrf_kernels.blr_linear.forms import SLOT, Form, Panel, Side, cuts_of
from tensorlrf_kernels.launches import say_once

LARGEST = 2**31  # what a table can say
MOST_SEGMENTS = 2**16


class Shrink(NamedTuple):
    """Tasks of `shrink_tile`, and the constants that they allow it."""

    tasks: Tensor
    place: Tensor
    total: int
    adjacent: bool
    align: int
    ranks: int
    run: int
    work: int  # multiply-adds a row of x, with those of the tiles' masked parts


class Expand(NamedTuple):
    """Tiles of `expand_tile` and their segments, and the constants that they allow it."""

    tiles: Tensor
    segments: Tensor
    total: int
    adjacent: bool
    align: int
    ranks: int
    work: int


class Grads(NamedTuple):
    """Tasks of `panels`; `whole`: every number of a part is written."""

    tasks: Tensor
    total: int
    adjacent: bool
    align: int


def sides(form: Form, transposed: bool) -> tuple[Side, Side, tuple[int, ...], int]:
    """The panels from what is multiplied, those into the result, the link between their slots, and
    the number of columns of the result."""
    if transposed:
        return form.left, form.right, form.link_back, form.shape[1]
    return form.right, form.left, form.link, form.shape[0]


def served(form: Form) -> bool:
    """Whether tables can say where everything is."""
    panels = (*form.right.panels, *form.left.panels, *form.dense)
    last = max((p.offset + p.width * p.ranks for p in panels), default=0)
    return 0 < last < LARGEST and len(panels) <= MOST_SEGMENTS


def shrink_table(
    form: Form, transposed: bool, BR: int, BK: int, device: torch.device
) -> Shrink | None:
    """Every rank of a side in pieces of BR; None where it cannot be made now."""
    made: Shrink | None = _kept(_shrink, form, transposed, BR, BK, device)
    return made


def expand_table(
    form: Form, transposed: bool, BN: int, BE: int, device: torch.device
) -> Expand | None:
    """Every column of the result in pieces of BN; None where it cannot be made now."""
    made: Expand | None = _kept(_expand, form, transposed, BN, BE, device)
    return made


def grads_table(form: Form, which: str, BR: int, BC: int, device: torch.device) -> Grads | None:
    """Every panel of "right", "left" or "dense" in pieces BR x BC; None as above."""
    made: Grads | None = _kept(_grads, form, which, BR, BC, device)
    return made


def _kept(make: Callable[..., Any], *key: Any) -> Any:
    device: torch.device = key[-1]
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return make(*key)
    # A graph keeps what it reads for ever, and nothing can be copied to the device inside of it.
    made = _of_graphs.get((make, *key)) or _made.get((make, *key))
    if made is None:
        say_once(
            "blr_linear: a CUDA graph is being captured and no call of these sizes came before; "
            "library products run in its place. Call once outside of the graph"
        )
        return None
    _of_graphs[make, *key] = made
    return made


_made: dict[Any, Any] = {}
_of_graphs: dict[Any, Any] = {}


def _bounded(make: Callable[..., Any]) -> Callable[..., Any]:
    """Remember the last tables that were made, by all of their arguments."""

    def remembering(*key: Any) -> Any:
        found = _made.get((remembering, *key))
        if found is None:
            found = make(*key)
            while len(_made) >= MOST_TABLES:
                _made.pop(next(iter(_made)))
            _made[remembering, *key] = found
        return found

    return remembering


MOST_TABLES = 1024


@_bounded
def _shrink(form: Form, transposed: bool, BR: int, BK: int, device: torch.device) -> Shrink:
    side, other, link, _ = sides(form, transposed)
    place = list(link) or list(range(side.slots))
    adjacent = all(p.column_step == 1 for p in side.panels)
    tasks, work = [], 0
    for p in side.panels:
        step = p.rank_step if adjacent else p.column_step
        for first in range(0, p.ranks, BR):
            ranks = min(BR, p.ranks - first)
            offset = p.offset + first * p.rank_step
            tasks.append((p.column, p.width, offset, step, ranks, p.slot + first))
            work += BR * -(-p.width // BK) * BK
    if link:
        # What lies between the panels of the other side is filled too: ranks of no columns.
        gaps = sorted(set(range(other.slots)) - {slot for slot in link if slot >= 0})
        tasks += [
            (0, 0, 0, 0, min(BR, len(gaps) - first), len(place) + first)
            for first in range(0, len(gaps), BR)
        ]
        place += gaps
    run = next(r for r in (16, 8, 4, 2, 1) if _runs(place, [t[4:] for t in tasks], r))
    return Shrink(
        _table(tasks, device),
        _table([place], device),
        len(tasks),
        adjacent,
        _divisor(chain.from_iterable(t[:4] for t in tasks)),
        _divisor(t[4] for t in tasks),
        run,
        work,
    )


def _runs(place: Sequence[int], tasks: Iterable[Sequence[int]], run: int) -> bool:
    """Whether slots of every task lie in runs of that length, which begin at multiples of it."""
    return all(
        place[slot + k] == place[slot + k - k % run] + k % run
        and place[slot + k - k % run] % run == 0
        for ranks, slot in tasks
        for k in range(ranks)
    )


@_bounded
def _expand(form: Form, transposed: bool, BN: int, BE: int, device: torch.device) -> Expand:
    _, side, _, columns = sides(form, transposed)
    adjacent = all(p.column_step == 1 for p in side.panels)
    # From the result's columns a dense block is a panel of its rows.
    dense = [(p.column, p.width, p) if transposed else (p.slot, p.ranks, p) for p in form.dense]
    intervals = [(p.column, p.width) for p in side.panels if p.width]
    cuts = cuts_of([*intervals, *((start, width) for start, width, _ in dense), (0, columns)])
    strips: list[list[Panel]] = [[] for _ in cuts]
    blocks: list[list[Panel]] = [[] for _ in cuts]
    for p in side.panels:
        for k in range(bisect_left(cuts, p.column), bisect_left(cuts, p.column + p.width)):
            strips[k].append(p)
    for start, width, p in dense:
        for k in range(bisect_left(cuts, start), bisect_left(cuts, start + width)):
            blocks[k].append(p)
    tiles: list[Sequence[int]] = []
    segments: list[Sequence[int]] = []
    work, lengths = 0, []
    for k, (low, high) in enumerate(pairwise(cuts)):
        for start in range(low, high, BN):
            first = len(segments)
            for p in strips[k]:
                offset = p.offset + (start - p.column) * p.column_step
                segments.append(
                    (p.slot, p.ranks, offset, p.rank_step if adjacent else p.column_step)
                )
                lengths.append(p.ranks)
            middle = len(segments)
            for p in blocks[k]:
                if transposed:
                    segments.append((p.slot, p.ranks, p.offset + start - p.column, p.rank_step))
                else:
                    offset = p.offset + (start - p.slot) * p.rank_step
                    segments.append((p.column, p.width, offset, p.rank_step))
            tiles.append((start, min(BN, high - start), first, middle, len(segments)))
            work += sum(BN * -(-s[1] // BE) * BE for s in segments[first:])
    return Expand(
        _table(tiles, device),
        _table(segments or [(0, 0, 0, 0)], device),
        len(tiles),
        adjacent,
        _divisor(
            chain(
                chain.from_iterable(t[:2] for t in tiles),
                chain.from_iterable(s[2:] for s in segments),
                chain.from_iterable((p.column, p.width, p.slot, p.ranks) for p in form.dense),
            )
        ),
        _divisor(lengths),
        work,
    )


@_bounded
def _grads(form: Form, which: str, BR: int, BC: int, device: torch.device) -> Grads:
    panels = form.dense if which == "dense" else getattr(form, which).panels
    adjacent = all(p.column_step == 1 for p in panels)
    tasks = []
    for p in panels:
        step = p.rank_step if adjacent else p.column_step
        for rank in range(0, p.ranks, BR):
            for column in range(0, p.width, BC):
                offset = p.offset + rank * p.rank_step + column * p.column_step
                ranks, width = min(BR, p.ranks - rank), min(BC, p.width - column)
                tasks.append((p.slot + rank, ranks, p.column + column, width, offset, step))
    said = [(slot, *rest[1:3], rest[4]) for slot, *rest in tasks]
    if which == "dense":
        said += [(ranks,) for _, ranks, *_ in tasks]
    return Grads(_table(tasks, device), len(tasks), adjacent, _divisor(chain.from_iterable(said)))


def _divisor(numbers: Iterable[int]) -> int:
    """The largest power of two, SLOT at most, that divides them all."""
    bits = SLOT
    for n in numbers:
        bits |= n
    return bits & -bits


def _table(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    made = torch.tensor([n for row in rows for n in row], dtype=torch.int32, device=device)
    if device.type == "cuda":
        # Other streams will read it, before this one may have copied it.
        torch.cuda.synchronize(device)
    return made
