"""The iterates of CP: directions and weights of any number of starts.

Several starts run side by side: a factor matrix is (n, s, r) with s starts, seen as s r columns
by the MTTKRP, which treats columns alike, and as s systems of r unknowns by the solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CPState:
    """Iterates of s starts of rank r.

    factors  (n_k, s, r) each, columns of unit length, in the working dtype
    weights  (s, r) float64
    known    their Grams, where these are at hand
    """

    factors: tuple[Tensor, ...]
    weights: Tensor
    known: tuple[Tensor, ...] | None = None

    @property
    def grams(self) -> tuple[Tensor, ...]:
        """U_k^T U_k of each mode, (s, r, r) float64."""
        return self.known or tuple([gram(u) for u in self.factors])

    @property
    def starts(self) -> int:
        return int(self.weights.shape[0])

    @property
    def columns(self) -> list[Tensor]:
        """Factors as (n_k, s r)."""
        return [u.flatten(1) for u in self.factors]

    def start(self, index: int) -> CPState:
        """One of the starts, alone."""
        return self if self.starts == 1 else self.pick([index])

    def pick(self, indices: list[int]) -> CPState:
        """Some of the starts."""
        return CPState(tuple(u[:, indices] for u in self.factors), self.weights[indices])


def make_state(factors: list[Tensor], weights: Tensor) -> CPState:
    """A state from factors (n_k, s, r), whose columns are normalised, and weights (s, r)."""
    weights = weights.to(torch.float64)
    columns = []
    for u in factors:
        unit, length = unit_columns(u)
        weights = weights * length
        columns.append(unit)
    return CPState(tuple(columns), weights)


def unit_columns(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Columns at unit length over the first mode, and their lengths in float64, also where squares
    would overflow or vanish; a column of zeros stays one."""
    largest = None
    if factor.dtype == torch.float64:
        largest = factor.detach().abs().amax(0)
        largest = torch.where(largest > 0, largest, 1)
    unit = factor if largest is None else factor / largest
    length: Tensor = torch.linalg.vector_norm(unit, dim=0, dtype=torch.float64)
    unit = (unit / length.clamp_min(torch.finfo(torch.float64).tiny)).to(factor.dtype)
    return unit, length if largest is None else length * largest


def gram(factor: Tensor) -> Tensor:
    """U^T U in float64: (s, r, r) from (n, s, r)."""
    u = factor.to(torch.float64).transpose(0, 1)
    return torch.bmm(u.mT, u)
