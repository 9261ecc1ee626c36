"""Block low-rank approximations of many weights on one grid of blocks (`batch_dims=`)."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._search import out_of_reach
from tensorlrf.decomposition.blocks._allocation import Allocation, Piece, Ranks
from tensorlrf.decomposition.blocks._blr_criterion import Criterion
from tensorlrf.decomposition.blocks._blr_fit import NOISE, fewest_steps, uniform
from tensorlrf.decomposition.blocks._blr_search import best_of
from tensorlrf.decomposition.blocks._blr_spectra import BlockSpectra, Energies, grid
from tensorlrf.decomposition.linalg._batched import (
    as_batch,
    per_item,
    relative_to_batch,
    scales_of,
    squares,
)
from tensorlrf.decomposition.linalg._budget import TruncationBudget
from tensorlrf.decomposition.linalg._gram import BLOCK
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Batch, BlockLowRank

ROUNDS = 6
"""Weightings of the places that are tried for an error."""


class Weights:
    """Matrices (b, m, n) in their working dtype, each divided by its scale.

    batch  the shape that the b places are given in the result
    """

    def __init__(self, tensor: Tensor, batch_dims: int) -> None:
        self.batch = tuple(tensor.shape[:batch_dims])
        if tensor.ndim - batch_dims != 2:
            raise UnsupportedError(
                f"blr takes matrices (out, in), batch_dims={batch_dims} leaves tensors of shape "
                f"{tuple(tensor.shape[batch_dims:])}; raise batch_dims, or reshape them to "
                "(out, in * kh * kw)"
            )
        self.dtype = tensor.dtype
        work = tensor.detach().to(working_dtype(tensor.dtype)).flatten(0, -3)
        self.scales = scales_of(work)  # (b,)
        # A copy in rows, so that equal values give equal factors however they lie in memory.
        self.matrices = (work / per_item(self.scales, work)).contiguous()
        self.norms = squares(self.matrices)
        self.shape = int(tensor.shape[-2]), int(tensor.shape[-1])

    @property
    def floor(self) -> float:
        """The smallest relative error that can be told from rounding."""
        return float(torch.finfo(self.matrices.dtype).eps)

    def rel_errors(self, stacked: BlockLowRank) -> Tensor:
        """True relative errors (b,) of factors with the b places in front of every tensor, as they
        are returned; absolute where a matrix is zero."""
        at_once = max(1, BLOCK // math.prod(self.shape))
        lost = []
        for start in range(0, len(self.matrices), at_once):
            some = slice(start, start + at_once)
            wide = pytree.tree_map(lambda t, some=some: t[some].to(self.matrices.dtype), stacked)
            dense = torch.vmap(BlockLowRank.to_dense)(wide)
            lost.append(squares(self.matrices[some] - dense / per_item(self.scales[some], dense)))
        errors = (torch.cat(lost) / torch.where(self.norms > 0, self.norms, 1)).sqrt()
        # Factors that overflow in the dtype of the weights are infinitely far off.
        return torch.nan_to_num(errors, nan=math.inf, posinf=math.inf)


class SharedTiling:
    """Weights on one grid of blocks, which have one rank in all places.

    shares  for each block (b, k): its energies in each place, as shares of the whole place, so that
            places of any size count alike
    pieces  with their means over the places
    """

    def __init__(self, weights: Weights, block: tuple[int, int], dense_blocks: bool) -> None:
        self.weights = weights
        self.spectra = BlockSpectra(weights.matrices, grid(weights.shape, block))
        norms = torch.where(weights.norms > 0, weights.norms, 1).cpu().numpy()
        self.shares = [energies / norms[:, None] for energies in self.spectra.energies]
        self.pieces = [
            Piece(place.rows, place.columns, shares.mean(0), dense=dense_blocks)
            for place, shares in zip(self.spectra.places, self.shares, strict=True)
        ]

    def cut(self, ranks: Ranks, reason: str) -> Fit[Batch]:
        """The nearest blocks of these ranks. The errors are the root mean square over the places,
        that of the whole batch, and last the largest."""
        root = per_item(self.weights.scales.sqrt(), self.weights.matrices)
        places, dtype = self.spectra.places, self.weights.dtype
        contents: list[Tensor | tuple[Tensor, Tensor]] = []
        for i, rank in enumerate(ranks):
            content = self.spectra.content(i, rank)
            if isinstance(content, tuple):
                contents.append(((content[0] * root).to(dtype), (content[1] * root).to(dtype)))
            else:
                contents.append((content * root * root).to(dtype))

        def packed(contents: list[Tensor | tuple[Tensor, Tensor]]) -> BlockLowRank:
            blocks = [(p.row, p.column, c) for p, c in zip(places, contents, strict=True)]
            return BlockLowRank.pack(blocks, self.weights.shape)

        stacked: BlockLowRank = torch.vmap(packed)(contents)
        errors = self.weights.rel_errors(stacked)
        together = relative_to_batch(errors, self.weights.norms, self.weights.scales)
        worst, typical = float(errors.max()), float(errors.square().mean().sqrt())
        factors = as_batch(BlockLowRank, stacked.tensors(), stacked.meta(), self.weights.batch)
        reason = f"{reason}, largest error of {len(errors)} places {worst:.4g}"
        return Fit(factors, (typical, together, worst), True, reason)

    def within_params(self, params: int) -> Ranks:
        """Ranks shared out over `params` parameters a place; none goes to what is but rounding."""
        whole = float(sum(piece.energies.sum() for piece in self.pieces))
        rounding = (NOISE * self.weights.floor) ** 2 * whole
        return Allocation(self.pieces).within_params(params, rounding)

    def within_error(self, error: float) -> Fit[Batch]:
        """Few parameters with a true error of at most `error` in every place, after the cast.

        The fewest steps along the allocation of the mean energies that serve every place, less what
        none of them needs; and again with more weight on the places that these leave worst.
        """
        target = max(error, self.weights.floor) ** 2
        weights = np.full(len(self.weights.norms), 1 / len(self.weights.norms))
        tried = []
        for _ in range(ROUNDS):
            allocation = Allocation(self._weighted(weights))
            first = self._first_within(allocation, target)
            budget = TruncationBudget(np.full(len(weights), target), norm=1.0)
            budget.spend(self._left(allocation.state(first)))
            ranks = allocation.given_back(first, budget, self.shares)
            tried.append((self._params(ranks), first, allocation, ranks))
            before = self._left(allocation.state(max(0, first - 1))) * weights
            if not before.any():
                break
            weights = before / before.sum()
        _, first, allocation, ranks = min(tried, key=lambda one: one[0])
        fit = self.cut(ranks, f"common ranks within {error}")
        if fit.error <= error:
            return fit
        reason = f"common ranks within {error} after rounding"
        return fewest_steps(allocation, first - 1, error, lambda ranks: self.cut(ranks, reason))

    def _weighted(self, weights: Energies) -> list[Piece]:
        """The pieces with a mean over the places of these weights."""
        energies = [weights @ shares for shares in self.shares]
        return [replace(p, energies=e) for p, e in zip(self.pieces, energies, strict=True)]

    def _params(self, ranks: Ranks) -> int:
        pairs = zip(self.pieces, ranks, strict=True)
        return sum(p.whole if rank is None else rank * p.each for p, rank in pairs)

    def _first_within(self, allocation: Allocation, target: float) -> int:
        """The fewest steps after which no place leaves more than `target`."""

        def serves(k: int) -> bool:
            return bool((self._left(allocation.state(k)) <= target).all())

        return bisect_left(range(len(allocation)), True, key=serves)

    def _left(self, ranks: Ranks) -> Energies:
        """The energy that each place leaves out (b,), as a share of it."""
        left = np.zeros(len(self.weights.norms))
        for shares, rank in zip(self.shares, ranks, strict=True):
            if rank is not None:
                left += shares[:, rank:].sum(1)
        return left


def fit_blr_batched(weights: Weights, criterion: Criterion, dense_blocks: bool) -> Fit[Batch]:
    """`fit_blr` of all places, with one grid of blocks and one set of ranks.

    Where no block is given, sizes are compared by the mean over the places.
    """
    error = criterion.error
    params = math.floor((criterion.share or 0.0) * math.prod(weights.shape))

    def fitted(size: tuple[int, int]) -> Fit[Batch]:
        tiling = SharedTiling(weights, size, dense_blocks)
        if error is not None:
            return tiling.within_error(error)
        if criterion.rank is not None:
            return tiling.cut(
                uniform(tiling.pieces, criterion.rank), f"rank {criterion.rank} as asked"
            )
        reason = f"ranks shared out over {params} parameters a place"
        return tiling.cut(tiling.within_params(params), reason)

    def attempt(size: tuple[int, int]) -> tuple[tuple[float, ...], Fit[Batch]]:
        tried = fitted(size)
        if error is None:
            allowed = params * len(weights.matrices)
            return (max(0, tried.factors.n_params - allowed), tried.errors[0]), tried
        return (math.inf if tried.error > error else tried.factors.n_params,), tried

    fit = best_of(weights.shape, attempt)[1] if criterion.block is None else fitted(criterion.block)
    _, together, worst = fit.errors
    if error is not None and worst > error:
        return Fit(fit.factors, (together,), False, out_of_reach(error, worst, weights.dtype))
    return Fit(fit.factors, (together,), True, fit.reason)
