"""Sweeps of PARAFAC2: the best projections, then least squares on the projected slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent
from tensorlrf.decomposition._target import CANCELLED
from tensorlrf.decomposition.coupled._several import unit_columns
from tensorlrf.decomposition.linalg._gram import descending_eigh, thin_svd
from tensorlrf.decomposition.linalg._solve import proximal_step
from tensorlrf.factors.algebra import khatri_rao

EARLY, STEPS, NARROW_STEPS = 20, 5, 2
"""Passes of least squares for A, B and C on the slices as they are projected: one in early sweeps,
since many lead to local minima more often, and then so many, which cost far less than a sweep; on
narrow slices, where they cost as much as the projections, fewer."""

CLEAR = 1e-12
"""Smallest eigenvalue of M^T M, over the largest, with which the polar factor of M is had from it:
some 1e-4 off then, of which two steps of Newton and Schulz leave rounding."""

BEYOND, WORTH = 10, 3
"""Columns of narrow slices beyond the rank, and times fewer ones from which on they are made."""

Factors3 = tuple[Tensor, Tensor, Tensor]


class State(NamedTuple):
    """A (K, r), B (r, r) and C (J, r), the projections P (K, n, r) they were fitted on, and how
    many sweeps have led to them."""

    factors: Factors3
    projections: Tensor
    sweeps: int = 0


class Slices:
    """Slices (I_k, J) of float64 as one stack (K, n, J), with zeros below those of few rows.

    A slice of more rows than columns is taken in a basis of its columns (X_k = Q_k H_k), in which
    nothing is lost and sweeps cost what J rows do.
    """

    def __init__(self, slices: Sequence[Tensor], rank: int, steps: int = STEPS) -> None:
        self.rank, self.count, self.steps = rank, len(slices), steps
        self.rows = tuple(int(x.shape[0]) for x in slices)
        self.columns = int(slices[0].shape[1])
        self.bases: list[Tensor | None] = []
        kept = []
        for x in slices:
            tall = x.shape[0] > max(x.shape[1], rank)
            basis, small = _in_basis(x, rank) if tall else (None, x)
            self.bases.append(basis)
            kept.append(small)
        self.heights = [int(x.shape[0]) for x in kept]
        self.stack = slices[0].new_zeros(self.count, max(self.heights), self.columns)
        for own, x in zip(self.stack, kept, strict=True):
            own[: x.shape[0]] = x
        self.norm = _square(self.stack)

    @property
    def rounding(self) -> float:
        """A relative error that is rounding."""
        return 16 * torch.finfo(torch.float64).eps

    def square(self) -> Tensor:
        """The sum of X_k^T X_k, (J, J)."""
        flat = self.stack.flatten(0, 1)
        return flat.T @ flat

    def unpacked(self, projections: Tensor) -> Tensor:
        """P_0 upon P_1 upon the others (sum of rows, r), out of the bases."""
        own = zip(self.bases, projections, self.heights, strict=True)
        return torch.cat([p[:n] if q is None else q @ p[:n] for q, p, n in own])

    def descent(self, factors: Factors3) -> Descent[State]:
        """A start."""
        state = State(factors, self._projections(self.stack @ factors[2], factors))
        return Descent.at(state, self._relative(self._residual(state)))

    def sweep(self, state: State) -> tuple[State, float]:
        """New projections, and steps for A, B and C on what they leave (K, r, J) of the slices."""
        projections = self._projections(self.stack @ state.factors[2], state.factors)
        projected = projections.mT @ self.stack
        factors = state.factors
        for _ in range(self.steps if state.sweeps >= EARLY else 1):
            factors = _step(projected, factors)
        found = State(factors, projections, state.sweeps + 1)
        inside = _square(projected - _product(factors))
        squared = self.norm - _square(projected) + inside
        if squared < CANCELLED * self.norm:
            squared = self._residual(found)
        return found, self._relative(squared)

    def _residual(self, state: State) -> float:
        return _square(self.stack - state.projections @ _product(state.factors))

    def _relative(self, squared: float) -> float:
        return math.sqrt(max(squared, 0.0) / (self.norm or 1.0))  # of zeros the absolute one

    def _projections(self, seen: Tensor, factors: Factors3) -> Tensor:
        """The polar factors (K, n, r) of X_k C diag(A[k]) B^T, of X_k C (K, n, r)."""
        a, b, _ = factors
        matrices = (seen * a[:, None]) @ b.T
        energies, vectors = descending_eigh(matrices.mT @ matrices)  # (K, r), (K, r, r)
        clear = energies[:, -1] > CLEAR * energies[:, 0]
        roots = torch.where(clear[:, None], energies, 1).rsqrt()
        polar = matrices @ ((vectors * roots[:, None]) @ vectors.mT)
        for _ in range(2):
            polar = torch.baddbmm(polar, polar, polar.mT @ polar, beta=1.5, alpha=-0.5)
        for k in (~clear).nonzero().flatten().tolist():
            # Of less than full rank: any completion of it does, within the rows that are there.
            n = self.heights[k]
            left, _, right = thin_svd(matrices[k, :n])
            polar[k] = 0
            polar[k, :n] = left @ right
        return polar


class Narrow(NamedTuple):
    """Slices X_k V in the leading right singular vectors V (J, s) of all, and these.

    Rows of X_k V are no more than s in a basis of its columns, so that a sweep costs next to
    nothing. What V leaves out is mostly noise; sweeps over the slices decide.
    """

    slices: Slices
    basis: Tensor

    @classmethod
    def of(cls, whole: Slices) -> Narrow | None:
        """None where it saves little."""
        s = whole.rank + BEYOND
        if s * WORTH > whole.columns:
            return None
        basis = descending_eigh(whole.square())[1][:, :s]
        seen = zip(whole.stack @ basis, whole.heights, strict=True)
        return cls(Slices([x[:n] for x, n in seen], whole.rank, NARROW_STEPS), basis)

    def widened(self, state: State, whole: Slices) -> Descent[State]:
        """Where sweeps over the slices themselves begin."""
        a, b, c = state.factors
        found = whole.descent((a, b, self.basis @ c))
        return Descent.at(found.state._replace(sweeps=state.sweeps), found.error)


def _in_basis(slice_: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Q (I, n) and H (n, J) with X = Q H; n is J, or the rank where that is more."""
    short = rank - slice_.shape[1]
    if short > 0:
        basis, small = torch.linalg.qr(
            torch.cat([slice_, slice_.new_zeros(slice_.shape[0], short)], dim=1)
        )
        return basis, small[:, : slice_.shape[1]]
    basis, small = torch.linalg.qr(slice_)
    return basis, small


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor)) ** 2


def _product(factors: Factors3) -> Tensor:
    """B diag(A[k]) C^T for all k, (K, r, J)."""
    a, b, c = factors
    return (b * a[:, None]) @ c.T


def _step(projected: Tensor, factors: Factors3) -> Factors3:
    """One pass of alternating least squares over A, B and C (Kiers et al. 1999, step 2)."""
    a, b, c = factors
    seen = projected @ c  # (K, r, r')
    square = c.T @ c
    a = proximal_step((b.T @ b) * square, (seen * b).sum(1).T, a.T).T
    a, lengths = unit_columns(a)
    b = b * lengths
    b = proximal_step((a.T @ a) * square, (seen * a[:, None]).sum(0).T, b.T).T
    b, lengths = unit_columns(b)
    c = c * lengths
    right = khatri_rao((a, b)).T @ projected.flatten(0, 1)  # (r, J)
    c = proximal_step((a.T @ a) * (b.T @ b), right, c.T).T
    return a, b, c
