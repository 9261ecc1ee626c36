"""Alternating least squares for CP (Carroll & Chang 1970; Harshman 1970; Kolda & Bader 2009, 3.4).

Several starts run side by side: a factor matrix is (n, s, r) with s starts, seen as s r columns
by the MTTKRP, which treats columns alike, and as s systems of r unknowns by the solve.
Nothing here reads a value back from the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition._mttkrp import CutTensor, contract_left, contract_right, split
from tensorlrf.factors._cp import khatri_rao

# The proximal ridge, as a share of the unit diagonal of the Hadamard product of Grams: it opens
# at the first value, is multiplied by the second after each sweep, and ends at the floor. Rounding
# of the MTTKRP, about eps, reaches the model as eps / sqrt(ridge) in directions that the data leave
# open: a lower floor would let the error drift upwards on singular systems.
RIDGE_START = 1e-2
RIDGE_DECAY = 0.3
RIDGE_FLOOR = {torch.float32: 5e-7, torch.float64: 1e-12}

# Added to the diagonal of a system of columns near unit length: far below what counts, with an
# inverse within the dtype.
_LEAST = {torch.float32: 1e-30, torch.float64: 1e-200}


@dataclass(frozen=True)
class CPState:
    """Iterates of s starts of rank r.

    factors   (n_k, s, r) each, columns of unit length, in the working dtype
    weights   (s, r) float64
    grams     (s, r, r) float64, U_k^T U_k of each mode
    progress  (s,) float64, ||X_hat||^2 - 2 <X, X_hat> after the last sweep that measured it
    """

    factors: tuple[Tensor, ...]
    weights: Tensor
    grams: tuple[Tensor, ...]
    progress: Tensor

    @property
    def starts(self) -> int:
        return int(self.weights.shape[0])

    @property
    def columns(self) -> list[Tensor]:
        """Factors as (n_k, s r)."""
        return [u.flatten(1) for u in self.factors]

    def copied(self) -> CPState:
        """Of ordinary tensors, which autograd takes, also where these are inference tensors."""
        with torch.inference_mode(False):
            return CPState(
                tuple(u.clone() for u in self.factors),
                self.weights.clone(),
                tuple(g.clone() for g in self.grams),
                self.progress.clone(),
            )

    def start(self, index: int) -> CPState:
        """One of the starts, alone."""
        return self if self.starts == 1 else self.pick([index])

    def pick(self, indices: list[int]) -> CPState:
        """Some of the starts."""
        return CPState(
            tuple(u[:, indices] for u in self.factors),
            self.weights[indices],
            tuple(g[indices] for g in self.grams),
            self.progress[indices],
        )


def make_state(factors: list[Tensor], weights: Tensor) -> CPState:
    """A state from factors (n_k, s, r), whose columns are normalised, and weights (s, r)."""
    weights = weights.to(torch.float64)
    unit = []
    for u in factors:
        length = column_lengths(u)  # (s, r)
        weights = weights * length
        unit.append((u / length.clamp_min(torch.finfo(u.dtype).tiny)).to(u.dtype))
    return CPState(
        tuple(unit), weights, tuple(gram(u) for u in unit), torch.zeros_like(weights[:, 0])
    )


def column_lengths(factor: Tensor) -> Tensor:
    """Norms over the first mode in float64, also where squares would overflow or vanish."""
    largest = factor.detach().abs().amax(0)
    unit = torch.where(largest > 0, largest, 1)
    lengths: Tensor = torch.linalg.vector_norm(factor / unit, dim=0, dtype=torch.float64)
    return lengths * unit


def gram(factor: Tensor) -> Tensor:
    """U^T U in float64: (s, r, r) from (n, s, r)."""
    u = factor.to(torch.float64)
    return torch.bmm(u.permute(1, 2, 0), u.transpose(0, 1))


def hadamard(grams: tuple[Tensor, ...], skip: int | None = None) -> Tensor:
    """Hadamard product of all Grams, or of all but one: (s, r, r)."""
    first, *others = [g for k, g in enumerate(grams) if k != skip]
    for g in others:
        first = first * g
    return first


def ridge_at(sweep: int, dtype: torch.dtype) -> float:
    """The annealed ridge of a sweep, counted from 0."""
    return max(RIDGE_START * RIDGE_DECAY**sweep, RIDGE_FLOOR[dtype])


def proximal_solve(system: Tensor, rhs: Tensor, old: Tensor, ridge: float) -> Tensor:
    """argmin over B of the least-squares loss + ridge ||B - old||^2, for each start.

    system (s, r, r) symmetric, float64; rhs and old (n, s, r), and the result, of one dtype. The
    step, not the solution, is what is solved for, so the ridge moves the path and not the point
    where it ends, and rounding of the dtype of `rhs` costs no more than it has cost `rhs`.
    The ridge keeps the inverse from failing: `system` is a Gram with diagonal at most one, and its
    rounding errors, about r 1e-16, are far below RIDGE_FLOOR.
    """
    # The inverse of a small matrix, once, is cheaper than triangular solves with n right sides,
    # and what it loses is lost from a step, which the next sweep takes again.
    identity = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    inverse, _ = torch.linalg.inv_ex(torch.add(system, identity, alpha=ridge))
    system, inverse = system.to(rhs.dtype), inverse.to(rhs.dtype)
    if system.shape[0] == 1:  # one start is the rule, and calls are what a small problem costs
        residual = torch.addmm(rhs[:, 0], old[:, 0], system[0], alpha=-1)
        return torch.addmm(old[:, 0], residual, inverse[0])[:, None]
    old_rows, rhs_rows = old.transpose(0, 1), rhs.transpose(0, 1)  # (s, n, r)
    residual = torch.baddbmm(rhs_rows, old_rows, system, alpha=-1)
    return torch.baddbmm(old_rows, residual, inverse).transpose(0, 1)


def normalise(solution: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Unit columns (n, s, r) in the dtype of `old`, and their former lengths (s, r), float64.

    A column that vanished keeps its old direction, with weight zero: it can come back.
    """
    length = torch.linalg.vector_norm(solution, dim=0)  # (s, r)
    tiny = torch.finfo(solution.dtype).tiny
    unit = (solution / length.clamp_min(tiny)).to(old.dtype)
    return torch.where(length > tiny, unit, old), length.to(torch.float64)


