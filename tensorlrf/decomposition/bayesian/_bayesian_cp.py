"""CP by variational Bayes: as many terms as the data need."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import mul
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.bayesian._posterior import (
    SWEEPS,
    TOL,
    Noise,
    Posterior,
    Relevance,
    climb,
    covariance,
    is_needed,
    kept,
    of_factor,
    prepared,
    trim,
)
from tensorlrf.decomposition.linalg._gram import descending_eigh, mode_gram
from tensorlrf.decomposition.linalg.multilinear._columns import spread_weights
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.linalg.multilinear._tree import TorchTree
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import RankError
from tensorlrf.factors import CPFactors
from tensorlrf.factors.autocast import without_autocast

Callback = Callable[[CPFactors, float], Any]

GONE = 1e12
"""Precision of a term that is taken away, in units of the tensor's scale."""


@without_autocast()
def bayesian_cp(
    tensor: Any,
    max_rank: int | None = None,
    *,
    n_iter_max: int = SWEEPS,
    tol: float = TOL,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> Posterior[CPFactors]:
    """A sum of rank-one tensors by variational Bayes, whose number is found.

    Each term has a precision of its own in the priors of all modes (automatic relevance
    determination), so that terms which only fit noise vanish. The posterior is taken as a product
    over modes; sweeps of closed forms raise a lower bound of the evidence, and terms without which
    it is higher are taken away, the weakest first. Factors have variances.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_1, ..., n_N), N >= 2
        Of any float dtype; computed in float64.
    max_rank : int, optional
        Terms to begin with, more than are expected; by default the longest mode, or as many as an
        exact sum may need where these are fewer.
    n_iter_max : int
        Most sweeps.
    tol : float
        Stop when a sweep raises the bound by no more than this share of it, and no term has
        vanished in it.
    callback : callable, optional
        Called as callback(factors, bound) after each sweep; returning True stops.
    random_state : int or Generator, optional
        Of terms beyond the singular vectors of the unfoldings; torch's global generator is left
        alone.

    Returns
    -------
    Posterior
        Of CPFactors with unit columns, weights from the largest down; a variance is that of an
        entry of such a column.

    Raises
    ------
    RankError
        For a `max_rank` below one.
    ArgumentError, ShapeError
        For what cannot be decomposed.

    Warns
    -----
    DegenerateWarning
        Where nothing stands out of the noise; then one term of next to no weight is left.

    References
    ----------
    Zhao, Zhang & Cichocki 2015, "Bayesian CP factorization of incomplete tensors with automatic
    rank determination", equations 14 to 28, all entries observed.

    Examples
    --------
    >>> planted = tensorlrf.CPFactors(torch.ones(2), [torch.randn(n, 2) for n in (12, 10, 8)])
    >>> tensor = planted.to_dense() + 0.05 * torch.randn(12, 10, 8)
    >>> tensorlrf.decomposition.bayesian_cp(tensor, 6, random_state=0).factors.rank
    2
    """
    checked, data, scale = prepared(tensor, n_iter_max, tol, callback)
    shape = tuple(data.shape)
    if max_rank is None:
        max_rank = min(max(shape), data.numel() // max(shape))
    if isinstance(max_rank, bool) or not isinstance(max_rank, int) or max_rank < 1:
        raise RankError(f"max_rank={max_rank!r} must be an int of at least 1")
    model = _Model(data.contiguous(), max_rank, generator(random_state, data.device))

    def watch(bound: float) -> bool:
        return callback is not None and bool(callback(model.result(checked.dtype, scale)[0], bound))

    begun = climb(model.sweep, n_iter_max, tol, lambda: model.needed().tolist(), watch)
    model, course = trim(model, begun, tol)
    means, variances = model.result(checked.dtype, scale)
    noise = scale**2 / model.noise.precision
    return Posterior(means, variances, noise, course.bounds, course.converged, course.reason)


class _Model(TorchTree):
    """The posterior: means (n_k, r) and covariances (r, r) of the rows of each factor, precisions
    of terms and of the noise."""

    fixed = frozenset[int]()

    def __init__(self, data: Tensor, rank: int, draws: torch.Generator) -> None:
        self.tensor = CutTensor.of(data)
        self.cut, self.shape = self.tensor.cut, tuple(data.shape)
        square = float(data.square().sum())
        self.noise = Noise(square, data.numel())
        each = (square / data.numel()) ** (0.5 / data.ndim)  # of an entry of a factor
        self.columns = [_start(data, k, rank, each, draws) for k in range(data.ndim)]
        like = data.new_ones(rank)
        self.covariances = [0.1 * each**2 * torch.diag(like) for _ in self.shape]
        self.squares = [self._square(k) for k in range(data.ndim)]
        self.relevance = Relevance(like.clone())
        self._along, self._entropy = 0.0, 0.0

    def _square(self, mode: int) -> Tensor:
        """E[A^T A], (r, r)."""
        mean = self.columns[mode]
        square: Tensor = mean.T @ mean + self.shape[mode] * self.covariances[mode]
        return square

    def sweep(self) -> float:
        """Over all modes, then terms and noise; the bound."""
        self._entropy = 0.0
        self._over_modes()
        energy = torch.stack([s.diagonal() for s in self.squares]).sum(0)
        bound = self._entropy + self.relevance.update(sum(self.shape), energy)
        model = float(reduce(mul, self.squares).sum())
        return bound + self.noise.update(self.noise.square - 2 * self._along + model)

    def _update(self, mode: int, rhs: Tensor) -> None:
        others = reduce(mul, [s for k, s in enumerate(self.squares) if k != mode])
        tau = self.noise.precision
        found, logarithm = covariance(tau * others + torch.diag(self.relevance.mean))
        self.covariances[mode] = found
        self.columns[mode] = tau * rhs @ found
        self.squares[mode] = self._square(mode)
        self._along = float((rhs * self.columns[mode]).sum())
        self._entropy += of_factor(self.shape[mode], logarithm, len(found))

    def needed(self) -> Tensor:
        """(r,): the terms that stand out in every mode."""
        pairs = zip(self.columns, self.covariances, strict=True)
        found: Tensor = torch.stack([is_needed(u, own.diagonal()) for u, own in pairs]).all(0)
        return found

    def energies(self) -> Tensor:
        """(r,), of the terms."""
        squares = [u.square().sum(0) for u in self.columns]
        return reduce(mul, squares)

    def drop(self, column: int) -> None:
        """Have a term vanish."""
        for k in range(len(self.shape)):
            own = self.covariances[k]
            self.columns[k][:, column] = 0.0
            own[column], own[:, column] = 0.0, 0.0
            own[column, column] = 1 / GONE
            self.squares[k] = self._square(k)
        self.relevance.mean[column] = GONE

    def result(self, dtype: torch.dtype, scale: float) -> tuple[CPFactors, tuple[Tensor, ...]]:
        lengths = [torch.linalg.vector_norm(u, dim=0) for u in self.columns]
        weights = reduce(mul, lengths)
        at = kept(self.needed(), weights)
        safe = [torch.where(n > 0, n, 1.0)[at] for n in lengths]
        units = [u[:, at] / n for u, n in zip(self.columns, safe, strict=True)]
        units, weights = spread_weights(units, weights[at] * scale, dtype, {})
        now = [torch.linalg.vector_norm(u, dim=0) for u in units]
        variances = tuple(
            own.diagonal()[at] * (length / before).square()
            for own, length, before in zip(self.covariances, now, safe, strict=True)
        )
        return CPFactors(weights.to(dtype), tuple(u.to(dtype) for u in units)), variances


def _start(data: Tensor, mode: int, rank: int, each: float, draws: torch.Generator) -> Tensor:
    """Singular vectors of the unfolding by the root of their share, and random columns beyond."""
    n = data.shape[mode]
    columns = torch.randn(n, rank, generator=draws, device=data.device, dtype=data.dtype)
    values, vectors = descending_eigh(mode_gram(data, mode))
    count = min(rank, n)
    share = (values[:count].clamp(min=0.0) / values[0].clamp(min=1e-300)) ** 0.25
    columns[:, :count] = vectors[:, :count] * share * math.sqrt(n)
    return columns * each
