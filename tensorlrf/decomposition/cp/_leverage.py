"""Rows of a Khatri-Rao product drawn by leverage (Larsen & Kolda 2022).

The leverage score of row (i_1, ..., i_N) of Z = U_1 kr ... kr U_N is at most the product of the
scores of the rows i_k of U_k, so rows drawn by that product serve as rows drawn by leverage would,
without Z. Rows whose probability is above a threshold are taken surely, the others are drawn from
what remains (their hybrid of deterministic and random sampling). Nothing here reads a value back
from the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._als import proximal_solve
from tensorlrf.decomposition.cp._entries import EntrySample, draw_index, mode_indices
from tensorlrf.decomposition.cp._fit import relative
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.linalg.multilinear._columns import normalise

HEAVY_ROWS = 512
"""At most this many rows are taken surely: the threshold is no lower than its inverse."""

PROPOSALS = 4
"""Rows drawn for each one used: some of the drawn are heavy, and are taken surely already."""

JUDGED = 1 << 14
"""Entries by which sampled sweeps are compared."""

_RIDGE = 1e-12  # of a Gram with unit diagonal, in float64


@dataclass(frozen=True)
class Rows:
    """Rows of a Khatri-Rao product, equally many for each start.

    indices  one (s, n) int64 for each mode of the product
    weights  (s, n) float64: sums over the rows times these weights stand for sums over all rows.
             Zero for places that are not used.
    """

    indices: tuple[Tensor, ...]
    weights: Tensor


@dataclass(frozen=True)
class LeverageSampler:
    """Sampled sweeps on the tensor itself, and a fixed sample of its entries to judge them by."""

    tensor: Tensor
    norm: float
    judged: EntrySample

    @classmethod
    def make(cls, tensor: Tensor, norm: float, rng: torch.Generator) -> LeverageSampler:
        sample = EntrySample.draw(tensor, JUDGED, rng)
        return cls(tensor, norm if norm > 0 else 1.0, sample)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def errors(self, state: CPState) -> list[float]:
        """Estimated relative errors of all starts."""
        return relative(self.judged.square_residuals(state).tolist(), self.norm)

    def sweep(
        self,
        state: CPState,
        samples: int,
        ridge: float,
        fixed: frozenset[int],
        rng: torch.Generator,
    ) -> CPState:
        """One pass over all free modes, each from rows drawn anew."""
        factors, weights = list(state.factors), state.weights
        scores = [leverage_scores(u) for u in factors]
        modes = range(len(factors))
        for mode in modes:
            if mode in fixed:
                continue
            others = [k for k in modes if k != mode]
            rows = draw_rows([scores[k] for k in others], samples, rng)
            design = khatri_rao_rows([factors[k] for k in others], rows)  # (s, n, r)
            data = fibres(self.tensor, mode, rows)  # (s, n, n_mode)
            weighted = design.to(torch.float64) * rows.weights[:, :, None]
            system = weighted.transpose(1, 2) @ design.to(torch.float64)
            rhs = data.to(torch.float64).transpose(1, 2) @ weighted  # (s, n_mode, r)
            old = factors[mode]
            solution = proximal_solve(system, rhs.transpose(0, 1), old * weights, ridge)
            factors[mode], weights = normalise(solution, old)
            scores[mode] = leverage_scores(factors[mode])
        return replace(state, factors=tuple(factors), weights=weights)


def leverage_scores(factor: Tensor) -> Tensor:
    """Probabilities (s, n) in proportion to the leverage scores of the rows of U (n, s, r).

    The score of row i is u_i (U^T U)^-1 u_i^T; a ridge at the rounding of float64 serves columns
    that depend on each other. Rows of zeros have none.
    """
    u = factor.to(torch.float64).transpose(0, 1)  # (s, n, r)
    gram = u.transpose(1, 2) @ u
    rank = gram.shape[-1]
    identity = torch.eye(rank, dtype=gram.dtype, device=gram.device)
    lower, _ = torch.linalg.cholesky_ex(gram + rank * _RIDGE * identity)
    half = torch.linalg.solve_triangular(lower, u.transpose(1, 2), upper=False)  # (s, r, n)
    scores: Tensor = half.square().sum(1)
    return scores / scores.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def draw_rows(scores: Sequence[Tensor], samples: int, rng: torch.Generator) -> Rows:
    """At most `samples` rows of the product of modes with the given probabilities, (s, n_k) each.

    The heavy ones first, each with weight one; the rest by the product of the probabilities,
    given that they are not heavy. Equal rows are merged into one that has their weights. Where the
    product has no more rows than that, it is taken whole.
    """
    sizes = [p.shape[1] for p in scores]
    if math.prod(sizes) <= samples:
        every = torch.arange(math.prod(sizes), device=scores[0].device).expand(len(scores[0]), -1)
        return Rows(mode_indices(every, sizes), torch.ones_like(every, dtype=torch.float64))
    heavy, chance = heaviest_rows(scores, min(samples, HEAVY_ROWS))
    threshold = 1 / min(samples, HEAVY_ROWS)
    sure = chance > threshold  # (s, heavy)
    n_sure = sure.sum(1, keepdim=True)
    left = (1 - torch.where(sure, chance, 0.0).sum(1, keepdim=True)).clamp_min(0.0)

    drawn = torch.zeros_like(heavy[:, :1])
    probability = torch.ones_like(chance[:, :1])
    for p, size in zip(scores, sizes, strict=True):
        index = draw_index(p, PROPOSALS * samples, rng)
        drawn = drawn * size + index
        probability = probability * p.gather(1, index)
    light = probability <= threshold
    first = (~light).to(torch.int8).argsort(dim=1, stable=True)[:, :samples]
    drawn, probability, light = (t.gather(1, first) for t in (drawn, probability, light))
    places = torch.arange(samples, device=drawn.device)
    used = light & (places < samples - n_sure) & (probability > 0)
    count = used.sum(1, keepdim=True).clamp_min(1)
    # That none of the drawn is light happens too: what is lost then, the other times make good.
    chance_of_any = -torch.expm1(PROPOSALS * samples * torch.log1p(-left))
    share = left / (count * chance_of_any.clamp_min(torch.finfo(torch.float64).tiny))
    weights = torch.where(used, share / torch.where(used, probability, 1.0), 0.0)
    drawn, weights = merge_equal(drawn, weights)

    rows = torch.cat([heavy, drawn], dim=1)
    weights = torch.cat([sure.to(torch.float64), weights], dim=1)
    kept = (weights == 0).to(torch.int8).argsort(dim=1, stable=True)[:, :samples]
    rows, weights = rows.gather(1, kept), weights.gather(1, kept)
    return Rows(mode_indices(rows, sizes), weights)


def heaviest_rows(scores: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest rows of the product, at most: numbers and probabilities (s, count).

    The probability of a row is at most that of any part of it, so the likeliest rows of the first
    modes hold those of all: the product itself is never made.
    """
    starts = scores[0].shape[0]
    chance = scores[0].new_ones(starts, 1)
    rows = torch.zeros(starts, 1, dtype=torch.int64, device=chance.device)
    for p in scores:
        best, index = p.topk(min(count, p.shape[1]), dim=1)
        products = (chance[:, :, None] * best[:, None, :]).flatten(1)
        numbers = (rows[:, :, None] * p.shape[1] + index[:, None, :]).flatten(1)
        chance, places = products.topk(min(count, products.shape[1]), dim=1)
        rows = numbers.gather(1, places)
    return rows, chance


