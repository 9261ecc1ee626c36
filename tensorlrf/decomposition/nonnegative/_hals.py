"""Non-negative least squares, a column after the other.

Hierarchical alternating least squares (Cichocki, Zdunek & Amari 2007) has a closed form for a
column of a factor while all others are held. Several rounds over the columns use one right side,
which is what costs, as long as they still change something (Gillis & Glineur 2012, "Accelerated
multiplicative updates and hierarchical ALS algorithms for nonnegative matrix factorization").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 16
"""Columns that are updated on what the others leave, which is one product of matrices."""

ENOUGH = 0.1
"""A change in a round, as a share of that in the first, after which there is no other one."""

MOST_ROUNDS = 4


def non_negative(
    old: Tensor, rhs: Tensor, system: Tensor, most_rounds: int = MOST_ROUNDS
) -> Tensor:
    """From U = `old` (n, r) towards the U >= 0 of least tr(U S U^T) - 2 <R, U>.

    rhs     R (n, r), the tensor times what the others are
    system  S (r, r) float64, the Gram of what the others are

    Every step is exact for its column, so that nothing rises but by rounding. A column that the
    system does not see stays as it is.
    """
    seen = system.diagonal()
    alive = (seen > 0).nonzero()[:, 0].tolist()
    inverse = torch.where(seen > 0, 1 / seen, 0.0)[:, None]
    coupling = (system * -inverse).fill_diagonal_(0.0).to(old.dtype)
    wanted = rhs.T * inverse.to(old.dtype)  # (r, n)
    u = old.T.contiguous()
    blocks = [
        Block.of(coupling, wanted, u, alive[first : first + BLOCK])
        for first in range(0, len(alive), BLOCK)
    ]
    first_change = 0.0
    for number in range(most_rounds):
        before = u.clone() if most_rounds > 1 else u
        for block in blocks:
            block.update()
        change = float(torch.linalg.vector_norm(u - before)) if most_rounds > 1 else 0.0
        first_change = first_change if number else change
        if change <= ENOUGH * first_change:
            break
    return u.T.contiguous()


class Block(NamedTuple):
    """Some rows of U^T, and views of all that they are updated by.

    whole    U^T (r, n), and `outside` (b, r) by which the other rows count, None where there are
             none
    wanted   (b, n), and `left` (b, n), the same but for what the other rows give
    columns  of these rows, (n, b)
    steps    of each row that is seen: how the others of the block count, what is wanted, and itself
    """

    whole: Tensor
    outside: Tensor | None
    wanted: Tensor
    left: Tensor
    columns: Tensor
    steps: list[tuple[Tensor, Tensor, Tensor]]
    line: Tensor

    @classmethod
    def of(cls, coupling: Tensor, wanted: Tensor, whole: Tensor, alive: list[int]) -> Block:
        rows = slice(alive[0], alive[-1] + 1)
        outside, left = None, wanted[rows]
        if len(whole) > len(left):
            outside, left = coupling[rows].clone(), torch.empty_like(left)
            outside[:, rows] = 0.0
        within, lefts, own = coupling[:, rows].unbind(), left.unbind(), whole.unbind()
        steps = [(within[k], lefts[k - rows.start], own[k]) for k in alive]
        line = torch.empty_like(whole[0])
        return cls(whole, outside, wanted[rows], left, whole[rows].T, steps, line)

    def update(self) -> None:
        """One row after the other, in place."""
        if self.outside is not None:
            torch.addmm(self.wanted, self.outside, self.whole, out=self.left)
        for within, left, own in self.steps:
            torch.addmv(left, self.columns, within, out=self.line)
            torch.clamp_min(self.line, 0.0, out=own)
