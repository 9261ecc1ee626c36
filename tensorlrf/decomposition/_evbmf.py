"""Rank of a matrix in noise: empirical variational Bayesian matrix factorisation.

Nakajima, Sugiyama, Babacan & Tomioka, "Global analytic solution of fully-observed variational
Bayesian matrix factorization", JMLR 14 (2013). For V (L, M) = B A^T + noise of variance s with
L <= M and alpha = L / M, singular values of at most sqrt(M s x_min) belong to the noise, where

    x_min = (1 + tau) (1 + alpha / tau),   tau the zero of Phi(tau) + Phi(tau / alpha),
    Phi(z) = ln(z + 1) / z - 1/2

(their theorem on the global empirical solution), and the noise variance is the minimum of the free
energy, a function of one variable between known ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition.linalg._gram import (
    descending_eigh,
    mode_gram,
    scale_of,
    thin_svd,
    unfold,
)
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors.autocast import without_autocast

ACCURACY = 16
"""Singular values are known to this times eps sqrt(M) of the largest, with eps that of the numbers
they were computed in; the eigenvalues of a Gram likewise, so their roots to the root of it."""

STORED = 1.0
"""Noise of a tensor by the rounding to its dtype: eps of an entry, three times what it is on the
average, as it goes with the size of the entry and is not of one variance."""

_HOST: Any = {"dtype": torch.float64, "device": "cpu"}
_GRID = 256  # noise variances tried on a logarithmic scale, beside those where a value crosses
_GOLDEN_STEPS = 60
_INVERSE_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class EVBMF:
    """The analytic solution for one matrix.

    Parameters
    ----------
    rank : int
        How many singular values stand out of the noise; 0 for noise alone.
    noise_variance : float
        Of one entry.
    threshold : float
        The singular value above which one stands out.
    values : Tensor of shape (rank,)
        In float64: what is left of those values when the noise is taken out.
    """

    rank: int
    noise_variance: float
    threshold: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        return (
            f"rank {self.rank}: {self.rank} singular values above {self.threshold:.4g}, noise of "
            f"standard deviation {math.sqrt(self.noise_variance):.4g}"
        )


def evbmf_rank(matrix: Any, *, shape: tuple[int, int] | None = None) -> int:
    """The rank of `evbmf`, which has the arguments and errors.

    Parameters
    ----------
    matrix, shape
        As for `evbmf`.

    Returns
    -------
    int

    Raises
    ------
    ArgumentError, ShapeError
        As `evbmf`.

    Examples
    --------
    >>> tensorlrf.decomposition.evbmf_rank(torch.ones(40, 30))
    1
    """
    return evbmf(matrix, shape=shape).rank


@without_autocast()
@threaded
def evbmf(matrix: Any, *, shape: tuple[int, int] | None = None) -> EVBMF:
    """How many singular values of a matrix are not noise, without a parameter.

    The estimate supposes entries of independent Gaussian noise of one variance. A weight is not
    made so: the number is a starting point, used as such on conv kernels by Kim et al. 2016.

    Parameters
    ----------
    matrix : Tensor or array
        (L, M) of any float dtype, a tensor of more modes as (n_0, product of the others); or all
        min(L, M) singular values of one, in any order, with
    shape : (L, M), optional
        Of the matrix whose singular values these are.

    Returns
    -------
    EVBMF

    Raises
    ------
    ArgumentError, ShapeError
        For what is no matrix of finite floating-point numbers, for values without shape or shape
        with a matrix, and for negative values.

    Notes
    -----
    Scaling and transposition of the matrix make no difference, but for a noise variance beyond
    float64, which is inf or 0. Noise is never taken to be less than what rounding of the entries to
    the dtype of the matrix makes, nor than what rounding in its decomposition does, so a matrix of
    exact low rank has that rank; of singular values only the latter is known, by their dtype.

    References
    ----------
    Nakajima, Sugiyama, Babacan & Tomioka 2013, "Global analytic solution of fully-observed
    variational Bayesian matrix factorization"; Kim et al. 2016.

    Examples
    --------
    >>> planted = torch.rand(40, 3) @ torch.rand(3, 30)
    >>> tensorlrf.decomposition.evbmf(planted).rank
    3
    """
    checked = as_tensor(matrix, "matrix", min_order=1)
    if checked.ndim == 1:
        values, (rows, columns) = _given(checked, shape)
        eps = torch.finfo(working_dtype(checked.dtype)).eps
        return _solution(values, rows, columns, ACCURACY * math.sqrt(max(rows, columns)) * eps, 0.0)
    if shape is not None:
        raise ArgumentError(
            f"shape={shape!r} goes with singular values; matrix has a shape of its own, "
            f"{tuple(checked.shape)}"
        )
    rows = int(checked.shape[0])
    return _of_tensor(singular_values(checked), rows, checked.numel() // rows, checked.dtype)


def unfolding_rank(values: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """The rank of `evbmf`, from all singular values of an unfolding (L, M) of a tensor of `dtype`,
    which `singular_values` took of it or another way as exact; float64, descending."""
    return _of_tensor(values, *shape, dtype).rank


def _of_tensor(values: Tensor, rows: int, columns: int, dtype: torch.dtype) -> EVBMF:
    known = ACCURACY * math.sqrt(max(rows, columns)) * torch.finfo(torch.float64).eps
    known = known if dtype == torch.float64 else math.sqrt(known)  # roots from a Gram
    return _solution(values, rows, columns, known, STORED * torch.finfo(dtype).eps)


def _solution(values: Tensor, rows: int, columns: int, known: float, stored: float) -> EVBMF:
    """From singular values, descending, that are known to `known` of the largest; each entry of
    their matrix has `stored` of its size for noise, at the least."""
    largest = float(values[0])
    if largest == 0:
        return EVBMF(0, 0.0, 0.0, ())
    values = values / largest
    short, long = min(rows, columns), max(rows, columns)
    alpha = short / long
    size = float(values.square().sum()) / (short * long)  # the mean square of the entries
    rounding = max(known**2 / (long * least_signal(alpha)), stored**2 * size)
    noise = _noise_variance(values, long, alpha, rounding)
    bound = long * noise * least_signal(alpha)
    square = values[values.square() > bound].square()
    excess = 1 - (short + long) * noise / square
    root = (excess**2 - 4 * short * long * (noise / square) ** 2).clamp_min(0).sqrt()
    shrunk = largest * square.sqrt() / 2 * (excess + root)
    return EVBMF(
        int(square.shape[0]),
        noise * largest * largest,
        math.sqrt(bound) * largest,
        tuple(shrunk.tolist()),
    )


def analytic_matrix_rank(tensor: Tensor) -> int:
    """The rank that `rank="auto"` stands for, one at least: of (n_0, product of the others)."""
    return max(1, evbmf_rank(tensor))


def analytic_tucker_ranks(tensor: Tensor, modes: Sequence[int]) -> tuple[int, ...]:
    """The same for the unfolding of each of `modes` (Kim et al. 2016)."""
    ranks = []
    for k in modes:
        shape = (tensor.shape[k], tensor.numel() // tensor.shape[k])
        ranks.append(max(1, unfolding_rank(singular_values(tensor, k), shape, tensor.dtype)))
    return tuple(ranks)


def singular_values(tensor: Tensor, mode: int = 0) -> Tensor:
    """All singular values of an unfolding, descending, float64.

    Those of float64 input are LAPACK's; below, roots of the eigenvalues of the Gram of the short
    side, summed in float64.
    """
    data = tensor.detach().to(working_dtype(tensor.dtype))
    scale = scale_of(data)
    data = data if scale == 1.0 else data / scale
    n, rest = data.shape[mode], data.numel() // data.shape[mode]
    if data.dtype == torch.float64:
        values = thin_svd(unfold(data, mode))[1]
    elif n <= rest:
        values = descending_eigh(mode_gram(data, mode))[0].sqrt()
    else:
        values = descending_eigh(mode_gram(unfold(data, mode), 1))[0].sqrt()
    return values.to(torch.float64) * scale


@lru_cache(maxsize=256)
def least_signal(alpha: float) -> float:
    """x_min = (1 + tau)(1 + alpha / tau) for alpha = L / M in (0, 1].

    A singular value g stands out of noise of variance s where g^2 > M s x_min. tau is near
    2.5129 sqrt(alpha), and is that for alpha = 1.
    """

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    low, high = 0.1 * alpha, 4.0  # the sum falls from above zero to below
    for _ in range(100):
        middle = math.sqrt(low * high)
        if phi(middle) + phi(middle / alpha) > 0:
            low = middle
        else:
            high = middle
    return (1 + low) * (1 + alpha / low)


def _noise_variance(values: Tensor, long: int, alpha: float, rounding: float) -> float:
    """The noise variance, `rounding` at the least, that minimises the free energy, of values whose
    largest is one."""
    short = values.shape[0]
    squares = values.square()
    upper = max(float(squares.sum()) / (short * long), rounding)
    most = min(math.ceil(short / (1 + alpha)) - 1, short - 1)  # signals that there can be
    crossings = squares / (long * least_signal(alpha))
    tail = float(squares[most:].sum()) / (long * (short - most))
    lower = min(max(float(crossings[most]), tail, rounding), upper)
    inside = crossings[(crossings > lower) & (crossings < upper)]
    spaced = torch.logspace(math.log10(lower), math.log10(upper), _GRID, **_HOST)
    ends = torch.tensor([lower, upper], **_HOST)
    tried = torch.cat([ends, spaced.clamp(lower, upper), inside.cpu()]).sort().values
    energies = _free_energies(tried, squares, long, alpha)
    best = int(energies.argmin())
    low, high = float(tried[max(0, best - 1)]), float(tried[min(len(tried) - 1, best + 1)])
    found = _golden(low, high, squares, long, alpha)
    candidates = torch.tensor([float(tried[best]), found], **_HOST)
    return float(candidates[int(_free_energies(candidates, squares, long, alpha).argmin())])


def _free_energies(variances: Tensor, squares: Tensor, long: int, alpha: float) -> Tensor:
    """The free energy at each of some noise variances, up to a constant.

    The sum over x = g^2 / (M s) of x - ln x, and of ln(t + 1) + alpha ln(t / alpha + 1) - t for
    those that stand out, with t = t(x) the larger root of (1 + t)(1 + alpha / t) = x. The
    logarithms of the values themselves are the constant, so that zeros do no harm.
    """
    squares = squares.cpu()
    energies = []
    for part in torch.split(variances, max(1, (1 << 20) // squares.shape[0])):
        x = squares / (long * part[:, None])  # (variances, L)
        signal = x > least_signal(alpha)
        centre = torch.where(signal, x - (1 + alpha), 3.0)
        t = (centre + (centre**2 - 4 * alpha).clamp_min(0).sqrt()) / 2
        gain = torch.log1p(t) + alpha * torch.log1p(t / alpha) - t
        terms = x + torch.where(signal, gain, 0.0)
        energies.append(terms.sum(1) + squares.shape[0] * part.log())
    return torch.cat(energies)


def _golden(low: float, high: float, squares: Tensor, long: int, alpha: float) -> float:
    """The minimum between two variances, by golden section of their logarithms."""
    a, b = math.log(low), math.log(high)
    for _ in range(_GOLDEN_STEPS):
        step = _INVERSE_GOLDEN * (b - a)
        pair = torch.tensor([b - step, a + step], **_HOST)
        left, right = _free_energies(pair.exp(), squares, long, alpha).tolist()
        if left <= right:
            b = float(pair[1])
        else:
            a = float(pair[0])
    return math.exp((a + b) / 2)


def _given(checked: Tensor, shape: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int]]:
    """Singular values that were passed, descending, and the shape they belong to."""
    if shape is None:
        raise ArgumentError(
            f"matrix has {checked.shape[0]} numbers in one mode, singular values; pass the shape "
            "of their matrix too, shape=(L, M)"
        )
    if (
        not isinstance(shape, (tuple, list, torch.Size))
        or len(shape) != 2
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape)
    ):
        raise ArgumentError(f"shape={shape!r} must be two positive ints (L, M)")
    if min(shape) != checked.shape[0]:
        raise ShapeError(
            f"matrix has {checked.shape[0]} singular values, but one of shape={tuple(shape)} has "
            f"{min(shape)}; pass all of them"
        )
    if float(checked.min()) < 0:
        raise ArgumentError("matrix has a negative singular value; pass their absolute values")
    ordered = checked.detach().to(torch.float64).sort(descending=True).values
    return ordered, (int(shape[0]), int(shape[1]))
