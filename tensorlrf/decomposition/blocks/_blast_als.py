"""Alternating least squares for block matrices with shared bases.

Block (i, j) of A is L_i diag(s_ij) R_j. In each of L, s and R, the others fixed, the error
tr((W - A) G (W - A)^T) is quadratic (G the identity for the plain error). The parts of one L_i, of
the R_j of one j, or of the s_ij of one j are solved for at once, as steps from where they are: with
H the normal matrix and g the gradient, a step is (H + ridge)^-1 g, which lowers the error for any
ridge, however singular H is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import FALL, Descent, beyond, descend
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._gram import descending_eigh, identity, thin_svd

RIDGE = 1e-12
"""Relative to the largest eigenvalue of a normal matrix; it slows a step and moves no minimum."""


@dataclass(frozen=True)
class Bases:
    """left (p, mb, r), right (q, r, nb), scales (p, q, r)."""

    left: Tensor
    right: Tensor
    scales: Tensor

    @property
    def rank(self) -> int:
        return int(self.left.shape[2])

    def dense(self) -> Tensor:
        """A, (p, mb, q nb)."""
        # By columns of blocks: scaled for all of them at once, left would be q times as large.
        columns = (
            (self.left * self.scales[:, j, None]) @ right  # (p, mb, nb)
            for j, right in enumerate(self.right)
        )
        return torch.cat(list(columns), dim=2)

    def beyond(self, last: Bases, reach: float) -> Bases:
        """As far ahead of here as `last` is behind, times `reach`."""
        here, there = ((at.left, at.right, at.scales) for at in (self, last))
        return Bases(*beyond(here, there, reach))

    def balanced(self) -> Bases:
        """The same matrix; left and right share the norm of each term equally, scales are one at
        most, and 1 for the largest."""
        norms = torch.linalg.vector_norm(self.left, dim=1)  # (p, r)
        others = torch.linalg.vector_norm(self.right, dim=2)  # (q, r)
        left = self.left / _whole(norms)[:, None, :]
        right = self.right / _whole(others)[:, :, None]
        scales = self.scales * norms[:, None] * others[None]
        # One number for all blocks of a term, so that the scales keep their proportions.
        size = scales.abs().amax((0, 1))  # (r,)
        root = size.sqrt()
        return Bases(left * root, right * root[:, None], scales / _whole(size))


class SharedBases:
    """A target W (p mb, q nb), the moments G (q nb, q nb) of whose inputs may be known."""

    def __init__(self, target: Target[Any], counts: tuple[int, int]) -> None:
        self.target, self.gram = target, target.gram
        self.p, self.q = counts
        m, self.n = target.shape
        self.mb, self.nb = m // self.p, self.n // self.q
        self.weight = target.matrix.view(self.p, self.mb, self.n)
        if self.gram is not None:
            parts = self.gram.view(self.q, self.nb, self.q, self.nb)
            values, vectors = descending_eigh(
                torch.stack([parts[j, :, j].contiguous() for j in range(self.q)])
            )
            self.spectra = values, vectors  # of G_jj: (q, nb), (q, nb, nb)

    @cached_property
    def strips(self) -> tuple[list[Tensor], list[Tensor]]:
        """All left singular vectors of the block rows (mb, k), and right ones of the block columns
        (nb, k), taken once for all ranks."""
        across = self.weight.view(self.p * self.mb, self.q, self.nb)
        rows = [thin_svd(strip)[0] for strip in self.weight]
        return rows, [thin_svd(across[:, j].T)[0] for j in range(self.q)]

    def rel_error(self, at: Bases) -> float:
        """Relative error, from the residual itself."""
        return self.target.rel_error((self.weight - at.dense()).flatten(0, 1))

    def descend(
        self,
        starts: Iterable[Bases],
        n_iter_max: int,
        tol: float | None,
        trial: int = 0,
        exact: float = 0.0,
    ) -> Descent[Bases]:
        """Sweeps from the best of `starts`, or from ahead of where the last one ended."""

        def sweep(at: Bases) -> tuple[Bases, float]:
            tried = self.sweep(at).balanced()
            return tried, self.rel_error(tried)

        return descend(
            (Descent.at(start, self.rel_error(start)) for start in starts),
            sweep,
            tol,
            n_iter_max,
            trial=trial,
            exact=exact,
            ahead=Bases.beyond,
            rise=FALL,
            enough=0.0,
        )

    def sweep(self, at: Bases) -> Bases:
        """L, then column by column of blocks s and R."""
        at = self.step_left(at)
        residual = self.weight - at.dense()
        for j in range(self.q):
            at, residual = self._step_scales(at, residual, j)
            at, residual = self._step_right(at, residual, j)
        return at

    def step_left(self, at: Bases) -> Bases:
        """All L_i at once: block rows do not meet in the error."""
        rows = (at.scales[..., None] * at.right).transpose(1, 2).flatten(2)  # (p, r, q nb)
        seen = self.target.apply(rows)
        gradient = self.target.apply(self.weight - at.dense()) @ rows.mT  # (p, mb, r)
        step = _solve(seen @ rows.mT, gradient.mT).mT
        return replace(at, left=at.left + step)

    def best_scales(self, at: Bases) -> Bases:
        """Each s_ij as if its block were alone in the error, without G: a start."""
        blocks = self.weight.view(self.p, self.mb, self.q, self.nb)
        normal = (at.left.mT @ at.left)[:, None] * (at.right @ at.right.mT)  # (p, q, r, r)
        matched = torch.einsum("iar,iajb,jrb->ijr", at.left, blocks, at.right)
        return replace(at, scales=_solve(normal, matched[..., None])[..., 0])

    def _step_scales(self, at: Bases, residual: Tensor, j: int) -> tuple[Bases, Tensor]:
        """All s_ij of one j."""
        right = at.right[j]  # (r, nb)
        part = slice(j * self.nb, (j + 1) * self.nb)
        pull = self._pull(residual, part)  # (p, mb, nb)
        inner = right @ self._own(right, part).mT
        normal = (at.left.mT @ at.left) * inner  # (p, r, r)
        gradient = ((at.left.mT @ pull) * right).sum(2)  # (p, r)
        step = _solve(normal, gradient[:, :, None])[:, :, 0]
        scales = at.scales.clone()
        scales[:, j] += step
        residual = residual.clone()
        residual[:, :, part] -= (at.left * step[:, None]) @ right
        return replace(at, scales=scales), residual

    def _step_right(self, at: Bases, residual: Tensor, j: int) -> tuple[Bases, Tensor]:
        """R_j: C R G_jj = gradient, with C = sum over i of diag(s) L_i^T L_i diag(s)."""
        part = slice(j * self.nb, (j + 1) * self.nb)
        scaled = at.left * at.scales[:, j, None]  # (p, mb, r)
        normal = (scaled.mT @ scaled).sum(0)
        gradient = (scaled.mT @ self._pull(residual, part)).sum(0)  # (r, nb)
        if self.gram is None:
            step = _solve(normal, gradient)
        else:
            # Both in their eigenvectors, where the equations fall apart.
            values, vectors = descending_eigh(normal)
            inputs, directions = self.spectra[0][j], self.spectra[1][j]
            curvature = values[:, None] * inputs
            ridge = RIDGE * curvature.max()
            turned = vectors.T @ gradient @ directions
            step = vectors @ (turned / _whole(curvature + ridge)) @ directions.T
        moved = at.right.clone()
        moved[j] += step
        residual = residual.clone()
        residual[:, :, part] -= scaled @ step
        return replace(at, right=moved), residual

    def _own(self, right: Tensor, part: slice) -> Tensor:
        """Times G_jj."""
        return right if self.gram is None else right @ self.gram[part, part]

    def _pull(self, residual: Tensor, part: slice) -> Tensor:
        """The columns of one j of the residual times G."""
        return residual[:, :, part] if self.gram is None else residual @ self.gram[:, part]


def _solve(normal: Tensor, gradient: Tensor) -> Tensor:
    """(H + ridge)^-1 g for stacks of positive semidefinite H (r, r) and g (r, k)."""
    largest = normal.diagonal(dim1=-2, dim2=-1).amax(-1)
    ridge = torch.where(largest > 0, largest, 1.0) * RIDGE
    while True:
        shifted = normal + ridge[..., None, None] * identity(normal.shape[-1], normal)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed.any():
            solved: Tensor = torch.cholesky_solve(gradient, factor)
            return solved
        ridge = torch.where(failed > 0, ridge * 30, ridge)


def _whole(tensor: Tensor) -> Tensor:
    """One in place of zero."""
    return torch.where(tensor > 0, tensor, 1)
