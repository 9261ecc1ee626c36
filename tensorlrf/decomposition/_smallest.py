"""The smallest rank within an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg._gram import keep_within
from tensorlrf.errors import TensorlrfWarning, warn
from tensorlrf.factors import Factors

F = TypeVar("F", bound=Factors)


def smallest_rank(
    cut: Callable[[int], tuple[F, float]],
    energies: Tensor,
    error: float,
    limit: int,
    dtype: torch.dtype,
    how: str,
) -> Fit[F]:
    """The smallest rank whose true error, after the cast, is at most `error`.

    `cut` gives the factors of a rank and their error, `energies` say where to look first.
    """
    floor = torch.finfo(working_dtype(dtype)).eps
    within = max(error, floor)
    first = keep_within(within**2 * float(energies.sum()))(energies)
    factors, loss = cut(first)
    if loss <= error:
        return Fit(factors, (loss,), True, f"rank {first} is the smallest within {error}, {how}")
    above, best = limit, cut(limit)
    if best[1] > error:
        reason = f"rounding to {dtype} alone leaves more than error={error}, {how}"
        if error >= floor:
            warn(
                f"error={error} is out of reach: rounding the factors to {dtype} leaves "
                f"{best[1]:.3g} at full rank; ask for more, or pass the weight in float32",
                TensorlrfWarning,
            )
        return Fit(factors, (loss,), False, reason)
    below = first
    while above - below > 1:
        middle = (above + below) // 2
        tried = cut(middle)
        if tried[1] <= error:
            above, best = middle, tried
        else:
            below = middle
    reason = f"rank {above} is the smallest within {error} after rounding, {how}"
    return Fit(best[0], (best[1],), True, reason)
