"""What variational Bayes tells of a decomposition, and the terms that its bounds have in common.

Each column d of a factor (n, r) has the prior N(0, I / lambda_d), lambda_d a Gamma prior, and the
noise a precision tau with another (automatic relevance determination: MacKay 1994). Columns that
the data do not need have their precision grow without end, and vanish.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_callback
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.errors import ArgumentError, DegenerateWarning, warn
from tensorlrf.factors import Factors

SWEEPS, TOL = 500, 1e-6
FLAT = 1e-6
"""Shape and rate of the Gamma priors, which say next to nothing."""

LEAST_NOISE = 1e-14
"""Share of the sum of squares below which a residual in float64 is rounding."""

F = TypeVar("F", bound=Factors, covariant=True)


@dataclass(frozen=True)
class Posterior(Generic[F]):
    """A decomposition as its data leave it: the rank that they need, and how sure its factors are.

    Parameters
    ----------
    factors : Factors
        Means of the posterior, in the dtype and on the device of the tensor, without the columns
        that the data do not need.
    variances : tuple of Tensor
        For each mode (r_k,), float64: the variance of each entry of a column of `factors`.
    noise_variance : float
        Of an entry of the tensor.
    bounds : tuple of float
        The lower bound of the log evidence after each sweep that is kept, which never falls.
    converged : bool
        Whether the bound had come to rest.
    reason : str
        Why it ended, in words.

    Examples
    --------
    >>> tensor = torch.ones(8, 1, 1) * torch.rand(1, 7, 6) + 0.01 * torch.randn(8, 7, 6)
    >>> found = tensorlrf.decomposition.bayesian_cp(tensor, 4, random_state=0)
    >>> [tuple(v.shape) == (found.factors.rank,) for v in found.variances]
    [True, True, True]
    """

    factors: F
    variances: tuple[Tensor, ...]
    noise_variance: float
    bounds: tuple[float, ...]
    converged: bool
    reason: str

    def __repr__(self) -> str:
        how = "converged" if self.converged else "not converged"
        return (
            f"Posterior({self.factors!r}, noise of variance {self.noise_variance:.4g}, "
            f"{how}: {self.reason})"
        )


def prepared(
    tensor: Any, n_iter_max: int, tol: float, callback: Any
) -> tuple[Tensor, Tensor, float]:
    """The tensor as given, in float64 over its root mean square, and that: priors that are flat on
    one scale are not on another. Raises as decompositions do."""
    checked = as_tensor(tensor)
    check_iteration(n_iter_max, tol)
    check_callback(callback, None)
    if not bool(checked.any()):
        raise ArgumentError("tensor is zero throughout, of which nothing can be inferred")
    near = scale_of(checked)
    data = checked.detach().to(torch.float64) / near
    rms = float(torch.linalg.vector_norm(data)) / math.sqrt(data.numel())
    return checked, data / rms, near * rms


@dataclass(frozen=True)
class Course:
    """How the sweeps went."""

    bounds: tuple[float, ...]
    converged: bool
    reason: str


def climb(
    sweep: Callable[[], float],
    n_iter_max: int,
    tol: float,
    needed: Callable[[], Any],
    watch: Callable[[float], bool] = lambda bound: False,
) -> Course:
    """Sweeps until the bound gains less than a share `tol` of itself while the columns that are
    `needed` stay the same."""
    bounds: list[float] = []
    before = None
    for number in range(1, n_iter_max + 1):
        bounds.append(sweep())
        if watch(bounds[-1]):
            return Course(tuple(bounds), False, f"stopped by callback after sweep {number}")
        now = needed()
        gain = bounds[-1] - bounds[-2] if number > 1 else math.inf
        if gain <= tol * abs(bounds[-1]) and now == before:
            return Course(tuple(bounds), True, f"sweep {number} raised the bound by less than tol")
        before = now
    return Course(tuple(bounds), False, f"n_iter_max={n_iter_max} sweeps")


TRIAL = 100
"""Most sweeps without a column, after which the bounds are compared."""


class Trimmed(Protocol):
    """A model that can be without a column."""

    def sweep(self) -> float:
        """The bound."""

    def needed(self) -> Tensor:
        """(r,)."""

    def energies(self) -> Tensor:
        """(r,)."""

    def drop(self, column: int) -> None:
        """Have it vanish."""


M = TypeVar("M", bound=Trimmed)


def trim(model: M, course: Course, tol: float) -> tuple[M, Course]:
    """The model without the columns whose absence raises the bound, the weakest first: sweeps by
    themselves leave some that fit nothing but noise, in a maximum that is not the highest."""
    bounds, gone = list(course.bounds), 0
    while course.converged:
        needed = model.needed()
        if not bool(needed.any()):
            break
        tried = copy.deepcopy(model)
        tried.drop(int(torch.where(needed, model.energies(), math.inf).argmin()))
        found = climb(tried.sweep, TRIAL, tol, lambda: tried.needed().tolist())  # noqa: B023  # used before the next round
        if found.bounds[-1] <= bounds[-1]:
            break
        bounds += [bound for bound in found.bounds if bound > bounds[-1]]
        model, gone = tried, gone + 1
    reason = course.reason
    if gone:
        reason += f"; without {gone} {'more column' if gone == 1 else 'more columns'} it is higher"
    return model, replace(course, bounds=tuple(accumulate(bounds, max)), reason=reason)


def is_needed(mean: Tensor, variance: Tensor) -> Tensor:
    """(r,): the columns of which more is known than not, for a mean (n, r) whose entries have a
    variance (r,)."""
    return mean.square().sum(0) > len(mean) * variance


def kept(needed: Tensor, energies: Tensor) -> Tensor:
    """Indices of what is needed, the largest energy first; of the largest of all, with a warning,
    where the data need nothing."""
    if not bool(needed.any()):
        warn(
            "nothing stands out of the noise: the data give no more reason for one column than for "
            "none; one of next to no weight is kept",
            DegenerateWarning,
        )
        return energies.argmax()[None]
    order = energies.argsort(descending=True)
    return order[needed[order]]


class Noise:
    """The precision of the noise: its mean, and what it adds to the bound."""

    def __init__(self, square: float, entries: int) -> None:
        self.square, self.entries = square, entries
        self.prior = FLAT * square / entries
        self.shape = FLAT + entries / 2
        self.precision = 10 * entries / square

    def update(self, residual: float) -> float:
        """From the expected squared residual; returns what the data and the noise add."""
        residual = max(residual, LEAST_NOISE * self.square)
        rate = self.prior + residual / 2
        self.precision = self.shape / rate
        log = digamma(self.shape) - math.log(rate)
        data = self.entries / 2 * (log - math.log(2 * math.pi)) - self.precision * residual / 2
        prior = FLAT * math.log(self.prior) - math.lgamma(FLAT)
        prior += (FLAT - 1) * log - self.prior * self.precision
        return data + prior + _entropy(self.shape, math.log(rate))


class Relevance:
    """Precisions of columns: their means (r,), and what they add to the bound."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def update(self, entries: int, energy: Tensor) -> float:
        """From the number of entries of a column and the expected sum of their squares (r,)."""
        shape, rate = FLAT + entries / 2, FLAT + energy / 2
        self.mean = shape / rate
        log = digamma(shape) - rate.log()
        factors = entries / 2 * (log - math.log(2 * math.pi)) - self.mean * energy / 2
        prior = FLAT * math.log(FLAT) - math.lgamma(FLAT) + (FLAT - 1) * log - FLAT * self.mean
        entropy = shape + math.lgamma(shape) + (1 - shape) * digamma(shape) - rate.log()
        return float((factors + prior + entropy).sum())


def _entropy(shape: float, log_rate: float) -> float:
    """Of a Gamma distribution."""
    return shape - log_rate + math.lgamma(shape) + (1 - shape) * digamma(shape)


def digamma(x: float) -> float:
    """Psi(x)."""
    return float(torch.digamma(torch.tensor(x, dtype=torch.float64, device="cpu")))


def covariance(precision: Tensor) -> tuple[Tensor, float]:
    """The inverse of a symmetric positive definite (r, r), and the logarithm of its determinant."""
    root = torch.linalg.cholesky(precision)
    return torch.cholesky_inverse(root), -2 * float(root.diagonal().log().sum())


def of_factor(n: int, log_determinant: float, r: int) -> float:
    """The entropy of a factor (n, r) whose rows have one covariance."""
    return n / 2 * (r * (1 + math.log(2 * math.pi)) + log_determinant)
