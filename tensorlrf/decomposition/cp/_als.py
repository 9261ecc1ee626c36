"""Alternating least squares for CP: its ridge, its sweeps, and the solve of sampled systems."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._small import NumpySweeps, is_small
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.cp._sweep import Sweeps, TorchSweeps
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor

# The proximal ridge, as a share of the unit diagonal of the Hadamard product of Grams: it opens
# at the first value, is multiplied by the second after each sweep, and ends at the floor. Rounding
# of the MTTKRP, about eps, reaches the model as eps / sqrt(ridge) in directions that the data leave
# open: a lower floor would let the error drift upwards on singular systems.
RIDGE_START = 1e-2
RIDGE_DECAY = 0.3
RIDGE_FLOOR = {torch.float32: 5e-7, torch.float64: 1e-12}


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


def unit_of(norm: float) -> float:
    """A power of two near a norm; one for that of a zero tensor."""
    return math.ldexp(1.0, math.frexp(norm)[1]) if norm > 0 else 1.0


def sweeps_of(
    tensor: CutTensor, state: CPState, fixed: frozenset[int] = frozenset(), unit: float = 1.0
) -> Sweeps[Any]:
    """Sweeps from a state over all modes that are not fixed, by numpy where the tensor is small.

    The first free mode has the weights in its columns, as multiples of `unit`, a power of two near
    ||X||, so that squares of them stay within float32.
    """
    graph = any(t.requires_grad for t in (tensor.blocks, state.weights, *state.factors))
    small = state.starts == 1 and not graph and is_small(tensor, state.weights.shape[1])
    return (NumpySweeps if small else TorchSweeps)(tensor, state, fixed, unit)


def als_sweep(
    tensor: CutTensor,
    state: CPState,
    ridge: float,
    fixed: frozenset[int] = frozenset(),
    *,
    unit: float = 1.0,
) -> CPState:
    """One pass over all modes that are not fixed, two full contractions."""
    return sweeps_of(tensor, state, fixed, unit).run((ridge,)).state()
