"""Where the panels of block matrices lie: what kernels and references know of a format.

A panel is a matrix (ranks, width) between an interval of columns, of x or of y, and an interval of
slots, which are the columns of the intermediate t. The right panels make t = x right^T, the left
ones y = t left. The transposed matrix has the two sides exchanged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

SLOT = 16  # panels begin at multiples of it, so that t is read in whole vectors
DENSE = -1  # the rank of a block that is stored as it is


class Block(NamedTuple):
    """First row and column, size, and rank, DENSE for a block that is stored as it is."""

    row: int
    column: int
    rows: int
    columns: int
    rank: int


class Panel(NamedTuple):
    """A matrix of weights [rank, column] at `offset` of a flat tensor.

    column, width   the interval of columns
    slot, ranks     the interval of slots; of a dense block, of the rows of y
    """

    column: int
    width: int
    slot: int
    ranks: int
    offset: int
    column_step: int
    rank_step: int


class Side(NamedTuple):
    """The panels of one side, and the number of slots they lie in."""

    panels: tuple[Panel, ...]
    slots: int


@dataclass(frozen=True, eq=False)
class Form:
    """A block matrix (m, n).

    name    "blr", "monarch" or "blast"
    right   panels from x into t, `left` from t into y
    dense   panels [row, column] from x into y
    link    right slot -> left slot, -1 where a slot has no rank; empty for "blast", whose scales
            stand between the two
    woven   rows of y are interleaved: row s woven + q is column q S + s of the left side
    """

    name: str
    shape: tuple[int, int]
    right: Side
    left: Side
    dense: tuple[Panel, ...]
    link: tuple[int, ...]
    woven: int = 0

    @cached_property
    def link_back(self) -> tuple[int, ...]:
        """Left slot -> right slot, empty where `link` is."""
        back = [-1] * (self.left.slots if self.link else 0)
        for slot, other in enumerate(self.link):
            if other >= 0:
                back[other] = slot
        return tuple(back)

    @cached_property
    def rank(self) -> int:
        """How many ranks a row of y is made of, in the mean."""
        work = sum(p.width * p.ranks for p in self.left.panels)
        return max(1, round(work / max(1, self.shape[0])))

    @cached_property
    def work(self) -> int:
        """Multiply-adds for a row of x."""
        panels = (*self.right.panels, *self.left.panels, *self.dense)
        return sum(p.width * p.ranks for p in panels)


# ---- tilings ------------------------------------------------------------------------------------


class Strip(NamedTuple):
    """Low-rank blocks above or beside each other, whose panels are one matrix."""

    start: int
    width: int
    blocks: tuple[int, ...]  # among the low-rank blocks by rows
    ranks: int


@dataclass(frozen=True, eq=False)
class Tiling:
    """Blocks that tile a matrix (m, n), by rows, and the order in which their panels are packed."""

    shape: tuple[int, int]
    blocks: tuple[Block, ...]

    @cached_property
    def low_rank(self) -> tuple[Block, ...]:
        """As their left panels lie."""
        return tuple(b for b in self.blocks if b.rank != DENSE)

    @cached_property
    def dense(self) -> tuple[Block, ...]:
        return tuple(b for b in self.blocks if b.rank == DENSE)

    @cached_property
    def rows(self) -> tuple[Strip, ...]:
        """Blocks beside each other."""
        order = range(len(self.low_rank))
        return self._strips(order, [(b.row, b.rows) for b in self.low_rank])

    @cached_property
    def columns(self) -> tuple[Strip, ...]:
        """Blocks above each other."""
        blocks = self.low_rank
        order = sorted(
            range(len(blocks)),
            key=lambda k: (blocks[k].column, blocks[k].columns, blocks[k].row, blocks[k].rows),
        )
        return self._strips(order, [(b.column, b.columns) for b in blocks])

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many numbers each tensor has."""
        return {
            "left": sum(strip.ranks * strip.width for strip in self.rows),
            "right": sum(strip.ranks * strip.width for strip in self.columns),
            "dense": sum(b.rows * b.columns for b in self.dense),
        }

    @cached_property
    def form(self) -> Form:
        left, left_slots = self._side(self.rows)
        right, right_slots = self._side(self.columns)
        link = [-1] * right.slots
        for k, b in enumerate(self.low_rank):
            for r in range(b.rank):
                link[right_slots[k] + r] = left_slots[k] + r
        dense, offset = [], 0
        for b in self.dense:
            dense.append(Panel(b.column, b.columns, b.row, b.rows, offset, 1, b.columns))
            offset += b.rows * b.columns
        return Form("blr", self.shape, right, left, tuple(dense), tuple(link))

    def _strips(
        self, order: Iterable[int], intervals: Sequence[tuple[int, int]]
    ) -> tuple[Strip, ...]:
        lying: dict[tuple[int, int], list[int]] = {}
        for k in order:
            lying.setdefault(intervals[k], []).append(k)
        return tuple(
            Strip(*interval, tuple(those), sum(self.low_rank[k].rank for k in those))
            for interval, those in lying.items()
        )

    def _side(self, strips: Sequence[Strip]) -> tuple[Side, dict[int, int]]:
        """The panels of the strips, and block -> its first slot."""
        panels, first, slot, offset = [], {}, 0, 0
        for strip in strips:
            panels.append(
                Panel(strip.start, strip.width, slot, strip.ranks, offset, 1, strip.width)
            )
            inside = slot
            for k in strip.blocks:
                first[k] = inside
                inside += self.low_rank[k].rank
            offset += strip.ranks * strip.width
            slot += -(-strip.ranks // SLOT) * SLOT
        return Side(tuple(p for p in panels if p.ranks), slot), first


def words(blocks: Iterable[Sequence[int | None]], shape: Sequence[int]) -> str:
    """A tiling as text, which goes through torch's dispatcher faster than a thousand integers.

    Parameters
    ----------
    blocks : iterable of (row, column, rows, columns, rank)
        The rank None for a dense block.
    shape : (m, n)

    Returns
    -------
    str
        What `blr_linear` takes as `blocks`.

    Examples
    --------
    >>> from tensorlrf_kernels.blr_linear import words
    >>> words([(0, 0, 4, 4, None), (0, 4, 4, 4, 1)], (4, 8))
    '4 8 0,0,4,4,-1;0,4,4,4,1'
    """
    each = ";".join(
        ",".join(str(DENSE if n is None else int(n)) for n in block) for block in blocks
    )
    return f"{int(shape[0])} {int(shape[1])} {each}"


@lru_cache(maxsize=256)
def tiling_of(text: str) -> Tiling:
    """Inverse of `words`; raises ValueError unless the blocks tile the matrix and are by rows."""
    try:
        m, n, rest = text.split(" ")
        blocks = tuple(Block(*map(int, each.split(","))) for each in rest.split(";"))
        shape = int(m), int(n)
    except (ValueError, TypeError):
        raise ValueError(
            f"blocks={text[:80]!r} is no tiling; give (row, column, rows, columns, rank) of each, "
            "with None as the rank of a dense block"
        ) from None
    if list(blocks) != sorted(blocks, key=lambda b: (b.row, b.rows, b.column, b.columns)):
        raise ValueError(
            "blocks are not in ascending order of (row, rows, column, columns); sort them so, and "
            "pack the panels accordingly"
        )
    _check_tiles(blocks, shape)
    return Tiling(shape, blocks)


def _check_tiles(blocks: Sequence[Block], shape: tuple[int, int]) -> None:
    """The blocks cover a matrix (m, n), each entry once."""
    m, n = shape
    for b in blocks:
        inside = b.row >= 0 and b.column >= 0 and b.row + b.rows <= m and b.column + b.columns <= n
        if b.rows < 1 or b.columns < 1 or not inside:
            raise ValueError(f"{b} does not lie within shape=({m}, {n})")
        if not DENSE <= b.rank <= min(b.rows, b.columns):
            raise ValueError(f"{b} has a rank outside of 0 to {min(b.rows, b.columns)}")
    cuts = cuts_of((b.row, b.rows) for b in blocks)
    lying: list[list[Block]] = [[] for _ in cuts]
    for b in blocks:
        for k in range(bisect_left(cuts, b.row), bisect_left(cuts, b.row + b.rows)):
            lying[k].append(b)
    whole = cuts[0] == 0 and cuts[-1] == m
    for strip in lying[:-1]:
        # Every line of the matrix passes through blocks one behind the other.
        end = 0
        for b in sorted(strip, key=lambda b: b.column):
            whole, end = whole and b.column == end, b.column + b.columns
        whole = whole and end == n
    if not whole:
        raise ValueError(f"blocks do not cover shape=({m}, {n}), each entry once")


def cuts_of(intervals: Iterable[tuple[int, int]]) -> list[int]:
    """Where intervals (start, width) begin and end, ascending."""
    return sorted({place for start, width in intervals for place in (start, start + width)})


# ---- formats of equal blocks --------------------------------------------------------------------


@lru_cache(maxsize=256)
def monarch_form(left: tuple[int, ...], right: tuple[int, ...], shape: tuple[int, int]) -> Form:
    """W[(s, q), (k, p)] = sum over r of left[q, s, k, r] right[k, q, r, p], in its first rows and
    columns: left (Q, S, K, r), right (K, Q, r, P)."""
    (Q, S, K, r), P = left, right[3]
    into, out = _whole(Q * r), _whole(K * r)
    rights = tuple(
        Panel(k * P, min(P, max(0, shape[1] - k * P)), k * into, Q * r, k * Q * r * P, 1, P)
        for k in range(K)
    )
    lefts = tuple(Panel(q * S, S, q * out, K * r, q * S * K * r, K * r, 1) for q in range(Q))
    link = [-1] * (K * into)
    for k in range(K):
        for q in range(Q):
            for j in range(r):
                link[k * into + q * r + j] = q * out + k * r + j
    sides = Side(rights, K * into), Side(lefts, Q * out)
    return Form("monarch", shape, *sides, (), tuple(link), woven=Q)


@lru_cache(maxsize=256)
def blast_form(left: tuple[int, ...], right: tuple[int, ...], shape: tuple[int, int]) -> Form:
    """Block (i, j) is left[i] diag(scales[i, j]) right[j]: left (p, mb, r), right (q, r, nb)."""
    (p, mb, r), (q, _, nb) = left, right
    (m, n), step = shape, _whole(r)
    rights = tuple(
        Panel(j * nb, min(nb, max(0, n - j * nb)), j * step, r, j * r * nb, 1, nb) for j in range(q)
    )
    lefts = tuple(
        Panel(i * mb, min(mb, max(0, m - i * mb)), i * step, r, i * mb * r, r, 1) for i in range(p)
    )
    return Form("blast", shape, Side(rights, q * step), Side(lefts, p * step), (), ())


def _whole(ranks: int) -> int:
    return -(-ranks // SLOT) * SLOT
