"""A loss at entries of the data and of a model: sums of it, and what it may refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._loss import UNFIT, KnownLoss, Loss, Part
from tensorlrf.errors import ArgumentError


def total(loss: Loss, x: Tensor, m: Tensor, weights: Tensor | None, spare: Tensor) -> Part:
    """The sum over entries, and the derivative of each. What is in `m`, and in `spare` of its
    shape, may be lost."""
    if weights is None:
        if isinstance(loss, KnownLoss) and loss.lean is not None:
            return loss.lean(x, m, spare)
        return Part(loss.value(x, m).sum(dtype=torch.float64), loss.slope(x, m))
    value = (loss.value(x, m) * weights).sum(dtype=torch.float64)
    return Part(value, loss.slope(x, m) * weights)


def try_out(loss: Loss, x: Tensor, m: Tensor) -> None:
    """Raise ArgumentError unless its functions give as many finite numbers as they are given, here
    at some entries x (n,) of the data and m (n,) of the start."""
    for name in ("value", "derivative"):
        function = getattr(loss, name)
        if function is None:
            continue
        given = function(x, m.clone())
        if not isinstance(given, Tensor):
            raise ArgumentError(
                f"{name} of {loss.name} gives a {type(given).__name__}; it must give a tensor, of "
                "the shape of the entries that it is given"
            )
        if given.shape != m.shape:
            raise ArgumentError(
                f"{name} of {loss.name} gives the shape {tuple(given.shape)} for entries of the "
                f"shape {tuple(m.shape)}; it must give one number for each"
            )
        odd = (~given.isfinite()).nonzero()
        if len(odd):
            at = int(odd[0, 0])
            raise ArgumentError(
                f"{name} of {loss.name} is {float(given[at]):g} for the entry {float(x[at]):g} of "
                f"the data and {float(m[at]):g} of the model; it must be finite there: bound the "
                "model (lower=0), or give another init"
            )


HIDE = "hide such entries (mask=), or choose another loss"
MEND = "mend such entries, or choose another loss"


def check_data(
    loss: Loss,
    entries: Tensor,
    index_of: Callable[[int], tuple[int, ...]],
    remedy: str,
) -> None:
    """Raise ArgumentError at the first of the entries (n,) that the loss is not for; `index_of`
    gives its index in the tensor."""
    outside, words = UNFIT[loss.support]
    odd = outside(entries).nonzero()
    if len(odd):
        first = int(odd[0, 0])
        raise ArgumentError(
            f"tensor[{', '.join(map(str, index_of(first)))}] is {float(entries[first]):g}, but "
            f"loss={loss.name!r} {words}; {remedy}"
        )
