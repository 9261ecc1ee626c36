"""How far the Ritz values of a Krylov space still are from the singular values.

The sum of the r largest squared Ritz values is what a truncation within the space captures, and it
rises towards its optimum with every product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


class Look(NamedTuple):
    """products   with the matrix so far
    values     squared Ritz values that they give, descending
    """

    products: int
    values: Values


GROUPS = 4
"""Neighbours are observed together: each by itself wins by fits and starts."""

SLOWEST = 0.98, 0.9
"""The largest rates that the two estimates believe in."""

CAUTION = 2.0


def still_to_gain(history: Sequence[Look], r: int, noise: Values | float = 0.0) -> float:
    """An estimate, on the safe side, of the sum of sigma_i^2 - theta_i^2 over the first r.

    history   after each product, later after every other one: so many values, more than r, as the
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
    products, now = history[-1]
    gamma = np.maximum(now[:r] / max(float(now[-1]), np.finfo(np.float64).tiny) - 1, 0)
    rate = np.minimum((np.sqrt(1 + gamma) + np.sqrt(gamma)) ** -2, SLOWEST[0])
    since = products - history[0].products
    theory = _carried_on(_gain(history[0].values, now, r), rate ** (since - 1))
    stride = products - history[-2].products
    if stride == 1:
        # Two by two, shifted by one product.
        earlier, middle = history[-4:][:2]
        before = _gain(earlier.values, history[-2].values, r, noise)
        after = _gain(middle.values, now, r, noise)
    else:
        earlier = next(
            (look for look in history[-3::-1] if look.products <= products - 2 * stride),
            history[0],
        )
        apart = history[-2].products - earlier.products
        before = _gain(earlier.values, history[-2].values, r, noise) * (stride / apart)
        after = _gain(history[-2].values, now, r, noise)
    before, after = _grouped(before), _grouped(after)
    last = _grouped(_gain(history[-2].values, now, r, noise))
    # Where nothing was won there is no rate.
    slowest = SLOWEST[1] ** stride
    rate = np.divide(after, before, out=np.full(len(last), slowest), where=before > after)
    observed = CAUTION * _carried_on(last, np.minimum(rate, slowest))
    return max(theory, observed)


def _gain(before: Values, after: Values, r: int, noise: Values | float = 0.0) -> Values:
    return np.maximum(after[:r] - before[:r] - noise, 0)


def _grouped(gains: Values) -> Values:
    size = -(-len(gains) // GROUPS)
    return np.add.reduceat(gains, np.arange(0, len(gains), size))


def _carried_on(gain: Values, rate: Values) -> float:
    """The sum of all further gains of a geometric series."""
    return float((gain * rate / (1 - rate)).sum())
