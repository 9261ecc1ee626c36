"""Alternating least squares for CP (Carroll & Chang 1970; Harshman 1970; Kolda & Bader 2009, 3.4).

Several starts run side by side: a factor matrix is (n, s, r) with s starts, seen as s r columns
by the MTTKRP, which treats columns alike, and as s systems of r unknowns by the solve.
Nothing here reads a value back from the device.
"""

from __future__ import annotations

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
        return self.pick([index])

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


def update_mode(state: CPState, mode: int, mttkrp: Tensor, ridge: float, measure: bool) -> CPState:
    """The least-squares factor of one mode, all others held; `mttkrp` is (n_mode, s r)."""
    old = state.factors[mode]
    system = hadamard(state.grams, mode)
    rhs = mttkrp.view(old.shape)
    before = old * state.weights.to(old.dtype)
    factor, weights = normalise(proximal_solve(system, rhs, before, ridge), old)  # (n, s, r)
    own = gram(factor)
    progress = state.progress
    if measure:
        inner = (rhs.to(torch.float64) * (factor * weights)).sum((0, 2))  # <X, X_hat>
        model = (weights[:, None] @ (system * own) @ weights[:, :, None]).flatten()  # ||X_hat||^2
        progress = model - 2 * inner
    return CPState(
        _put(state.factors, mode, factor), weights, _put(state.grams, mode, own), progress
    )


def als_sweep(
    tensor: CutTensor,
    state: CPState,
    ridge: float,
    fixed: frozenset[int] = frozenset(),
    *,
    measure: bool = False,
) -> CPState:
    """One pass over all modes that are not fixed: two full contractions.

    `measure` brings `progress` up to date, at the cost of a few small products.
    """
    cut = tensor.cut
    last = [k for k in (*cut.inner, *cut.outer) if k not in fixed][-1]

    def descend(state: CPState, partial: Tensor, modes: tuple[int, ...]) -> CPState:
        """Update `modes` in order, from the tensor already contracted over all others."""
        if len(modes) == 1:
            return update_mode(state, modes[0], partial, ridge, measure and modes[0] == last)
        at = split(tuple(cut.shape[k] for k in modes))
        left, right = modes[:at], modes[at:]
        if not fixed.issuperset(left):
            other = khatri_rao(tuple(state.factors[k].flatten(1) for k in right))
            state = descend(state, contract_right(partial, other), left)
        if not fixed.issuperset(right):
            other = khatri_rao(tuple(state.factors[k].flatten(1) for k in left))
            state = descend(state, contract_left(partial, other), right)
        return state

    if not fixed.issuperset(cut.inner):
        state = descend(state, tensor.contract_outer(state.columns), cut.inner)  # (M, s r)
    if not fixed.issuperset(cut.outer):
        state = descend(state, tensor.contract_inner(state.columns), cut.outer)  # (P Q, s r)
    return state


def _put(values: tuple[Tensor, ...], index: int, value: Tensor) -> tuple[Tensor, ...]:
    return (*values[:index], value, *values[index + 1 :])
