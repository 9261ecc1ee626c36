"""Block low-rank matrices in the metric of the inputs.

The output error tr(D G D^T) of D = W - A couples the blocks that share rows. For one block, all
others fixed, it is tr((T - A_b) G_b (T - A_b)^T) and a constant, with G_b the moments of the
columns of the block and T = W_b + (sum over the other blocks of their D G) G_b^+ the weight that
would make good what they leave. The best A_b of rank r is U U^T T with U the top eigenvectors of
T G_b T^T, as for a whole matrix. Blocks of the same columns lie in different rows, so those of
equal height are solved at once.

In a form tr(R D G D^T), where outputs count by what is made of them, rows meet. With R_b = L L^T of
the rows of a block T = W_b + R_b^-1 (R D G of the others)_b G_b^+, and of rank r it is nearest by
the top singular vectors of L^T T S with G_b = S S^T; such blocks are solved one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, beyond, descend
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.blocks._allocation import Ranks
from tensorlrf.decomposition.blocks._blr_spectra import BlockRange, Energies
from tensorlrf.decomposition.linalg._gram import descending_eigh, identity

CUTOFF = 1e-10
"""Directions of the inputs with less than this share of the largest variance are not corrected."""

Content = Tensor | tuple[Tensor, Tensor]


class BlockState(NamedTuple):
    """Blocks of given ranks, in float64.

    residual  W - A (m, n)
    apart     whether the residual lies ahead, where it is that of no blocks of these ranks: each
              block is only made for what the others leave, and then all are made anew
    """

    ranks: Ranks
    contents: list[Content]
    residual: Tensor
    apart: bool = False

    def ahead(self, last: BlockState, reach: float) -> BlockState:
        """As far ahead of here as `last` is behind, times `reach`."""
        (residual,) = beyond([self.residual], [last.residual], reach)
        return self._replace(residual=residual, apart=True)


@dataclass(frozen=True)
class Stack:
    """Blocks with the same columns and equally many rows; one alone where rows meet."""

    members: list[int]
    rows: Tensor  # (B, rows) indices
    columns: slice
    root: Tensor  # S with G_b = S S^T, (columns, k)
    inverse: Tensor  # G_b^+, (columns, columns)
    outputs: Tensor | None = None  # L with R_b = L L^T, (rows, rows)

    def turned(self, blocks: Tensor) -> Tensor:
        """L^T of blocks (B, rows, columns)."""
        return blocks if self.outputs is None else self.outputs.T @ blocks

    def turned_back(self, blocks: Tensor) -> Tensor:
        """L^-T of them."""
        if self.outputs is None:
            return blocks
        solution: Tensor = torch.linalg.solve_triangular(self.outputs.T, blocks, upper=True)
        return solution

    def counted(self, blocks: Tensor) -> Tensor:
        """R_b of them."""
        return blocks if self.outputs is None else self.outputs @ (self.outputs.T @ blocks)

    def solved(self, blocks: Tensor) -> Tensor:
        """R_b^-1 of them."""
        if self.outputs is None:
            return blocks
        solution: Tensor = torch.cholesky_solve(blocks, self.outputs)
        return solution


class Outputs:
    """A target W (m, n) with the second moments G (n, n) of its inputs, what its outputs count, R
    (m, m) or alike, and blocks that tile it."""

    def __init__(self, target: Target[Any], places: Sequence[BlockRange]) -> None:
        self.target, self.places = target, tuple(places)
        self.matrix, self.meeting = target.matrix, target.rows
        columns = target.columns
        self.gram = identity(target.shape[1], self.matrix) if columns is None else columns
        grouped: dict[tuple[int, ...], list[int]] = {}
        for i, place in enumerate(places):
            alone = () if self.meeting is None else (i,)
            grouped.setdefault((place.column, place.columns, place.rows, *alone), []).append(i)
        roots: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.stacks = []
        for (column, width, height, *_), members in grouped.items():
            part = slice(column, column + width)
            if (column, width) not in roots:
                roots[column, width] = _root_and_inverse(self.gram[part, part])
            first = torch.tensor([places[i].row for i in members], device=self.gram.device)
            rows = first[:, None] + torch.arange(height, device=self.gram.device)
            outputs = None
            if self.meeting is not None:
                outputs = torch.linalg.cholesky(self.meeting[rows[0]][:, rows[0]])
            self.stacks.append(Stack(members, rows, part, *roots[column, width], outputs))

    def energies(self, residual: Tensor | None = None) -> list[Energies]:
        """Eigenvalues of T G_b T^T of each block, descending.

        T makes good a `residual` W - A (m, n) of all the other blocks; it is W_b where none is
        given, and then the energies are those of the outputs that each block makes by itself.
        """
        found: dict[int, Energies] = {}
        for stack in self.stacks:
            target = self.matrix[stack.rows, stack.columns]
            if residual is not None:
                target = self._target(stack, residual)[0]
            seen = stack.turned(target) @ stack.root
            short = seen @ seen.mT if seen.shape[1] <= seen.shape[2] else seen.mT @ seen
            values, _ = descending_eigh(short)
            size = min(target.shape[1:])
            for b, i in enumerate(stack.members):
                found[i] = values[b, :size].cpu().numpy()
        return [found[i] for i in range(len(self.places))]

    def residual(self, contents: Sequence[Content]) -> Tensor:
        """W - A (m, n) in float64."""
        residual = self.matrix.clone()
        for place, content in zip(self.places, contents, strict=True):
            place.of(residual).sub_(_product(content))
        return residual

    def start(self, contents: Sequence[Content], ranks: Ranks) -> Descent[BlockState]:
        """Blocks to begin with."""
        wide = [_wide(content) for content in contents]
        residual = self.residual(wide)
        return Descent.at(BlockState(ranks, wide, residual), self.target.rel_error(residual))

    def descend(
        self, begun: Descent[BlockState], n_iter_max: int, tol: float | None, enough: float = 0.0
    ) -> Descent[BlockState]:
        """Blocks of the same ranks with a lower output error.

        Stops when a sweep lowers the squared error by no more than a share `tol` of it (None: when
        sweeps would gain little more), or where the error is at most `enough`.
        """
        half = None if tol is None else tol / 2
        return descend([begun], self.sweep, half, n_iter_max, ahead=BlockState.ahead, enough=enough)

    def sweep(self, at: BlockState) -> tuple[BlockState, float]:
        """Every block once, and the relative error afterwards."""
        residual, contents = at.residual.clone(), list(at.contents)
        for stack in self.stacks:
            self._improve(stack, contents, at.ranks, residual, anew=at.apart)
        return BlockState(at.ranks, contents, residual), self.target.rel_error(residual)

    def _target(self, stack: Stack, residual: Tensor) -> tuple[Tensor, Tensor]:
        """T for each block, and its part of R D G; (B, rows, columns)."""
        off = residual[stack.rows]  # (B, rows, n)
        seen = off if self.meeting is None else self.meeting[stack.rows] @ residual
        pull = seen @ self.gram[:, stack.columns]
        inner = self.gram[stack.columns, stack.columns]
        others = pull - stack.counted(off[:, :, stack.columns]) @ inner
        needed = stack.solved(others) @ stack.inverse
        return self.matrix[stack.rows, stack.columns] + needed, pull

    def _improve(
        self,
        stack: Stack,
        contents: list[Content],
        ranks: Ranks,
        residual: Tensor,
        *,
        anew: bool = False,
    ) -> None:
        """The best blocks of one stack for what the others leave, where that lowers the error or
        all are to be made `anew`; changes its arguments."""
        target, pull = self._target(stack, residual)
        own = [ranks[i] for i in stack.members]
        most = max((r for r in own if r is not None), default=0)
        turned = stack.turned(target)
        basis = _top(turned @ stack.root, most)  # (B, rows, most)
        limits = torch.tensor([r or 0 for r in own], device=basis.device)
        basis = basis * (torch.arange(most, device=basis.device) < limits[:, None])[:, None]
        right = basis.mT @ turned
        left = stack.turned_back(basis)
        dense = torch.tensor([r is None for r in own], device=basis.device)[:, None, None]
        made = torch.where(dense, target, left @ right)
        before = self.matrix[stack.rows, stack.columns] - residual[stack.rows, stack.columns]
        # What the step adds to the form, multiplied out: T leaves out directions of no variance.
        step = made - before
        added = stack.counted(step) @ self.gram[stack.columns, stack.columns] - 2 * pull
        better = ((step * added).sum((1, 2)) < 0) | anew
        kept = torch.where(better[:, None, None], made, before)
        residual[stack.rows, stack.columns] = self.matrix[stack.rows, stack.columns] - kept
        for b, i in enumerate(stack.members):
            r = own[b]
            if better[b]:
                contents[i] = target[b] if r is None else (left[b, :, :r], right[b, :r])


def balanced_panels(content: Content) -> Content:
    """Panels whose columns of left and rows of right have equal norms, pair by pair."""
    if isinstance(content, Tensor):
        return content
    left, right = content
    a, b = torch.linalg.vector_norm(left, dim=0), torch.linalg.vector_norm(right, dim=1)
    both = (a > 0) & (b > 0)
    share = torch.where(both, b / torch.where(both, a, 1), 0).sqrt()
    return left * share, right / torch.where(both, share, 1)[:, None]


def _top(seen: Tensor, most: int) -> Tensor:
    """The first `most` left singular vectors of each of a stack (B, rows, k)."""
    if seen.shape[1] <= seen.shape[2]:
        return descending_eigh(seen @ seen.mT)[1][:, :, :most]
    vectors = descending_eigh(seen.mT @ seen)[1][:, :, :most]
    spanned = seen @ vectors
    if spanned.shape[2] < most:
        missing = spanned.new_zeros(*spanned.shape[:2], most - spanned.shape[2])
        spanned = torch.cat([spanned, missing], dim=2)
    basis: Tensor = torch.linalg.qr(spanned)[0]
    return basis


def _root_and_inverse(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = descending_eigh(gram)
    lively = values > CUTOFF * values[0]
    inverse = (vectors * torch.where(lively, 1 / torch.where(lively, values, 1), 0)) @ vectors.T
    return vectors * values.sqrt(), inverse


def _wide(content: Content) -> Content:
    if isinstance(content, Tensor):
        return content.to(torch.float64)
    return content[0].to(torch.float64), content[1].to(torch.float64)


def _product(content: Content) -> Tensor:
    return content if isinstance(content, Tensor) else content[0] @ content[1]
