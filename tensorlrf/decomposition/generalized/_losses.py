"""The losses of generalised CP by their names (Hong, Kolda & Duersch 2020, table 1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tensorlrf.decomposition.generalized._loss import EPS, KnownLoss, Loss, Part, Units
from tensorlrf.errors import ArgumentError, unknown

# Each `lean` makes few passes over few buffers: at 10^5 entries, passes are what a step costs.


def _sum(a: Tensor) -> Tensor:
    """In float64, where rows are summed in their own dtype: what a step gains may be less than the
    last digit of a whole sum in float32."""
    return (a.sum(1) if a.ndim > 1 else a).sum(dtype=torch.float64)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _sum(a * b)


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ArgumentError(f"{name}={value!r} must be a finite number above zero")


# ---- squares ----------------------------------------------------------------------------------


def _gaussian(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    m.sub_(x)
    return Part(_dot(m, m), m.mul_(2))


def _gaussian_beyond(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    return Part(_dot(x, x - 2 * m), torch.mul(x, -2, out=m))


def _of_squares(total: float, units: Units) -> float:
    return total * units.scale * units.scale


GAUSSIAN: KnownLoss = KnownLoss(
    lambda x, m: (x - m) ** 2,
    lambda x, m: 2 * (m - x),
    name="gaussian",
    lean=_gaussian,
    base="quadratic",
    beyond=_gaussian_beyond,
    divided=lambda scale: GAUSSIAN,
    undivided=_of_squares,
)


def huber_loss(delta: float = 0.25) -> Loss:
    """Squares of residuals up to `delta`, and beyond it their tangent: outliers count less.

    Parameters
    ----------
    delta : float
        Above zero, in the unit of the data.

    Returns
    -------
    Loss

    Raises
    ------
    ArgumentError
        For another number.

    References
    ----------
    Huber 1964; Hong, Kolda & Duersch 2020, section 3.4.

    Examples
    --------
    >>> from tensorlrf.decomposition import huber_loss
    >>> huber_loss(1.0).value(torch.zeros(2), torch.tensor([0.5, 3.0]))
    tensor([0.2500, 5.0000])
    """
    _check_positive("delta", delta)

    def value(x: Tensor, m: Tensor) -> Tensor:
        off = (m - x).abs()
        near = off.clamp_max(delta)
        return near * (2 * off - near)

    def lean(x: Tensor, m: Tensor, spare: Tensor) -> Part:
        m.sub_(x)
        torch.clamp(m, -delta, delta, out=spare)  # with |m| >= |spare| of one sign
        return Part(2 * _dot(spare, m) - _dot(spare, spare), spare.mul_(2))

    return KnownLoss(
        value,
        lambda x, m: 2 * (m - x).clamp(-delta, delta),
        name="huber",
        lean=lean,
        divided=lambda scale: huber_loss(delta / scale),
        undivided=_of_squares,
    )


# ---- counts -----------------------------------------------------------------------------------


def _poisson(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    plain = _sum(m)
    torch.log(m.add_(EPS), out=spare)
    value = plain - _dot(x, spare)
    return Part(value, torch.div(x, m, out=m).neg_().add_(1))


def _poisson_beyond(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    torch.log(m.add_(EPS), out=spare)
    value = -_dot(x, spare)
    return Part(value, torch.div(x, m, out=m).neg_())


POISSON: KnownLoss = KnownLoss(
    lambda x, m: m - x * (m + EPS).log(),
    lambda x, m: 1 - x / (m + EPS),
    lower=0.0,
    support="non-negative",
    name="poisson",
    lean=_poisson,
    base="linear",
    beyond=_poisson_beyond,
    divided=lambda scale: POISSON,
    undivided=lambda total, u: u.scale * (total - math.log(u.scale) * u.data),
)


def _poisson_log(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    torch.exp(m, out=spare)
    value = _sum(spare) - _dot(x, m)
    return Part(value, torch.sub(spare, x, out=m))


POISSON_LOG: KnownLoss = KnownLoss(
    lambda x, m: m.exp() - x * m,
    lambda x, m: m.exp() - x,
    support="non-negative",
    mean=torch.exp,
    name="poisson_log",
    link=lambda mean: math.log(max(mean, EPS)),
    lean=_poisson_log,
)


def negative_binomial_loss(failures: float = 1.0) -> Loss:
    """Counts that vary more than those of Poisson: successes before so many failures.

    The model has the odds of a success.

    Parameters
    ----------
    failures : float
        Above zero.

    Returns
    -------
    Loss

    Raises
    ------
    ArgumentError
        For another number.

    References
    ----------
    Hong, Kolda & Duersch 2020, section 3.5.

    Examples
    --------
    >>> from tensorlrf.decomposition import negative_binomial_loss
    >>> negative_binomial_loss(2).mean(torch.tensor([1.5]))
    tensor([3.])
    """
    _check_positive("failures", failures)

    def lean(x: Tensor, m: Tensor, spare: Tensor) -> Part:
        count = x + failures
        torch.log1p(m, out=spare)
        value = _dot(count, spare)
        count.div_(spare.copy_(m).add_(1))  # (failures + x) / (1 + m)
        torch.log(m.add_(EPS), out=spare)
        value = value - _dot(x, spare)
        return Part(value, count.sub_(torch.div(x, m, out=spare)))

    return KnownLoss(
        lambda x, m: (failures + x) * m.log1p() - x * (m + EPS).log(),
        lambda x, m: (failures + x) / (1 + m) - x / (m + EPS),
        lower=0.0,
        support="non-negative",
        mean=lambda m: failures * m,
        name="negative_binomial",
        link=lambda mean: mean / failures,
        lean=lean,
    )


# ---- zeros and ones ---------------------------------------------------------------------------


def _bernoulli_odds(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    value = _sum(torch.log1p(m, out=spare))
    slope = spare.copy_(m).add_(1).reciprocal_()  # 1 / (1 + m)
    ratio = x / m.add_(EPS)
    value = value - _dot(x, m.log_())
    return Part(value, torch.sub(slope, ratio, out=m))


BERNOULLI_ODDS: KnownLoss = KnownLoss(
    lambda x, m: m.log1p() - x * (m + EPS).log(),
    lambda x, m: 1 / (1 + m) - x / (m + EPS),
    lower=0.0,
    support="binary",
    mean=lambda m: m / (1 + m),
    name="bernoulli_odds",
    link=lambda mean: mean / max(1 - mean, EPS),
    lean=_bernoulli_odds,
)


def _bernoulli_logit(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    value = _sum(softplus(m)) - _dot(x, m)
    return Part(value, torch.sigmoid(m, out=spare).sub_(x))


BERNOULLI_LOGIT: KnownLoss = KnownLoss(
    lambda x, m: softplus(m) - x * m,
    lambda x, m: m.sigmoid() - x,
    support="binary",
    mean=torch.sigmoid,
    name="bernoulli_logit",
    link=lambda mean: math.log(max(mean, EPS) / max(1 - mean, EPS)),
    lean=_bernoulli_logit,
)


# ---- sizes ------------------------------------------------------------------------------------


def _gamma(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    torch.div(x, m.add_(EPS), out=spare)
    value = _sum(spare)
    spare.neg_().add_(1)
    slope = spare.div_(m)  # (1 - x / m) / m
    return Part(value + _sum(m.log_()), slope)


GAMMA: KnownLoss = KnownLoss(
    lambda x, m: x / (m + EPS) + (m + EPS).log(),
    lambda x, m: (1 - x / (m + EPS)) / (m + EPS),
    lower=0.0,
    support="positive",
    name="gamma",
    lean=_gamma,
    divided=lambda scale: GAMMA,
    undivided=lambda total, u: total + math.log(u.scale) * u.weight,
)


def _rayleigh(x: Tensor, m: Tensor, spare: Tensor) -> Part:
    torch.div(x, m.add_(EPS), out=spare).square_()
    value = math.pi / 4 * _sum(spare)
    slope = spare.mul_(-math.pi / 2).add_(2).div_(m)
    return Part(value + 2 * _sum(m.log_()), slope)


RAYLEIGH: KnownLoss = KnownLoss(
    lambda x, m: 2 * (m + EPS).log() + math.pi / 4 * (x / (m + EPS)) ** 2,
    lambda x, m: (2 - math.pi / 2 * (x / (m + EPS)) ** 2) / (m + EPS),
    lower=0.0,
    support="non-negative",
    name="rayleigh",
    lean=_rayleigh,
    divided=lambda scale: RAYLEIGH,
    undivided=lambda total, u: total + 2 * math.log(u.scale) * u.weight,
)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        *(GAUSSIAN, huber_loss(), POISSON, POISSON_LOG, negative_binomial_loss()),
        *(BERNOULLI_ODDS, BERNOULLI_LOGIT, GAMMA, RAYLEIGH),
    )
}


def loss_of(given: Any) -> Loss:
    """The one that a user names or gives. Raises ArgumentError that lists the names."""
    if isinstance(given, Loss):
        return given
    found = LOSSES.get(given) if isinstance(given, str) else None
    if found is None:
        raise unknown("loss", given, (*LOSSES, "a Loss"))
    return found
