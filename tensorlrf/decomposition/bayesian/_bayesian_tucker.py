"""Tucker by variational Bayes: of each mode as many directions as the data need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
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
)
from tensorlrf.decomposition.linalg._gram import descending_eigh, mode_gram
from tensorlrf.errors import RankError
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product
from tensorlrf.factors.autocast import without_autocast

Callback = Callable[[TuckerFactors, float], Any]


@without_autocast()
def bayesian_tucker(
    tensor: Any,
    max_rank: int | Sequence[int] | None = None,
    *,
    n_iter_max: int = SWEEPS,
    tol: float = TOL,
    callback: Callback | None = None,
) -> Posterior[TuckerFactors]:
    """A core with a factor along each mode by variational Bayes: ranks are found.

    The core has a normal prior of variance one, and each column of a factor a precision of its own
    (automatic relevance determination), so that directions which only fit noise vanish. The
    posterior is taken as a product over core and factors; that of the core, whose precision is a
    sum of two Kronecker products, is diagonal in the eigenvectors of the factors, and nothing of
    the size of its square is formed.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_1, ..., n_N), N >= 2
        Of any float dtype; computed in float64.
    max_rank : int or sequence of int, optional
        Columns to begin with, more than are expected; by default ten of each mode, or all where it
        is shorter.
    n_iter_max : int
        Most sweeps.
    tol : float
        Stop when a sweep raises the bound by no more than this share of it, and no column has
        vanished in it.
    callback : callable, optional
        Called as callback(factors, bound) after each sweep; returning True stops.

    Returns
    -------
    Posterior
        Of TuckerFactors with unit columns; a variance is that of an entry of such a column.

    Raises
    ------
    RankError
        For a `max_rank` below one or above a mode, and of another length than there are modes.
    ArgumentError, ShapeError
        For what cannot be decomposed.

    Warns
    -----
    DegenerateWarning
        Where nothing stands out of the noise along a mode; then its strongest column is kept.

    References
    ----------
    Morup & Hansen 2009, "Automatic relevance determination for multi-way models"; Zhao, Zhang &
    Cichocki 2015, "Bayesian sparse Tucker models for dimension reduction and tensor completion",
    with a core of unit variance.

    Examples
    --------
    >>> factors = [torch.randn(n, 2) for n in (12, 10, 8)]
    >>> planted = tensorlrf.TuckerFactors(torch.randn(2, 2, 2), factors)
    >>> tensor = planted.to_dense() + 0.02 * torch.randn(12, 10, 8)
    >>> tensorlrf.decomposition.bayesian_tucker(tensor, 4).factors.rank
    (2, 2, 2)
    """
    checked, data, scale = prepared(tensor, n_iter_max, tol, callback)
    model = _Model(data, _ranks(max_rank, tuple(data.shape)))

    def factors() -> tuple[TuckerFactors, tuple[Tensor, ...]]:
        return model.result(checked.dtype, scale)

    def watch(bound: float) -> bool:
        return callback is not None and bool(callback(factors()[0], bound))

    def needed() -> list[list[bool]]:
        return [model.needed(k).tolist() for k in range(data.ndim)]

    course = climb(model.sweep, n_iter_max, tol, needed, watch)
    means, variances = factors()
    noise = scale**2 / model.noise.precision
    return Posterior(means, variances, noise, course.bounds, course.converged, course.reason)


MOST = 10
"""Columns of each mode to begin with, by default."""


def _ranks(given: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    if given is None:
        found: tuple[Any, ...] = tuple(min(MOST, n) for n in shape)
    elif isinstance(given, int) and not isinstance(given, bool):
        found = tuple(min(given, n) for n in shape)
    else:
        found = tuple(given) if isinstance(given, Sequence) else (given,)
    if len(found) != len(shape):
        raise RankError(f"max_rank={given!r} must be an int, or {len(shape)} of them, one a mode")
    for k, (r, n) in enumerate(zip(found, shape, strict=True)):
        if isinstance(r, bool) or not isinstance(r, int) or not 1 <= r <= n:
            raise RankError(f"max_rank={given!r}: that of mode {k} must be an int from 1 to {n}")
    return found


class _Model:
    """The posterior: means (n_k, r_k) and covariances (r_k, r_k) of the rows of each factor, the
    core and its variances in the eigenvectors of E[A^T A], precisions of columns and noise."""

    def __init__(self, data: Tensor, ranks: tuple[int, ...]) -> None:
        self.data, self.modes = data, range(data.ndim)
        square = float(data.square().sum())
        self.noise = Noise(square, data.numel())
        bases = [
            descending_eigh(mode_gram(data, k))[1][:, :r].contiguous() for k, r in enumerate(ranks)
        ]
        core = _products(data, [u.T for u in bases])
        # Entries of the core have variance one, and factors the rest.
        each = max(float(core.square().mean()), 1e-300) ** (0.5 / data.ndim)
        self.factors = [u * each for u in bases]
        eyes = [torch.eye(r, dtype=data.dtype, device=data.device) for r in ranks]
        self.covariances = [1e-6 * each**2 * eye for eye in eyes]
        self.squares = [self._square(k) for k in self.modes]
        self.relevances = [
            Relevance(len(u) / s.diagonal())
            for u, s in zip(self.factors, self.squares, strict=True)
        ]
        self.core = core

    def _square(self, mode: int) -> Tensor:
        """E[A^T A], (r, r)."""
        mean = self.factors[mode]
        square: Tensor = mean.T @ mean + len(mean) * self.covariances[mode]
        return square

    def sweep(self) -> float:
        """The core, all modes, then columns and noise; the bound."""
        bound = self._update_core()
        along = 0.0
        for k in self.modes:
            entropy, along = self._update(k)
            bound += entropy
        for k in self.modes:
            bound += self.relevances[k].update(len(self.factors[k]), self.squares[k].diagonal())
        model = float((_products(self.core, self.squares) * self.core).sum())
        model += float((_outer([self._turned(k) for k in self.modes]) * self.variances).sum())
        return bound + self.noise.update(self.noise.square - 2 * along + model)

    def _update_core(self) -> float:
        """Its precision is tau (S_1 x ... x S_N) + I."""
        pairs = [torch.linalg.eigh(s) for s in self.squares]
        self.turns = [vectors for _, vectors in pairs]
        tau = self.noise.precision
        self.variances = 1 / (tau * _outer([values.clamp(min=0.0) for values, _ in pairs]) + 1)
        sides = [(u @ q).T for u, q in zip(self.factors, self.turns, strict=True)]
        turned = tau * self.variances * _products(self.data, sides)
        self.core = _products(turned, self.turns)
        prior = -float((turned.square() + self.variances).sum()) / 2
        return prior + float(self.variances.log().sum()) / 2 + turned.numel() / 2

    def _turned(self, mode: int) -> Tensor:
        """Diagonal of E[A^T A] in the eigenvectors that the core's variances belong to."""
        turn = self.turns[mode]
        along: Tensor = turn * (self.squares[mode] @ turn)
        return along.sum(0)

    def _update(self, mode: int) -> tuple[float, float]:
        """A factor; its entropy, and the inner product of data and model."""
        others = [k for k in self.modes if k != mode]
        weighted = reduce(lambda t, k: mode_product(t, self.squares[k], k), others, self.core)
        seen = torch.tensordot(weighted, self.core, dims=(others, others))  # (r, r)
        ones = self.variances.new_ones(self.core.shape[mode])
        sizes = [ones if k == mode else self._turned(k) for k in self.modes]
        unseen = (_outer(sizes) * self.variances).movedim(mode, 0).flatten(1).sum(1)
        turn, tau = self.turns[mode], self.noise.precision
        expected = seen + (turn * unseen) @ turn.T
        found, logarithm = covariance(tau * expected + torch.diag(self.relevances[mode].mean))
        left = reduce(lambda t, k: mode_product(t, self.factors[k].T, k), others, self.data)
        rhs = torch.tensordot(left, self.core, dims=(others, others))  # (n, r)
        self.covariances[mode] = found
        self.factors[mode] = tau * rhs @ found
        self.squares[mode] = self._square(mode)
        along = float((rhs * self.factors[mode]).sum())
        return of_factor(len(rhs), logarithm, len(found)), along

    def needed(self, mode: int) -> Tensor:
        """(r,): the columns that stand out."""
        return is_needed(self.factors[mode], self.covariances[mode].diagonal())

    def result(self, dtype: torch.dtype, scale: float) -> tuple[TuckerFactors, tuple[Tensor, ...]]:
        core, factors, variances = self.core * scale, [], []
        for k in self.modes:
            lengths = torch.linalg.vector_norm(self.factors[k], dim=0)
            at = kept(self.needed(k), lengths)
            length = torch.where(lengths > 0, lengths, 1.0)[at]
            factors.append((self.factors[k][:, at] / length).to(dtype))
            variances.append(self.covariances[k].diagonal()[at] / length.square())
            core = mode_product(core.index_select(k, at), torch.diag(length), k)
        return TuckerFactors(core.to(dtype), tuple(factors)), tuple(variances)


def _products(tensor: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Along every mode."""
    return reduce(lambda t, k: mode_product(t, matrices[k], k), range(tensor.ndim), tensor)


def _outer(vectors: Sequence[Tensor]) -> Tensor:
    return reduce(lambda t, v: t[..., None] * v, vectors)