def unit_of(norm: float) -> float:
    """A power of two near a norm; one for that of a zero tensor."""
    return math.ldexp(1.0, math.frexp(norm)[1]) if norm > 0 else 1.0


def als_sweep(
    tensor: CutTensor,
    state: CPState,
    ridge: float,
    fixed: frozenset[int] = frozenset(),
    *,
    unit: float = 1.0,
    measure: bool = False,
) -> CPState:
    """One pass over all modes that are not fixed; see `als_sweeps`."""
    return als_sweeps(tensor, state, (ridge,), fixed, unit=unit, measure=measure)


def als_sweeps(
    tensor: CutTensor,
    state: CPState,
    ridges: Sequence[float],
    fixed: frozenset[int] = frozenset(),
    *,
    unit: float = 1.0,
    measure: bool = False,
) -> CPState:
    """A pass over all modes that are not fixed, two full contractions, for each of the ridges.

    Meanwhile the first free mode has the weights in its columns, as multiples of `unit`, a power
    of two near ||X||, so that squares of them stay within float32; columns are brought to unit
    length at the end. `measure` brings `progress` up to date, by a few small products.
    """
    free = [k for k in (*tensor.cut.inner, *tensor.cut.outer) if k not in fixed]
    sweep = _Sweep(tensor, state, free, unit)
    for ridge in ridges:
        sweep.over_modes(ridge)
    columns = [u.view(old.shape) for u, old in zip(sweep.columns, state.factors, strict=True)]
    factors, grams = list(state.factors), list(state.grams)
    weights = torch.full_like(state.weights, unit)
    for k in free:
        factors[k], length = normalise(columns[k], state.factors[k])
        grams[k] = gram(factors[k])
        weights = weights * length
    progress = sweep.progress() * unit**2 if measure else state.progress
    return CPState(tuple(factors), weights, tuple(grams), progress)


