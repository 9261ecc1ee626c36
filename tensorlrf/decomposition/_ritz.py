"""How far the Ritz values of a Krylov space still are from the singular values.

The sum of the r largest squared Ritz values is what a truncation within the space captures, and it
rises towards its optimum with every product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

GROUPS = 4
"""Neighbours are observed together: each by itself wins by fits and starts."""

SLOWEST = 0.98, 0.9
"""The largest rates that the two estimates believe in."""

CAUTION = 2.0


def still_to_gain(history: Sequence[Values], r: int, noise: Values | float = 0.0) -> float:
    """An estimate, on the safe side, of the sum of sigma_i^2 - theta_i^2 over the first r.

    history   squared Ritz values after each product, descending: so many, more than r, as the
              space held when it was first looked at
    noise     the rounding of the first r, below which a difference says nothing

    Nothing short of the whole spectrum bounds it for all matrices. It is estimated twice, and the
    larger estimate counts.

    By theory, for each Ritz value: of one that stands out by gamma = theta_i^2 / theta_b^2 - 1 from
    the last of them, what each product leaves is (sqrt(1 + gamma) + sqrt(gamma))^-2 of what the one
    before it has left, as Chebyshev polynomials do (Saad 1980, theorem 6; Musco & Musco 2015); the
    first one, from random vectors, does not count. A spectrum that begins with a cluster stands
    still for a while, which deceives a look at gains.

    By observation, for each group of neighbours: what the last product has won, carried on at the
    rate of the last three, two by two, since products with A and with its transpose win by turns.
    A spectrum that falls to a plateau slows down, which deceives the theory.
    """
    if len(history) < 3:
        return float("inf")
    now = history[-1]
    gamma = np.maximum(now[:r] / max(float(now[-1]), np.finfo(np.float64).tiny) - 1, 0)
    rate = np.minimum((np.sqrt(1 + gamma) + np.sqrt(gamma)) ** -2, SLOWEST[0])
    theory = _carried_on(_gain(history[0], now, r), rate ** (len(history) - 2))
    recent = history[-4:]
    before = _grouped(_gain(recent[0], recent[-2], r, noise))
    after = _grouped(_gain(recent[1], now, r, noise))
    last = _grouped(_gain(recent[-2], now, r, noise))
    # Where nothing was won there is no rate.
    rate = np.divide(after, before, out=np.full(len(last), SLOWEST[1]), where=before > after)
    observed = CAUTION * _carried_on(last, np.minimum(rate, SLOWEST[1]))
    return max(theory, observed)


def _gain(before: Values, after: Values, r: int, noise: Values | float = 0.0) -> Values:
    return np.maximum(after[:r] - before[:r] - noise, 0)


def _grouped(gains: Values) -> Values:
    size = -(-len(gains) // GROUPS)
    return np.add.reduceat(gains, np.arange(0, len(gains), size))


def _carried_on(gain: Values, rate: Values) -> float:
    """The sum of all further gains of a geometric series."""
    return float((gain * rate / (1 - rate)).sum())
