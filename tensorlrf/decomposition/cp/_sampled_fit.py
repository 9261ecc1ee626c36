"""The fit of a CP model from a sample of entries, with an interval that holds without assumptions.

The squared residual is a mean of Y = (X_i - X_hat_i)^2 / q_i over entries drawn with probability
q_i. A fifth of them is uniform; the others are drawn by X_i^2, and by the squares of the rank-one
terms. With x_i = X_i^2 / ||X||^2, W the sum of the |weights| of unit terms, and g_i the mixture of
the squared terms in proportion to those weights, |X_hat_i| <= W sqrt(g_i), and so

    (X_i - X_hat_i)^2 <= (||X||^2 / b + W^2 / c) (b x_i + c g_i) <= M q_i:

Y lies in [0, M] whatever the residual is like. That bound is what the inequality of Maurer &
Pontil (2009, theorem 4, "empirical Bernstein") needs, on either side with half of the doubt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition.cp._entries import (
    draw_by_square,
    draw_index,
    draw_uniform,
    mode_indices,
    model_values,
    total_square,
)
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.factors.kinds import check_format

WIDTH = 0.02
"""What the interval of a close fit may be wide by default, in units of the fit."""

_UNIFORM = 0.2  # share of the sample: noise is met by it with a variance of 3 / .2 - 1


@dataclass(frozen=True)
class SampledFit:
    """An estimate of the fit `1 - ‖X - X_hat‖ / ‖X‖`, and where it lies.

    Parameters
    ----------
    value : float
        The estimate.
    low, high : float
        The interval that holds the fit with probability `confidence` at least.
    n_samples : int
        Entries that were drawn; all entries, and an interval of no width, where the tensor has no
        more than were asked for.
    confidence : float
        Of the interval, over the draws.
    """

    value: float
    low: float
    high: float
    n_samples: int
    confidence: float

    @property
    def width(self) -> float:
        """That is high - low."""
        return self.high - self.low

    def __str__(self) -> str:
        return (
            f"fit {self.value:.4f} in [{self.low:.4f}, {self.high:.4f}] with confidence "
            f"{self.confidence:g}, from {self.n_samples} entries"
        )


@without_autocast()
@threaded
def sampled_fit(
    tensor: Any,
    factors: CPFactors,
    *,
    n_samples: int | None = None,
    confidence: float = 0.95,
    random_state: int | torch.Generator | None = None,
) -> SampledFit:
    """The fit `1 - ‖X - X_hat‖ / ‖X‖` of a CP model, estimated from some entries of X.

    A tensor of zeros has the fit 1 for a model of zeros, and 0 for any other.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_1, ..., n_N)
        As `cp` takes it; read once, for its norm and for its large entries. The model is evaluated
        at the drawn entries only.
    factors : CPFactors
        Of that shape.
    n_samples : int, optional
        Entries drawn. By default as many as make the interval no wider than .02 where the fit is
        close to one or the residual is like noise: it grows with (1 + W / ‖X‖)^2, W the sum of the
        absolute weights of terms of unit norm, so with terms that cancel each other.
    confidence : float
        With which the interval holds the fit, in (0, 1).
    random_state : int or Generator, optional

    Returns
    -------
    SampledFit

    Raises
    ------
    ArgumentError, ShapeError
        For tensors that `cp` refuses, factors that are not CPFactors of the tensor's shape, counts
        below 2 and a confidence outside (0, 1).

    Notes
    -----
    The interval is an empirical Bernstein bound. It holds for every tensor and every model: the
    bound on the sampled terms that it needs follows from the way in which they are drawn, and
    nothing is assumed of the residual.

    References
    ----------
    Maurer & Pontil 2009, theorem 4.

    Examples
    --------
    >>> tensor = torch.rand(20, 20, 20)
    >>> f = tensorlrf.cp(tensor, 2, random_state=0)
    >>> about = tensorlrf.decomposition.sampled_fit(tensor, f, n_samples=4000, random_state=0)
    >>> about.low <= 1 - f.rel_error(tensor) <= about.high
    True
    """
    checked = as_tensor(tensor).detach()
    _check(checked, factors, n_samples, confidence)
    rng = generator(random_state, checked.device)
    dtype = working_dtype(checked.dtype)
    data = checked.to(dtype).contiguous()
    scale = scale_of(data)
    flat = (data if scale == 1.0 else data / scale).reshape(-1)
    model = _Model.of(factors, checked, scale)
    square = float(total_square(flat))
    if square == 0:
        fit = 1.0 if model.weight == 0 else 0.0
        return SampledFit(fit, fit, fit, flat.shape[0], confidence)
    norm = math.sqrt(square)
    bound = (1 + model.weight / norm) ** 2 / (1 - _UNIFORM)  # M / ||X||^2
    doubt = math.log(4 / (1 - confidence))  # ln(2 / delta) for either side, of half the doubt
    count = n_samples
    if count is None:
        count = math.ceil(2 * 7 / 3 * doubt * bound / WIDTH**2)
    if count >= flat.shape[0]:
        return _whole(flat, model, checked.shape, norm, confidence)
    shares = _terms(flat, model, checked.shape, norm, count, rng) / square  # Y / ||X||^2
    mean = float(shares.mean())
    spread = math.sqrt(2 * float(shares.var()) * doubt / count)
    spread += 7 * bound * doubt / (3 * (count - 1))
    # Of two vectors: their distance is no less than that of their norms, no more than the sum.
    shorter, longer = (n / norm for n in model.norms())
    nearest, furthest = max(0.0, 1 - longer, shorter - 1), 1 + longer
    errors = (
        min(max(math.sqrt(max(0.0, e)), nearest), furthest)
        for e in (mean, mean + spread, mean - spread)
    )
    value, low, high = (1 - e for e in errors)
    return SampledFit(value, low, high, count, confidence)


@dataclass(frozen=True)
class _Model:
    """Unit columns (n_k, r), weights (r,) and what bounds the model they stand for."""

    factors: tuple[Tensor, ...]
    weights: Tensor  # (r,) float64
    square: float  # ||X_hat||^2

    @property
    def weight(self) -> float:
        """W, the sum of the norms of the terms."""
        return float(self.weights.abs().sum())

    def norms(self) -> tuple[float, float]:
        """||X_hat|| from below and from above: terms that cancel leave rounding in its square."""
        noise = 8 * self.weights.shape[0] * torch.finfo(torch.float64).eps * self.weight**2
        return math.sqrt(max(0.0, self.square - noise)), math.sqrt(max(0.0, self.square) + noise)

    @classmethod
    def of(cls, factors: CPFactors, tensor: Tensor, scale: float) -> _Model:
        weights = factors.weights.detach().to(tensor.device, torch.float64) / scale
        unit = []
        gram = torch.ones((), dtype=torch.float64, device=tensor.device)
        for f in factors.factors:
            u = f.detach().to(tensor.device, torch.float64)
            length = torch.linalg.vector_norm(u, dim=0)
            u = u / torch.where(length > 0, length, 1.0)
            weights = weights * length
            gram = gram * (u.T @ u)
            unit.append(u)
        square = float(weights @ gram @ weights)
        return cls(tuple(unit), weights, square)


def _terms(
    flat: Tensor,
    model: _Model,
    shape: torch.Size,
    norm: float,
    count: int,
    rng: torch.Generator,
) -> Tensor:
    """Y for each of `count` independent draws, (count,) float64."""
    total = norm + model.weight
    by_data = (1 - _UNIFORM) * norm / total  # b; c is the rest: so M is smallest
    shares = torch.tensor([_UNIFORM, by_data, 1 - _UNIFORM - by_data], device=flat.device)
    kinds = torch.bincount(draw_index(shares, count, rng), minlength=3).tolist()
    drawn = torch.cat([draw_uniform(flat, kinds[0], rng), draw_by_square(flat, kinds[1], rng)])
    by_term = _draw_terms(model, kinds[2], rng)
    indices = tuple(
        torch.cat([i, j]) for i, j in zip(mode_indices(drawn, shape), by_term, strict=True)
    )
    position = torch.zeros_like(indices[0])
    for i, size in zip(indices, shape, strict=True):
        position = position * size + i
    values = flat[position].to(torch.float64)
    residual = values - model_values(model.factors, model.weights, indices)
    q = _UNIFORM / flat.shape[0] + by_data * (values / norm).square()
    if model.weight > 0:
        squares = [u.square() for u in model.factors]
        mixture = model_values(squares, model.weights.abs() / model.weight, indices)
        q = q + (1 - _UNIFORM - by_data) * mixture
    return residual.square() / q


def _draw_terms(model: _Model, count: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Entries drawn by the square of a term, the term by its weight: one (count,) a mode."""
    terms = draw_index(model.weights.abs(), count, rng)
    of_each = torch.bincount(terms, minlength=model.weights.shape[0]).tolist()
    return tuple(
        torch.cat([draw_index(u[:, j].square(), n, rng) for j, n in enumerate(of_each)])
        for u in model.factors
    )


