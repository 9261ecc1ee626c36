"""What an entry of the data and one of the model cost: functions of two numbers, with what data
they are for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, shown, unknown

Elementwise = Callable[[Tensor, Tensor], Tensor]
"""From entries x of the data and m of the model to as many numbers."""

Support = Literal["real", "non-negative", "positive", "binary"]

UNFIT: dict[Support, tuple[Callable[[Tensor], Tensor], str]] = {
    "real": (lambda x: torch.zeros_like(x, dtype=torch.bool), ""),
    "non-negative": (lambda x: x < 0, "needs data that are not negative"),
    "positive": (lambda x: x <= 0, "needs data above zero"),
    "binary": (lambda x: (x != 0) & (x != 1), "needs data of zeros and ones"),
}
"""Support -> which entries lie outside of it, and what is said of them."""

EPS = 1e-10
"""Added to the model before its logarithm or its inverse is taken (Hong, Kolda & Duersch 2020)."""


@dataclass(frozen=True)
class Loss:
    """A loss of generalised CP: the sum over all entries of `value(x, m)` is what is minimised.

    Parameters
    ----------
    value : callable
        From two tensors of one shape, entries x of the data and m of the model, to a tensor of
        that shape.
    derivative : callable, optional
        Likewise, of `value` in m; by autograd where it is not given.
    lower : float
        0 where the model may not be negative: then no factor is. -inf where it may.
    support : str
        The data that it is for: "real", "non-negative", "positive" or "binary" (zeros and ones).
    mean : callable, optional
        From entries of the model to what it expects of the data, where these are not the same.
    name : str
        What errors call it.

    Raises
    ------
    ArgumentError
        For what cannot be called, another bound, or an unknown support.

    References
    ----------
    Hong, Kolda & Duersch 2020, section 3.

    Examples
    --------
    >>> from tensorlrf.decomposition import Loss
    >>> cosh = Loss(lambda x, m: (m - x).cosh().log(), lambda x, m: (m - x).tanh())
    >>> f = tensorlrf.generalized_cp(torch.rand(6, 5, 4), 2, loss=cosh, random_state=0)
    >>> f.rank
    2
    """

    value: Elementwise
    derivative: Elementwise | None = None
    lower: float = -math.inf
    support: Support = "real"
    mean: Callable[[Tensor], Tensor] | None = None
    name: str = "your loss"

    def __post_init__(self) -> None:
        for name in ("value", "derivative", "mean"):
            given = getattr(self, name)
            if not callable(given) and (given is not None or name == "value"):
                raise ArgumentError(f"Loss: {name}={shown(given)} must be a function of tensors")
        if self.lower not in (0, -math.inf):
            raise ArgumentError(
                f"Loss: lower={self.lower!r} must be 0, which keeps factors from being negative, "
                "or -inf; shift the data where the model is bounded elsewhere"
            )
        if self.support not in UNFIT:
            raise unknown("support", self.support, tuple(UNFIT))

    def slope(self, x: Tensor, m: Tensor) -> Tensor:
        """The derivative in m, given or by autograd.

        Parameters
        ----------
        x, m : Tensor
            Of one shape: entries of the data, and of the model.

        Returns
        -------
        Tensor
            Of that shape.
        """
        if self.derivative is not None:
            return self.derivative(x, m)
        with torch.enable_grad():
            point = m.detach().requires_grad_()
            total = self.value(x, point).sum()
            if not total.requires_grad:  # it does not depend on the model
                return torch.zeros_like(m)
            (slope,) = torch.autograd.grad(total, point)
        return slope

    def expected(self, model: Tensor) -> Tensor:
        """What entries of the model expect of the data.

        Parameters
        ----------
        model : Tensor
            Of any shape.

        Returns
        -------
        Tensor
            Of that shape.
        """
        return model if self.mean is None else self.mean(model)


class Part(NamedTuple):
    """Of some entries the sum of the loss, float64 (), and its derivative at each."""

    value: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Units:
    """Of data that were divided by `scale`: sums over all entries that count.

    weight  of the weights, each one where there are none
    data    of the weighted data
    """

    scale: float
    weight: float
    data: float


Lean = Callable[[Tensor, Tensor, Tensor], Part]


def _itself(expected: float) -> float:
    return expected


@dataclass(frozen=True)
class KnownLoss(Loss):
    """One that the library brings, of which it knows more.

    link    from what is expected of an entry to the model's
    lean    the sum over entries x and m without weights, and the derivative of each; written over
            m and a buffer of its shape
    base    f(0, m) summed over all entries is "linear" or "quadratic" in the model, so that factors
            give it at once
    beyond  as `lean`, of f(x, m) - f(0, m); where there is a base
    divided by a power of two with the data, and from the total of those to that of the data as
            they were; None where a model does not scale with its data
    """

    link: Callable[[float], float] = _itself
    lean: Lean | None = None
    base: Literal["linear", "quadratic"] | None = None
    beyond: Lean | None = None
    divided: Callable[[float], Loss] | None = None
    undivided: Callable[[float, Units], float] | None = None
