"""The tensor trains of many tensors of one shape at once (`batch_dims=`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg._batched import (
    as_batch,
    per_item,
    relative_to_batch,
    scales_of,
    squares,
)
from tensorlrf.decomposition.linalg._budget import TruncationBudget, within_after_rounding
from tensorlrf.decomposition.linalg._gram import BLOCK
from tensorlrf.decomposition.trains._tt_ranks import rank_limits
from tensorlrf.decomposition.trains._tt_sweep import train_svd
from tensorlrf.factors import Batch, TTFactors
from tensorlrf.factors.algebra import chain_product


class Trains:
    """Tensors (b, n_0, ..., n_{N-1}) in their working dtype, each divided by its scale.

    order   the mode of one place that core k stands for
    batch   the shape that the b places are given in the result
    """

    def __init__(self, stack: Tensor, order: tuple[int, ...], batch: tuple[int, ...]) -> None:
        work = stack.to(working_dtype(stack.dtype))
        self.dtype, self.order, self.batch = stack.dtype, order, batch
        self.scales = scales_of(work)  # (b,)
        work = work / per_item(self.scales, work)
        self.whole = work.permute(0, *(k + 1 for k in order))
        self.sizes = tuple(int(n) for n in self.whole.shape[1:])
        self.norms = squares(work)

    def cut(
        self, ranks: Sequence[int] | None, budget: TruncationBudget[Tensor] | None = None
    ) -> list[Tensor]:
        """Cores (b, r, n_k, r') as they are returned."""
        cores, carrier = train_svd(self.whole, ranks, budget, batch_dims=1)
        shared = share_norms(cores, carrier, self.scales)
        return [core.to(self.dtype).contiguous() for core in shared]

    def rel_errors(self, cores: Sequence[Tensor]) -> Tensor:
        """True relative errors (b,) of cores as returned, absolute where a tensor is zero."""
        multiplied = torch.vmap(lambda *train: chain_product(train))
        at_once = max(1, BLOCK // math.prod(self.sizes))
        lost = []
        for start in range(0, len(self.whole), at_once):
            some = slice(start, start + at_once)
            dense = multiplied(*(core[some].to(self.whole.dtype) for core in cores))
            rebuilt = dense.reshape(-1, *self.sizes)
            lost.append(squares(self.whole[some] - rebuilt / per_item(self.scales[some], rebuilt)))
        squared = torch.cat(lost)
        norms = torch.where(self.norms > 0, self.norms, 1)
        return (squared / norms).sqrt()

    def as_fit(
        self, cores: Sequence[Tensor], errors: Tensor | None, kept: bool, how: str
    ) -> Fit[Batch]:
        """The stacked factors with their error together, NaN where `errors` were not computed."""
        parts = {f"cores.{k}": core for k, core in enumerate(cores)}
        factors = as_batch(TTFactors, parts, {"modes": list(self.order)}, self.batch)
        if errors is None:
            return Fit(factors, (math.nan,), kept, how)
        together = relative_to_batch(errors, self.norms, self.scales)
        worst = f"largest error of {len(errors)} places {float(errors.max()):.4g}"
        return Fit(factors, (together,), kept, f"{how}, {worst}")


def fit_tt_batched(
    stack: Tensor,
    ranks: Sequence[int] | None,
    error: float | None,
    order: tuple[int, ...],
    batch: tuple[int, ...],
    measure: bool,
) -> Fit[Batch]:
    """`fit_tt` of each place of a checked stack (b, n_0, n_1, ...), inner ranks common to all.

    Without `measure` a fit of given ranks does not compute its error (NaN).
    """
    trains = Trains(stack, order, batch)
    if ranks is not None:
        cores = trains.cut(ranks)
        errors = trains.rel_errors(cores) if measure else None
        return trains.as_fit(cores, errors, True, f"inner ranks {tuple(ranks)} as asked")
    bound = error or 0.0
    floor = torch.finfo(trains.whole.dtype).eps

    def truncated(budget: TruncationBudget[Tensor]) -> tuple[list[Tensor], Tensor]:
        cores = trains.cut(None, budget)
        return cores, trains.rel_errors(cores)

    aims = torch.full_like(trains.norms, max(bound, floor))
    kept, tried = within_after_rounding(truncated, bound, len(order) - 1, aims=aims, floor=floor)
    if kept is not None:
        return trains.as_fit(kept, tried[-1], True, f"common ranks keep each within {bound}")
    # Trains of full rank have cores of zeros and ones, and one that holds the numbers as they are.
    cores = trains.cut(rank_limits(trains.sizes))
    errors = trains.rel_errors(cores)
    reason = f"rounding leaves more than {bound} at a place at any ranks below the full ones"
    return trains.as_fit(cores, errors, bool((errors <= bound).all()), reason)


def share_norms(cores: Sequence[Tensor], carrier: int, scales: Tensor) -> list[Tensor]:
    """`share_norm` of each place, which is then multiplied by its scale."""
    norms = squares(cores[carrier]).sqrt()
    exponents = torch.log2(scales)
    steps = torch.round((torch.log2(torch.where(norms > 0, norms, 1)) + exponents) / len(cores))
    steps = torch.where(norms > 0, steps, 0)
    own = torch.where(norms > 0, exponents - steps * (len(cores) - 1), 0)
    return [
        core * per_item(torch.exp2(own if k == carrier else steps), core)
        for k, core in enumerate(cores)
    ]