def _whole(
    flat: Tensor, model: _Model, shape: torch.Size, norm: float, confidence: float
) -> SampledFit:
    """The fit itself, from every entry."""
    square = 0.0
    size = flat.shape[0]
    for first in range(0, size, 1 << 20):
        part = flat[first : first + (1 << 20)]
        places = torch.arange(first, first + part.shape[0], device=flat.device)
        values = model_values(model.factors, model.weights, mode_indices(places, shape))
        square += float((part.to(torch.float64) - values).square().sum())
    fit = 1 - math.sqrt(square) / norm
    return SampledFit(fit, fit, fit, size, confidence)


def _check(tensor: Tensor, factors: CPFactors, n_samples: object, confidence: object) -> None:
    others = "the sampled fit is that of CPFactors, for others use factors.rel_error(tensor)"
    check_format(factors, (CPFactors,), "factors", others)
    if factors.shape != tuple(tensor.shape):
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}, but tensor has shape "
            f"{tuple(tensor.shape)}"
        )
    if n_samples is not None and (
        isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 2
    ):
        raise ArgumentError(
            f"n_samples={n_samples!r} must be an int of at least 2: a variance is taken of them"
        )
    if (
        isinstance(confidence, bool)
        or not isinstance(confidence, (int, float))
        or not 0 < confidence < 1
    ):
        raise ArgumentError(f"confidence={confidence!r} must lie between 0 and 1, such as 0.95")