def merge_equal(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (s, n), sorted, of which the first of equal ones has the weights of all of them."""
    rows, order = rows.sort(dim=1)
    weights = weights.gather(1, order)
    new = torch.ones_like(rows)
    new[:, 1:] = (rows[:, 1:] != rows[:, :-1]).to(new.dtype)
    group = new.cumsum(1) - 1  # the number of the distinct row
    merged = torch.zeros_like(weights).scatter_add_(1, group, weights)
    return rows, torch.where(new == 1, merged.gather(1, group), 0.0)


def khatri_rao_rows(factors: Sequence[Tensor], rows: Rows) -> Tensor:
    """Those rows of the Khatri-Rao product of factors (n_k, s, r): (s, n, r)."""
    product: Tensor | None = None
    for u, index in zip(factors, rows.indices, strict=True):
        wide = index[:, :, None].expand(-1, -1, u.shape[2])
        part = u.transpose(0, 1).gather(1, wide)
        product = part if product is None else product * part
    return product if product is not None else rows.weights.new_zeros(())


def fibres(tensor: Tensor, mode: int, rows: Rows) -> Tensor:
    """The mode-`mode` fibres of a contiguous tensor at those rows: (s, n, n_mode)."""
    strides = tensor.stride()
    others = [k for k in range(tensor.ndim) if k != mode]
    base = torch.zeros_like(rows.indices[0])
    for k, index in zip(others, rows.indices, strict=True):
        base = base + index * strides[k]
    along = torch.arange(tensor.shape[mode], device=tensor.device) * strides[mode]
    return tensor.reshape(-1)[base[:, :, None] + along]
