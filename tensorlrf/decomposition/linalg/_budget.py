"""A squared error shared over several truncations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, npt.NDArray[np.float64])
Errors = TypeVar("Errors", Tensor, float)
T = TypeVar("T")

TRIES = 3
"""Sweeps that make room for the rounding of their results."""


class TruncationBudget(Generic[Array]):
    """A squared error that truncations of modes, bonds or blocks share.

    Their projections are orthogonal, so that what each leaves out adds up to the squared error of
    the whole (Oseledets 2011, theorem 2.2), or to a bound of it where each truncates the whole
    (De Lathauwer et al. 2000a, property 10). Each may use what is left, divided by the truncations
    that are left, so that what one does not use is handed on.

    Many tensors of one shape, which are to have common ranks, have their budgets in leading
    dimensions: a truncation stays within all of them.

    squared_error  (*batch,), as a share of `norm`
    turns          truncations to come
    norm           (*batch,) squared norms; by default those of the energies that come first
    handed_on      False where every truncation is of the whole, and has an equal share
    """

    def __init__(
        self,
        squared_error: Array | float,
        turns: int = 1,
        *,
        norm: Array | float | None = None,
        handed_on: bool = True,
    ) -> None:
        self.squared_error: Any = squared_error
        self.norm: Any = norm
        self.turns, self.handed_on = turns, handed_on
        self.taken = 0
        self.spent: Any = 0.0

    @property
    def share(self) -> Array:
        """What the next truncation may leave out, (*batch,)."""
        total = self.squared_error * self.norm
        share: Array
        if self.handed_on:
            share = (total - self.spent) / (self.turns - self.taken)
        else:
            share = total / self.turns
        return share

    def choose(self: TruncationBudget[Tensor], energies: Tensor) -> int:
        """The smallest rank, one at least, of a truncation within its share, which takes a turn.

        energies  (*batch, k) squared singular values, descending
        """
        tails = energies.detach().flip(-1).cumsum(-1).flip(-1)
        if self.norm is None:
            self.norm = _of_the_host(tails[..., 0])
        r = max(1, self.smallest(tails))
        if r < tails.shape[-1]:
            self.spend(_of_the_host(tails[..., r]))
        self.taken += 1
        return r

    def smallest(self, tails: Array) -> int:
        """The smallest rank r within the share, by what each rank leaves out, tails (*batch, r);
        as many as there are tails where none is."""
        if tails.ndim == 1:
            return int((tails > self.share).sum())
        return int((tails.swapaxes(0, -1) > self.share).sum(0).max())

    def covers(self, lost: Array) -> bool:
        """Whether the share is as much as that (*batch,) everywhere."""
        return bool((lost <= self.share).all())

    def spend(self, lost: Array | float) -> None:
        """Take it from what is left."""
        self.spent = self.spent + lost

    @property
    def planned(self: TruncationBudget[Tensor]) -> Tensor:
        """The squared relative errors (*batch,) by what truncations so far have left out."""
        spent, norm = _tensor(self.spent), _tensor(self.norm)
        return spent / torch.where(norm > 0, norm, 1)


def within_after_rounding(
    truncated: Callable[[TruncationBudget[Tensor]], tuple[T, Errors]],
    error: float,
    turns: int,
    *,
    aims: Errors,
    floor: float = 0.0,
) -> tuple[T | None, list[Errors]]:
    """What `truncated` makes with a relative `error` of at most that after it was cast; None where
    rounding leaves no room for it. And the errors (*batch,) of each try.

    truncated  gives what it made within a budget of `turns`, and true errors (*batch,)
    aims       (*batch,) errors to begin with; a number where there is no batch
    floor      the smallest error to aim at
    """
    tried: list[Errors] = []
    for _ in range(TRIES):
        budget: TruncationBudget[Tensor] = TruncationBudget(aims**2, turns)
        made, errors = truncated(budget)
        tried.append(errors)
        if _everywhere(errors <= error):
            return made, tried
        reached, aimed = _tensor(errors), _tensor(aims)
        # What rounding adds to the plan is taken from the budget.
        left = error**2 - 1.1 * (reached**2 - budget.planned).clamp(min=0)
        if not bool((left > floor**2).all()):
            break
        aimed = torch.where(reached <= error, aimed, torch.minimum(left.sqrt(), 0.99 * aimed))
        aims = _of_the_host(aimed)
    return None, tried


def _everywhere(holds: Tensor | bool) -> bool:
    return bool(holds.all()) if isinstance(holds, Tensor) else holds


def _of_the_host(values: Tensor) -> Any:
    """A number where there is no batch: sums of numbers cost less than those of tensors."""
    return values if values.ndim else float(values)


def _tensor(values: Any) -> Tensor:
    """And back."""
    if isinstance(values, Tensor):
        return values
    return torch.tensor(values, dtype=torch.float64, device="cpu")
