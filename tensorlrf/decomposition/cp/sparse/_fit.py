"""CP of a sparse tensor, by sweeps that see its nonzeros alone."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.cp._als import unit_of
from tensorlrf.decomposition.cp._fit import Stopping, run_sweeps
from tensorlrf.decomposition.cp._options import Options
from tensorlrf.decomposition.cp._problem import as_factors
from tensorlrf.decomposition.cp._start import given_start, random_directions
from tensorlrf.decomposition.cp._state import CPState, make_state
from tensorlrf.decomposition.cp._sweep import LEAST, TorchSweeps
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg.multilinear._mttkrp import ModeCut
from tensorlrf.decomposition.linalg.sparse._leading import leading_triples, unfolded
from tensorlrf.decomposition.linalg.sparse._nonzeros import Nonzeros
from tensorlrf.factors import CPFactors, SparseTensor


class SparseSweeps(TorchSweeps):
    """Of any number of starts, in the order of the modes: an MTTKRP of the nonzeros for each
    (Bader & Kolda 2008, section 5.2.6)."""

    def __init__(
        self, nonzeros: Nonzeros, state: CPState, fixed: frozenset[int], unit: float
    ) -> None:
        self.nonzeros, self.dtype = nonzeros, nonzeros.values.dtype
        order = range(len(nonzeros.sizes))
        self._hold(state, ModeCut(nonzeros.sizes, 0, len(order)), order, fixed, unit)
        self.identity = torch.eye(self.rank, dtype=torch.float64, device=nonzeros.values.device)
        self.least = self.identity * LEAST[self.dtype]

    def square_residuals(self) -> list[float]:
        state = self.state()
        each = (state.start(i) for i in range(state.starts))
        # Weights in the dtype of the data, as they are returned.
        squares = [
            self.nonzeros.square_residual(s.columns, s.weights[0].to(self.dtype)) for s in each
        ]
        return [float(square) for square in squares]

    def _over_modes(self) -> None:
        for mode in self.free:
            self._update(mode, self.nonzeros.mttkrp(self.columns, mode))

    def _inner_products(self) -> Tensor:
        first = self.nonzeros.mttkrp(self.columns, 0)
        return self._wide(first * self.columns[0]).sum(0)


def fit_sparse(
    tensor: SparseTensor, rank: int, options: Options, rng: torch.Generator
) -> tuple[Fit[CPFactors], CPState]:
    """A CP model of a checked sparse tensor, and the state that it was.

    Rows without nonzeros belong to no system: their least-squares solution is zero, and so they are
    in the result. A mode that is fixed keeps all of its rows.
    """
    dtype = working_dtype(tensor.dtype)
    scale = scale_of(tensor.values) if tensor.nnz else 1.0
    nonzeros = Nonzeros.of(tensor, dtype, whole=options.fixed, scale=scale)
    norm, order = nonzeros.norm, tuple(range(len(tensor.shape)))
    given = not isinstance(options.init, str)
    kept: dict[int, Tensor] = {}
    if not isinstance(options.init, str):
        own = options.init.factors
        kept = {k: own[k].to(tensor.device, tensor.dtype) for k in options.fixed}
    state = _start(nonzeros, rank, options, rng)

    def factors_at(state: CPState) -> CPFactors:
        found = as_factors(state, scale, tensor.dtype, order, kept)
        pairs = enumerate(found.factors)
        spread = tuple(u if k in kept else nonzeros.spread(u, k) for k, u in pairs)
        return CPFactors(found.weights, spread)

    callback = options.callback

    def watch(state: CPState, error: float) -> bool:
        return bool(callback and callback(factors_at(state), error))

    stopping = Stopping(options.sweeps, options.tol, watch if callback else None)
    sweeps = SparseSweeps(nonzeros, state, options.fixed, unit_of(norm))
    outcome = run_sweeps(sweeps, dtype, norm, stopping, rescaled=given)
    factors, errors = factors_at(outcome.state), outcome.errors
    if kept or tensor.dtype != dtype:
        errors = (*errors, _error(nonzeros, factors))
    return Fit(factors, errors, outcome.converged, outcome.reason), outcome.state


def _error(nonzeros: Nonzeros, factors: CPFactors) -> float:
    """The true relative error of factors as they are."""
    columns = [nonzeros.picked(u, k) for k, u in enumerate(factors.factors)]
    weights = factors.weights.to(torch.float64) / nonzeros.scale
    return nonzeros.rel_error(float(nonzeros.square_residual(columns, weights)))


def _start(nonzeros: Nonzeros, rank: int, options: Options, rng: torch.Generator) -> CPState:
    """The first iterates; of a matrix its truncated SVD, which is optimal (Eckart & Young 1936)."""
    values, init, sizes = nonzeros.values, options.init, nonzeros.sizes
    if not isinstance(init, str):
        columns = [nonzeros.picked(u, k) for k, u in enumerate(init.factors)]
        return given_start(init.weights, columns, values, options.fixed, rng)
    matrix = len(sizes) == 2
    starts = 1 if matrix else options.restarts
    state = random_directions(sizes, rank, starts, values.dtype, values.device, rng)
    if not len(values) or (init in {"auto", "random"} and not matrix):
        return state
    factors, weights = [u.clone() for u in state.factors], state.weights.clone()
    for mode in range(1 if matrix else len(sizes)):
        unfolding = unfolded(nonzeros, mode)
        r = min(rank, *unfolding.sizes)
        left, values_of, right = leading_triples(unfolding, r, rng)
        factors[mode][:, 0, :r] = left.to(values.dtype)
        if matrix:
            factors[1][:, 0, :r] = torch.where(right.any(0), right, factors[1][:, 0, :r])
            weights[0, :r] = values_of
    return make_state(factors, weights)
