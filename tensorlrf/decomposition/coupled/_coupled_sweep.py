"""Sweeps over the factors of coupled CP models: least squares from all tensors of a mode."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, beyond
from tensorlrf.decomposition._target import CANCELLED
from tensorlrf.decomposition.coupled._several import unit_columns
from tensorlrf.decomposition.linalg._solve import PROXIMAL_RIDGE, proximal_step
from tensorlrf.factors import CPFactors
from tensorlrf_kernels.mttkrp import mttkrp


class State(NamedTuple):
    """The factor (n, r) of every mode, with unit columns, and the weights (r,) of every part."""

    factors: dict[Hashable, Tensor]
    weights: list[Tensor]


@dataclass(frozen=True)
class Part:
    """A tensor in float64, zero where its mask is False; the names of its modes; the factor of its
    squared error."""

    tensor: Tensor
    mask: Tensor | None
    names: tuple[Hashable, ...]
    share: float

    @cached_property
    def norm(self) -> float:
        """Squared, of what is observed."""
        return float(self.tensor.square().sum())

    @cached_property
    def seen(self) -> Tensor | None:
        """The mask as numbers."""
        return None if self.mask is None else self.mask.to(self.tensor.dtype)

    @property
    def count(self) -> int:
        """Of entries that are observed."""
        return self.tensor.numel() if self.mask is None else int(self.mask.sum())

    def factors(self, state: Mapping[Hashable, Tensor]) -> list[Tensor]:
        """In the order of the modes."""
        return [state[name] for name in self.names]

    def residual(self, model: Tensor) -> float:
        """The squared error of a model, where it is observed."""
        left = self.tensor - model
        return float((left if self.seen is None else left * self.seen).square().sum())

    def normal(self, factors: Sequence[Tensor], mode: int) -> Tensor:
        """The normal matrix (r, r) of the rows of a mode, or of each of them (n, r, r)."""
        if self.seen is None:
            return reduce(mul, (f.T @ f for k, f in enumerate(factors) if k != mode))
        # sum over observed entries of k k^T, where k are rows of the Khatri-Rao product: itself a
        # product of that kind, of pairs of columns.
        r = factors[0].shape[1]
        i, j = torch.triu_indices(r, r, device=self.tensor.device)
        pairs = [f[:, i] * f[:, j] for f in factors]
        half = mttkrp(self.seen, pairs, mode)  # (n, r (r + 1) / 2)
        whole = half.new_zeros(half.shape[0], r, r)
        whole[:, i, j] = half
        whole[:, j, i] = half
        return whole


class Coupled:
    """Several parts, and one rank for all of them."""

    def __init__(self, parts: Sequence[Part], rank: int) -> None:
        self.parts, self.rank = list(parts), rank
        self.sizes: dict[Hashable, int] = {}
        for part in parts:
            for name, n in zip(part.names, part.tensor.shape, strict=True):
                self.sizes[name] = int(n)
        self.norm = sum(part.share * part.norm for part in parts)
        # Modes of one part first: those that are shared then see all of them.
        count = {name: sum(name in part.names for part in parts) for name in self.sizes}
        self.order = sorted(self.sizes, key=lambda name: count[name])

    def observed(self, name: Hashable) -> Tensor:
        """How many entries are, for each index (n,) of a mode."""
        total = self.parts[0].tensor.new_zeros(self.sizes[name])
        for part in self.parts:
            if name in part.names:
                mode = part.names.index(name)
                if part.mask is None:
                    return total + 1
                total = total + part.mask.movedim(mode, 0).flatten(1).sum(1)
        return total

    def descent(self, factors: Mapping[Hashable, Tensor]) -> Descent[State]:
        """A start, of weights that fit best together with its last factors: those of one sweep."""
        named = {name: unit_columns(f)[0] for name, f in factors.items()}
        ones = [next(iter(named.values())).new_ones(self.rank) for _ in self.parts]
        return Descent.at(*self.sweep(State(named, ones)))

    def sweep(self, state: State) -> tuple[State, float]:
        """New factors, mode by mode, and the relative error that they have."""
        factors, weights = dict(state.factors), list(state.weights)
        last: dict[int, float] = {}
        for name in self.order:
            owners = [k for k, part in enumerate(self.parts) if name in part.names]
            rights = self._update(name, owners, factors, weights)
            for k, right in zip(owners, rights, strict=True):
                last[k] = float((right * (factors[name] * weights[k])).sum())
        found = State(factors, weights)
        squared = sum(
            part.share * self._squared(part, found, k, last[k]) for k, part in enumerate(self.parts)
        )
        return found, math.sqrt(max(squared, 0.0) / (self.norm or 1.0))  # of zeros the absolute one

    def _update(
        self,
        name: Hashable,
        owners: Sequence[int],
        factors: dict[Hashable, Tensor],
        weights: list[Tensor],
    ) -> list[Tensor]:
        """The factor of a mode from all its owners; their products with the other factors."""
        old = factors[name]
        normal, rhs, rights = None, torch.zeros_like(old), []
        # In units in which the weights of all owners together are one.
        unit = sum((self.parts[k].share * weights[k].square() for k in owners), old.new_zeros(()))
        unit = torch.where(unit > 0, unit, 1).sqrt()
        for k in owners:
            part, share = self.parts[k], self.parts[k].share
            own, mode = part.factors(factors), part.names.index(name)
            rights.append(mttkrp(part.tensor, own, mode))
            scaled = weights[k] / unit
            rhs = rhs + share * rights[-1] * scaled
            matrix = share * part.normal(own, mode) * scaled[:, None] * scaled
            normal = matrix if normal is None else normal + matrix
        assert normal is not None
        found = _solved(normal, rhs, old * unit) / unit
        factors[name], lengths = unit_columns(found)
        for k in owners:
            weights[k] = weights[k] * lengths
        return rights

    def _squared(self, part: Part, state: State, k: int, cross: float) -> float:
        """The squared error of a part, of which `cross` is the inner product with its model."""
        factors = part.factors(state.factors)
        if part.mask is None:
            inner = reduce(mul, (f.T @ f for f in factors))
            square = float(state.weights[k] @ inner @ state.weights[k])
            squared = part.norm - 2 * cross + square
            if squared > CANCELLED * self.norm:
                return squared
        return part.residual(CPFactors(state.weights[k], tuple(factors)).to_dense())


def ahead(here: State, last: State, reach: float) -> State:
    """As far ahead of here as `last` is behind, times `reach`."""
    names = list(here.factors)
    factors = beyond([here.factors[n] for n in names], [last.factors[n] for n in names], reach)
    return State(dict(zip(names, factors, strict=True)), beyond(here.weights, last.weights, reach))


def _solved(normal: Tensor, rhs: Tensor, old: Tensor) -> Tensor:
    """(n, r) from `old` by least squares, with one normal matrix (r, r) for all rows or with one
    for each; a proximal term leaves what a matrix does not see as it is."""
    if normal.ndim == 2:
        return proximal_step(normal, rhs.T, old.T).T
    residual = rhs - (normal @ old[:, :, None])[:, :, 0]
    ridge = PROXIMAL_RIDGE * normal.diagonal(dim1=-2, dim2=-1).amax().clamp(min=1e-300)
    system = normal + ridge * torch.eye(old.shape[1], dtype=old.dtype, device=old.device)
    lower, _ = torch.linalg.cholesky_ex(system)
    return old + torch.cholesky_solve(residual[:, :, None], lower)[:, :, 0]
