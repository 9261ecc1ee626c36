"""A quadtree of blocks, and its best pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition.blocks._allocation import Piece
from tensorlrf.decomposition.blocks._blr_spectra import BlockRange
from tensorlrf.decomposition.linalg._rangefinder import range_of
from tensorlrf.decomposition.linalg._spectrum import (
    FullSVD,
    ShortSideEigh,
    SketchedSVD,
    whole_spectrum,
)

LARGE = 512
"""Blocks with a shorter side than this are taken apart without a sketch."""

PORTION = 6
"""A block with a rank above this part of its shorter side is not worth a sketch."""

FIRST = 16
"""The rank that a sketch begins with; it is doubled until the block is within what is asked."""

Admissible = Callable[[BlockRange, int, int, int], bool]
"""From a block, its level, and its row and column among the blocks of that level."""


@dataclass(eq=False)
class Node:
    """A block, its four quarters if it has them, and what it is as a low-rank block.

    piece     its energies; `low_rank` where it may be a low-rank block
    spectrum  where it may be one
    """

    place: BlockRange
    piece: Piece
    spectrum: FullSVD | ShortSideEigh | None
    children: tuple[Node, ...] = ()

    def __post_init__(self) -> None:
        self.tails = self.piece.tails()

    def priced(self, price: float) -> Pruning:
        """The pruning of this node with the least parameters + price x energy left.

        Minimising over a tree is minimising over the quarters of each node (Chou, Lookabaugh &
        Gray 1989).
        """
        best = Pruning(self.piece.whole, 0.0, (self,))
        if self.piece.low_rank:
            worth = np.count_nonzero(self.piece.energies * price > self.piece.each)
            rank = min(int(worth), self.piece.limit)
            kept = Pruning(rank * self.piece.each, float(self.tails[rank]), (self,))
            best = kept if kept.cost(price) <= best.cost(price) else best
        if self.children:
            parts = [child.priced(price) for child in self.children]
            split = Pruning(
                sum(part.params for part in parts),
                math.fsum(part.left for part in parts),
                tuple(node for part in parts for node in part.nodes),
            )
            if split.cost(price) < best.cost(price) * (1 - 1e-12):
                best = split
        return best


class Pruning(NamedTuple):
    """Blocks that tile a node, their parameters, and the energy that they leave."""

    params: int
    left: float
    nodes: tuple[Node, ...]

    def cost(self, price: float) -> float:
        return self.params + price * self.left


class Forest:
    """The tree of a matrix (m, n).

    A block is cut into quarters while both of its sides are above `leaf`. Where `admissible` says
    so it may be low-rank instead; with `final` such a block is not cut. `within` is the share of
    the energy of the matrix that may be lost unseen, `most` a rank above which no block is wanted.
    """

    def __init__(
        self,
        matrix: Tensor,
        leaf: int,
        admissible: Admissible,
        final: bool,
        within: float,
        most: Callable[[BlockRange], int] | None,
        draws: torch.Generator,
    ) -> None:
        self.matrix, self.leaf, self.draws = matrix, leaf, draws
        self.admissible, self.final, self.most = admissible, final, most
        self.energy = float(matrix.to(torch.float64).square().sum())
        # Per entry, so that what all blocks lose unseen adds up to the share.
        self.unseen = within * self.energy / matrix.numel()
        self.root = self._grow(
            BlockRange(0, 0, int(matrix.shape[0]), int(matrix.shape[1])), 0, 0, 0
        )

    def topmost(self) -> tuple[Node, ...]:
        """The largest admissible blocks, and the dense ones between them."""

        def walk(node: Node) -> Iterator[Node]:
            if node.piece.low_rank or not node.children:
                yield node
            else:
                for child in node.children:
                    yield from walk(child)

        return tuple(walk(self.root))

    def around(self, high_enough: Callable[[Pruning], bool]) -> tuple[Pruning, Pruning]:
        """The best prunings at the lowest price that is high enough, and just below it."""
        unit = 1 / self.energy if self.energy > 0 else 1.0
        # Between one parameter for all energy and all parameters for what float64 can tell.
        low, high = -1.0, math.log2(self.matrix.numel()) + 112.0
        for _ in range(24):
            middle = (low + high) / 2
            if high_enough(self.root.priced(2.0**middle * unit)):
                high = middle
            else:
                low = middle
        return self.root.priced(2.0**high * unit), self.root.priced(2.0**low * unit)

    @property
    def least_params(self) -> int:
        """Parameters of the blocks that can only be dense."""
        return self.root.priced(0.0).params

    def _grow(self, place: BlockRange, level: int, i: int, j: int) -> Node:
        block = place.of(self.matrix)
        energy = float(block.to(torch.float64).square().sum())
        divisible = min(place.rows, place.columns) > self.leaf
        low_rank = self.admissible(place, level, i, j)
        piece = Piece(place.rows, place.columns, np.array([energy]), low_rank=False)
        spectrum = None
        if low_rank:
            taken = self._take_apart(block, energy, place, must=self.final or not divisible)
            if taken is not None:
                spectrum, rest = taken
                seen = spectrum.energies.cpu().numpy()
                piece = Piece(place.rows, place.columns, seen, rest)
        if not divisible or (self.final and low_rank) or (spectrum is not None and energy == 0):
            return Node(place, piece, spectrum)
        children = tuple(
            self._grow(quarter, level + 1, 2 * i + a, 2 * j + b)
            for a, b, quarter in quarters(place)
        )
        return Node(place, piece, spectrum, children)

    def _take_apart(
        self, block: Tensor, energy: float, place: BlockRange, must: bool
    ) -> tuple[FullSVD | ShortSideEigh, float] | None:
        """The singular values that matter and the energy of the others; None for a large block
        that does not compress, unless it `must` be taken apart."""
        short = min(block.shape)
        if short >= LARGE:
            if self.most is not None:
                r = self.most(place)
                if (r + 10) * PORTION <= short:
                    sketched = SketchedSVD(block, range_of(block, r, 8, 10, self.draws))
                    return sketched, _energy(block - _rebuilt(sketched))
            else:
                eps = torch.finfo(block.dtype).eps
                allowed = max(self.unseen * block.numel(), (4 * eps) ** 2 * energy)
                basis, rest = adaptive_range(block, allowed, short // PORTION, self.draws)
                if rest <= allowed:
                    return SketchedSVD(block, basis), rest
                if not must:
                    return None
        return whole_spectrum(block), 0.0


def least_params(
    place: BlockRange, leaf: int, admissible: Admissible, level: int, i: int, j: int
) -> int:
    """Parameters of the blocks at `place` that can only be dense, whatever the matrix."""
    if admissible(place, level, i, j):
        return 0
    if min(place.rows, place.columns) <= leaf:
        return place.rows * place.columns
    return sum(
        least_params(quarter, leaf, admissible, level + 1, 2 * i + a, 2 * j + b)
        for a, b, quarter in quarters(place)
    )


def quarters(place: BlockRange) -> Iterator[tuple[int, int, BlockRange]]:
    """The row and the column, 0 or 1, of each quarter of a block, and the quarter."""
    up, left = -(-place.rows // 2), -(-place.columns // 2)
    rows = ((place.row, up), (place.row + up, place.rows - up))
    columns = ((place.column, left), (place.column + left, place.columns - left))
    for a, (row, height) in enumerate(rows):
        for b, (column, width) in enumerate(columns):
            yield a, b, BlockRange(row, column, height, width)


def adaptive_range(
    matrix: Tensor, energy: float, most: int, draws: torch.Generator
) -> tuple[Tensor, float]:
    """Orthonormal basis (m, s) that leaves at most `energy` of a matrix (m, n), and what it leaves.

    Grows by sketches of what is left, each as large as all before it, with one power iteration
    (Halko, Martinsson & Tropp 2011, section 4.4); stops early at `most` columns.
    """
    basis = matrix.new_zeros(matrix.shape[0], 0)
    residual, rest = matrix, _energy(matrix)
    while rest > energy and basis.shape[1] < most:
        s = min(max(FIRST, int(basis.shape[1])), most - int(basis.shape[1]))
        sketch = torch.randn(
            matrix.shape[1], s, generator=draws, dtype=matrix.dtype, device=matrix.device
        )
        more = torch.linalg.qr(residual @ sketch)[0]
        more = residual @ torch.linalg.qr(residual.T @ more)[0]
        # Twice, since what is left of tiny residuals lies along the basis by rounding.
        for _ in range(2):
            more = torch.linalg.qr(more - basis @ (basis.T @ more))[0]
        basis = torch.cat([basis, more], dim=1)
        residual = residual - more @ (more.T @ residual)
        rest = _energy(residual)
    return basis, rest


def _energy(matrix: Tensor) -> float:
    return float(matrix.to(torch.float64).square().sum())


def _rebuilt(spectrum: FullSVD) -> Tensor:
    return (spectrum.left * spectrum.values) @ spectrum.right
