"""CP of a weight in the metric of its inputs.

The weight (O, I, *k), as a matrix W (O, n), is approximated by sum_j w_j a_j v_j^T with the
rank-one filters v_j = in_j kr taps_j, so that the mean of |(W - W_hat) x|^2 over the unfolded
inputs x is small; with G = X X^T / N that is tr(D G D^T). Every factor in its turn is a least
squares problem in that metric: the normal matrix of the output factor is V^T G V, that of another
mode is G contracted with the factors of all others, once for each pair of terms. Where it would be
large its products are made instead, by conjugate gradients. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import ROUNDING, Descent, beyond, descend
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._output_spectrum import OutputSpectrum
from tensorlrf.decomposition.linalg._solve import RIDGE, cholesky, conjugate_gradients
from tensorlrf.factors import CPFactors
from tensorlrf.factors.algebra import khatri_rao

EXACT_UNKNOWNS = 768
"""Up to so many unknowns the normal matrix of a mode is formed and factored."""

TRIAL_SWEEPS = 5
"""Sweeps of each start before the best one goes on."""


@dataclass(frozen=True)
class Terms:
    """sum_j weights[j] times the outer product of columns j: factors (n_k, r), float64."""

    weights: Tensor
    factors: tuple[Tensor, ...]

    @property
    def filters(self) -> Tensor:
        """The rank-one filters as columns, (n, r)."""
        return khatri_rao(self.factors[1:])

    def beyond(self, last: Terms, reach: float) -> Terms:
        """As far ahead of here as `last` is behind, times `reach`."""
        here, there = ((terms.weights, *terms.factors) for terms in (self, last))
        weights, *factors = beyond(here, there, reach)
        return Terms(weights, tuple(factors))

    def with_mode(self, mode: int, solution: Tensor) -> Terms:
        """`solution` (n_mode, r), weights and all, in the place of a factor.

        A column that vanished keeps its direction, with weight zero.
        """
        length = torch.linalg.vector_norm(solution, dim=0)
        unit = solution / torch.where(length > 0, length, 1.0)
        factor = torch.where(length > 0, unit, self.factors[mode])
        factors = (*self.factors[:mode], factor, *self.factors[mode + 1 :])
        return Terms(length, factors)


class FilterALS:
    """Alternating least squares for a target whose weight is a kernel (O, I, *k), given the second
    moments of its unfolded inputs."""

    def __init__(self, target: Target[CPFactors], shape: Sequence[int]) -> None:
        self.target, self.sizes = target, tuple(shape[1:])
        self.gram, self.moments = target.moments, target.image  # G and W G
        self._preconditioners: dict[int, Tensor] = {}

    def rel_error(self, terms: Terms) -> float:
        """True relative error of the outputs."""
        left = terms.factors[0] * terms.weights
        return self.target.rel_error_of(left, terms.filters.T)

    def sweep(self, terms: Terms, fixed: frozenset[int]) -> Terms:
        """Every free mode once, the output mode last."""
        for mode in (*range(1, len(terms.factors)), 0):
            if mode not in fixed:
                terms = self._outputs(terms) if mode == 0 else self._inner(terms, mode)
        return terms

    def best_matrix(self, rank: int) -> Terms:
        """The optimum for a matrix (O, I), in closed form (see `OutputSpectrum`)."""
        m, n = self.target.shape
        left, right = OutputSpectrum(self.target).split(min(rank, m, n))
        more = rank - left.shape[1]
        zeros, other = left.new_zeros(m, more), left.new_ones(n, more)
        start = Terms(
            left.new_ones(rank),
            (_unit(torch.cat([left, zeros], dim=1)), torch.cat([right.T, other], dim=1)),
        )
        length = torch.linalg.vector_norm(torch.cat([left, zeros], dim=1), dim=0)
        return start.with_mode(1, start.factors[1] * length)

    def channel_root(self) -> Tensor:
        """R (I, I) with R R^T the second moments of the input channels, all taps together."""
        values, vectors = torch.linalg.eigh(self._one_mode(1))
        root: Tensor = vectors * values.clamp_min(0).sqrt()
        return root

    def _outputs(self, terms: Terms) -> Terms:
        filters = terms.filters
        normal = filters.T @ self.gram @ filters  # (r, r)
        old = terms.factors[0] * terms.weights
        residual = self.moments @ filters - old @ normal
        return terms.with_mode(0, old + _small_step(normal, residual.T).T)

    def _inner(self, terms: Terms, mode: int) -> Terms:
        outputs = terms.factors[0]
        pairs = outputs.T @ outputs
        target = self._contract(self.moments.T @ outputs, terms, mode)
        old = terms.factors[mode] * terms.weights
        if old.numel() <= EXACT_UNKNOWNS:
            normal = self._normal_matrix(terms, mode, pairs)
            residual = target.reshape(-1) - normal @ old.reshape(-1)
            step = _small_step(normal, residual[:, None]).view_as(old)
            return terms.with_mode(mode, old + step)

        def product(factor: Tensor) -> Tensor:
            factors = (*terms.factors[:mode], factor, *terms.factors[mode + 1 :])
            filters = khatri_rao(factors[1:])
            return self._contract(self.gram @ (filters @ pairs), terms, mode)

        # What the normal matrix would be if inputs of different places were uncorrelated.
        weights = pairs
        for k, u in enumerate(terms.factors):
            if k not in (0, mode):
                weights = weights * (u.T @ u)
        if mode not in self._preconditioners:
            self._preconditioners[mode] = cholesky(self._one_mode(mode), 1e-4)
        left = self._preconditioners[mode]
        right = cholesky(weights, 1e-8)

        def precondition(residual: Tensor) -> Tensor:
            half = torch.cholesky_solve(residual, left)
            return torch.cholesky_solve(half.T, right).T

        residual = target - product(old)
        return terms.with_mode(mode, conjugate_gradients(product, residual, old, precondition))

    def _normal_matrix(self, terms: Terms, mode: int, pairs: Tensor) -> Tensor:
        """(n_mode r, n_mode r): G contracted with the other factors on both sides, times A^T A."""
        rank, size = terms.weights.shape[0], self.sizes[mode - 1]
        others = [u for k, u in enumerate(terms.factors) if k not in (0, mode)]
        fixed = khatri_rao(tuple(others)) if others else pairs.new_ones(1, rank)  # (rest, r)
        n = self.gram.shape[0]
        rows = self.gram.view(*self.sizes, n).movedim(mode - 1, 0).reshape(size, -1, n)
        half = (fixed.T @ rows).view(size * rank, *self.sizes)  # (n_mode r, n)
        columns = half.movedim(mode, 1).reshape(size * rank, size, -1)
        normal = (columns @ fixed).view(size, rank, size, rank) * pairs[:, None, :]
        square = normal.reshape(size * rank, size * rank)
        return (square + square.T) / 2

    def _contract(self, columns: Tensor, terms: Terms, mode: int) -> Tensor:
        """(n, r) contracted column by column with the factors of all inner modes but one:
        (n_mode, r)."""
        rank = columns.shape[1]
        whole = columns.view(*self.sizes, rank)
        for k in reversed(range(1, len(terms.factors))):
            if k != mode:
                after = [1] * (whole.ndim - k - 1)
                along = terms.factors[k].view(self.sizes[k - 1], *after, rank)
                whole = (whole * along).sum(k - 1)
        return whole

    def _one_mode(self, mode: int) -> Tensor:
        """The mean over all places in the other modes of the moments along one, (n_k, n_k)."""
        size = self.sizes[mode - 1]
        n = self.gram.shape[0]
        rest = n // size
        rows = self.gram.view(*self.sizes, n).movedim(mode - 1, 0).reshape(n, *self.sizes)
        both = rows.movedim(mode, 1).reshape(size, rest, size, rest)
        return both.diagonal(dim1=1, dim2=3).sum(-1) / rest


def best_descent(
    als: FilterALS, starts: Sequence[Terms], sweeps: int, tol: float | None, fixed: frozenset[int]
) -> Descent[Terms]:
    """A few sweeps of every start, then more of the one with the smallest error."""

    def sweep(terms: Terms) -> tuple[Terms, float]:
        tried = als.sweep(terms, fixed)
        return tried, als.rel_error(tried)

    trial = min(sweeps, TRIAL_SWEEPS) if len(starts) > 1 else 0
    begun = [Descent.at(terms, als.rel_error(terms)) for terms in starts]
    return descend(begun, sweep, tol, sweeps, trial=trial, ahead=Terms.beyond, rise=ROUNDING)


def unwhitened(terms: Terms, root: Tensor) -> Terms:
    """Terms of the kernel itself from those of the kernel times R along its input channels.

    Directions in which the inputs are all but zero stay empty: no output depends on them.
    """
    lengths = torch.linalg.vector_norm(root, dim=0)
    kept = lengths > 1e-5 * lengths.max()
    scaled = terms.factors[1] / torch.where(kept, lengths**2, 1.0)[:, None] * kept[:, None]
    return terms.with_mode(1, root @ (scaled * terms.weights))


def sorted_terms(terms: Terms) -> Terms:
    """The largest weights first."""
    order = terms.weights.argsort(descending=True, stable=True)
    return replace(
        terms, weights=terms.weights[order], factors=tuple(u[:, order] for u in terms.factors)
    )


def _small_step(normal: Tensor, residual: Tensor) -> Tensor:
    """(normal + ridge)^-1 residual: a proximal step, by which a quadratic loss never rises, and
    which a singular matrix does not upset."""
    if not bool(residual.any()):
        return residual
    # Unit diagonal first: then the ridge is as small for small terms as for large ones.
    scale = normal.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, 1 / torch.where(scale > 0, scale, 1.0), 0.0)
    factor = cholesky(normal * scale * scale[:, None], RIDGE)
    step: Tensor = torch.cholesky_solve(residual * scale[:, None], factor) * scale[:, None]
    return step


def _unit(columns: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(columns, dim=0)
    some = columns.new_full((columns.shape[0], 1), 1 / math.sqrt(columns.shape[0]))
    return torch.where(length > 0, columns / torch.where(length > 0, length, 1.0), some)
