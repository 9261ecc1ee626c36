"""Sweeps of CP whose factors are constrained, each solved by ADMM or a Procrustes step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent
from tensorlrf.decomposition.linalg.multilinear._columns import spread_weights
from tensorlrf.decomposition.linalg.multilinear._tree import TorchTree
from tensorlrf.decomposition.nonnegative._admm import Duals, solve_factor
from tensorlrf.decomposition.nonnegative._constraints import Factor
from tensorlrf.decomposition.nonnegative._data import Columns, Data, gram, inner_products
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import CPFactors


@dataclass(frozen=True)
class Iterate:
    """Factors (n_k, r) that meet their constraints, and the duals of each."""

    factors: tuple[Tensor, ...]
    duals: tuple[Duals, ...]


@dataclass(frozen=True)
class Problem:
    """A tensor of norm one, and what its factors have to be.

    Where no mode is free to have a scale there is one more, of size one: its factor are weights.
    """

    data: Data
    wanted: tuple[Factor, ...]
    order: int

    @classmethod
    def of(cls, data: Data, wanted: Sequence[Factor]) -> Problem:
        norm = math.sqrt(data.square) or 1.0
        tensor, wanted = data.tensor / norm, tuple(wanted)
        order = tensor.ndim
        if all(factor.fixes_scale for factor in wanted):
            word = {"nonnegative"} if any(f.non_negative for f in wanted) else set()
            project = torch.relu if word else None
            wanted = (*wanted, Factor(project, (), frozenset(word)))
            tensor = tensor[..., None]
        return cls(Data.scaled(tensor, data.scale * norm, data.dtype), wanted, order)

    def penalties(self, factors: Sequence[Tensor]) -> float:
        pairs = zip(self.wanted, factors, strict=True)
        return sum(p.of(u.to(torch.float64)) for f, u in pairs for p in f.penalties)

    def error(self, residual: float, factors: Sequence[Tensor]) -> float:
        """Of the relative error: of this and of the penalties, twice, the root of squares. Half of
        its square is what sweeps lower."""
        return math.sqrt(residual**2 + 2 * self.penalties(factors) / (self.data.square or 1.0))

    def starts(self, rank: int, count: int, draws: torch.Generator) -> Iterator[Descent[Iterate]]:
        """Random factors, brought into their sets; one of them has the scale that suits all."""
        like = self.data.tensor
        for _ in range(count):
            factors = []
            for n, factor in zip(self.data.cut.shape, self.wanted, strict=True):
                u = torch.rand(n, rank, generator=draws, device=like.device, dtype=like.dtype)
                if not factor.non_negative:
                    u = 2 * u - 1
                if factor.orthogonal:
                    u = torch.linalg.qr(u.to(torch.float64)).Q.to(u.dtype)
                factors.append(u if factor.project is None else factor.project(u))
            yield self.begun(factors)

    def begun(self, factors: list[Tensor]) -> Descent[Iterate]:
        """From these, in the scale that suits them."""
        free = [k for k, f in enumerate(self.wanted) if not f.fixes_scale]
        loose = [k for k in free if self.wanted[k].penalties or not self._confined]
        along = float(inner_products(self.data, factors).sum())
        square = float(reduce(mul, map(gram, factors)).sum())
        share = max(0.0, along / square) if square > 0 else 0.0
        factors = [u * share if k == loose[0] else u for k, u in enumerate(factors)]
        ones = torch.ones(factors[0].shape[1], dtype=torch.float64, device=factors[0].device)
        error = self.error(self.data.true_error(factors, ones), factors)
        return Descent.at(Iterate(tuple(factors), ((),) * len(factors)), error)

    @property
    def _confined(self) -> bool:
        """Whether factors without a penalty are within the unit ball."""
        return any(f.penalties and not f.fixes_scale for f in self.wanted)

    def factors(self, iterate: Iterate) -> CPFactors:
        """As the user has them: columns whose scale is free at unit length, weights from the
        largest down."""
        found = [u.to(torch.float64) for u in iterate.factors]
        weights = torch.full_like(found[0][0], self.data.scale)
        fixed = {}
        for k, (u, factor) in enumerate(zip(found, self.wanted, strict=True)):
            if factor.fixes_scale:
                fixed[k] = u
                continue
            length = torch.linalg.vector_norm(u, dim=0)
            found[k], weights = u / torch.where(length > 0, length, 1.0), weights * length
        if len(found) > self.order:
            found[0] = found[0] * torch.where(found.pop()[0] < 0, -1.0, 1.0)
        order = weights.argsort(descending=True, stable=True)
        weights, found = weights[order], [u[:, order] for u in found]
        dtype = self.data.dtype
        if len(fixed) < self.order:
            found, weights = spread_weights(found, weights, dtype, fixed)
        elif float(weights.abs().max()) > torch.finfo(dtype).max:
            raise ArgumentError(
                f"tensor has {dtype}, which does not hold the weight {float(weights[0]):.3g} of a "
                "term whose columns all have a size of their own; pass it in float32"
            )
        return CPFactors(weights.to(dtype), tuple(u.to(dtype).contiguous() for u in found))


class ConstrainedSweep(TorchTree):
    """One sweep from an iterate, which stays as it is."""

    fixed = frozenset[int]()

    def __init__(self, problem: Problem, start: Iterate) -> None:
        self.problem, self.tensor, self.cut = problem, problem.data.cut, problem.data.cut.cut
        self.columns, self.duals = list(start.factors), list(start.duals)
        self.grams = [gram(u) for u in self.columns]

    def run(self) -> tuple[Iterate, float]:
        """The next iterate, and its error with the penalties."""
        self._over_modes()
        ones = torch.ones(self.grams[0].shape[0], dtype=torch.float64, device=self.grams[0].device)
        columns = Columns(tuple(self.columns), ones)
        residual = self.problem.data.error(self._square, columns)
        found = Iterate(tuple(self.columns), tuple(self.duals))
        return found, self.problem.error(residual, self.columns)

    def _update(self, mode: int, rhs: Tensor) -> None:
        system = reduce(mul, [g for k, g in enumerate(self.grams) if k != mode])
        new, self.duals[mode] = solve_factor(
            self.columns[mode], rhs, system, self.problem.wanted[mode], self.duals[mode]
        )
        self.columns[mode], self.grams[mode] = new, gram(new)
        along = (rhs * new).sum(dtype=torch.float64)
        model = (system * self.grams[mode]).sum()
        self._square = self.problem.data.square + float(model - 2 * along)