class _Sweep:
    """Columns (n_k, s r) in which the model is unit times the sum of their outer products, and
    their Grams in float64, (s, r, r), of one start (r, r).

    The step of a mode is that of unit columns: with D the lengths that the columns of the others
    multiply up to, the ridge is on (B - B_old) D, and D^2 is the diagonal of the system (the
    scaling of Marquardt 1963). So nothing is normalised between modes.
    """

    def __init__(self, tensor: CutTensor, state: CPState, free: list[int], unit: float) -> None:
        self.tensor, self.free, self.starts, self.unit = tensor, free, state.starts, unit
        self.columns, first = state.columns, free[0]
        weights = (state.weights / unit).to(self.columns[first].dtype).flatten()
        self.columns[first] = self.columns[first] * weights
        self.grams = [g[0] if self.starts == 1 else g for g in state.grams]
        self.grams[first] = self._gram(self.columns[first])
        self.identity = torch.eye(
            state.weights.shape[1], dtype=torch.float64, device=state.weights.device
        )
        # A column of zeros has a system of zeros, and stays as it is.
        self.floor = self.identity * _LEAST[self.columns[0].dtype]
        self.measured = self.floor, self.columns[0]

    def over_modes(self, ridge: float) -> None:
        ridged = self.identity * ridge + 1.0
        cut = self.tensor.cut
        if self._any_free(cut.inner):
            self._descend(self.tensor.contract_outer(self.columns), cut.inner, ridged)
        if self._any_free(cut.outer):
            self._descend(self.tensor.contract_inner(self.columns), cut.outer, ridged)

    def progress(self) -> Tensor:
        """||X_hat||^2 - 2 <X, X_hat> of each start, (s,), in squares of the unit."""
        system, rhs = self.measured
        last = self.free[-1]
        model = (system * self.grams[last]).view(self.starts, -1).sum(1)
        products = rhs.to(torch.float64) * self.columns[last]
        inner = products.view(len(rhs), self.starts, -1).sum((0, 2))
        return model - 2 * inner / self.unit

    def _any_free(self, modes: tuple[int, ...]) -> bool:
        return any(k in self.free for k in modes)

    def _descend(self, partial: Tensor, modes: tuple[int, ...], ridged: Tensor) -> None:
        """Update `modes` in order, from the tensor already contracted over all others."""
        if len(modes) == 1:
            self._update(modes[0], partial, ridged)
            return
        at = split(tuple(self.tensor.cut.shape[k] for k in modes))
        left, right = modes[:at], modes[at:]
        if self._any_free(left):
            other = khatri_rao(tuple(self.columns[k] for k in right))
            self._descend(contract_right(partial, other), left, ridged)
        if self._any_free(right):
            other = khatri_rao(tuple(self.columns[k] for k in left))
            self._descend(contract_left(partial, other), right, ridged)

    def _update(self, mode: int, rhs: Tensor, ridged: Tensor) -> None:
        """The least-squares factor of one mode, all others held; `rhs` (n_mode, s r) is of X."""
        old = self.columns[mode]
        system = hadamard(tuple(self.grams), mode)
        damped = torch.addcmul(self.floor, system, ridged)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(damped)[0]).to(old.dtype)
        near = system.to(old.dtype)
        scale = 1 / self.unit
        if self.starts == 1:
            residual = torch.addmm(rhs, old, near, beta=scale, alpha=-1)
            new = torch.addmm(old, residual, inverse)
        else:
            rows = old.view(len(old), self.starts, -1).transpose(0, 1)  # (s, n, r)
            wanted = rhs.view(len(old), self.starts, -1).transpose(0, 1)
            step = torch.baddbmm(wanted, rows, near, beta=scale, alpha=-1)
            new = torch.baddbmm(rows, step, inverse).transpose(0, 1).flatten(1)
        self.columns[mode], self.grams[mode] = new, self._gram(new)
        self.measured = system, rhs

    def _gram(self, columns: Tensor) -> Tensor:
        if self.starts > 1:
            return gram(columns.view(len(columns), self.starts, -1))
        wide = columns.to(torch.float64)
        return wide.mT @ wide
