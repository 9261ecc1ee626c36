"""How far second moments are drawn towards their mean eigenvalue.

G = X X^T / N over few samples, or over inputs that lie in few directions, says nothing of the other
directions: a fit in that metric may do anything there, and its factors may grow without bound. With

    G' = (1 - a) G + a m I,    m = tr(G) / n,

those directions count as much as a m in the norm of the weight itself, so that they follow the
plain fit (Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance
matrices").
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.compact import Compact, Gram, has_cholesky, squared

ROUNDING = float(torch.finfo(torch.float32).eps)
"""Relative rounding of second moments: they are sums of products of float32 inputs at best,
whatever dtype they are kept in."""

LEAST = ROUNDING**0.5
"""Share of a typical variance that a direction without inputs is given. What the inputs do span
loses that much by it, and in the other directions the rounding of G amounts to ROUNDING over that
share: at the root of ROUNDING both harms are equal."""


LARGE = 512
"""Sides from which on half of a Cholesky factorisation is worth a trial."""


def mean_eigenvalue(gram: Gram) -> float:
    """tr(G) / n; one where there are no inputs, since the plain norm has that."""
    mean = float(gram.diagonal().mean())
    return mean if mean > 0 else 1.0


@overload
def shrunk(gram: Tensor, amount: float) -> Tensor: ...
@overload
def shrunk(gram: Gram, amount: float) -> Gram: ...
def shrunk(gram: Gram, amount: float) -> Gram:
    """(1 - amount) G + amount m I, (n, n); G itself where the amount is zero."""
    if amount == 0.0:
        return gram
    if isinstance(gram, Compact):
        return gram.times(1 - amount).plus(amount * mean_eigenvalue(gram))
    drawn = gram * (1 - amount)
    drawn.diagonal().add_(amount * mean_eigenvalue(gram))
    return drawn


def ledoit_wolf(gram: Gram, fourth: float, samples: float) -> float:
    """The amount that leaves the least mean square error of G' as an estimate of what more samples
    would come to (Ledoit & Wolf 2004, equations 14 and theorem 3.1; with N - 1 in place of N, for
    the samples vary about their own mean).

    gram     (n, n) over `samples` inputs x
    fourth   mean of |x|^4
    """
    whole = squared(gram)
    scatter = whole - float(gram.diagonal().sum()) ** 2 / len(gram)  # |G - m I|^2
    if samples < 2:
        return 1.0
    # The mean of |x x^T - G|^2, over N - 1: the variance of G.
    variance = max(0.0, fourth - whole) / (samples - 1)
    if variance <= whole * ROUNDING:
        return 0.0
    return min(1.0, variance / scatter) if scatter > 0 else 1.0


def least_amount(gram: Gram) -> float:
    """The amount for moments of unknown samples: none where every direction holds `LEAST` of a
    typical variance, else so much that it does; all of it where there are no inputs.

    `gram` (n, n), float64, positive semidefinite up to rounding.
    """
    return 0.0 if is_spanned(gram) else spanning_amount(gram)


def share_of_least(gram: Gram) -> float:
    """What each direction is to hold at the least, over the mean eigenvalue; more than rounding
    takes from any direction of sums of squares."""
    variances = gram.diagonal()
    mean = float(variances.mean())
    if not mean > 0:
        return 1.0
    # One input that is far larger than all others would make the mean a poor measure of these.
    live = variances[variances > ROUNDING * variances.max()]
    typical = min(mean, float(live.median()))
    return float(max(LEAST * typical / mean, 4 * len(gram) ** 0.5 * ROUNDING))


def is_spanned(gram: Gram) -> bool:
    """Whether every direction holds half of what it is to hold at the least.

    A Cholesky factor in float32 stands for a matrix that is off by no more than its rounding of
    every entry sqrt(G_ii G_jj), eps tr(G), times a few for its sums: where there is room for that,
    it says so in half of the time.
    """
    least = share_of_least(gram) * float(gram.diagonal().mean()) / 2
    room = 4 * ROUNDING * float(gram.diagonal().sum())
    if isinstance(gram, Compact):
        return gram.is_definite(-least)
    if len(gram) >= LARGE and is_definite(gram.to(torch.float32), -least - room):
        return True
    return is_definite(gram, -least)


def spanning_amount(gram: Gram) -> float:
    """The least amount after which every direction holds as much."""
    mean = float(gram.diagonal().mean())
    amount = share_of_least(gram)
    # What is left where large moments cancel may be further from positive than rounding is.
    while amount < 1 and not is_definite(shrunk(gram, amount), -amount * mean / 2):
        amount *= 4
    return float(min(amount, 1.0))


def is_definite(gram: Gram, shift: float) -> bool:
    """Whether G + shift I is positive definite, (n, n)."""
    if isinstance(gram, Compact):
        return gram.is_definite(shift)
    return has_cholesky(gram, shift)
