"""Single entries of a tensor and of a CP model: how they are drawn, and what they are.

Half of a fixed sample is uniform, which suits noise, and half is drawn by the squares of the
entries, which finds a few large ones among many small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._state import CPState

_RUN = 64  # entries whose squares are summed before one of them is chosen
_CHUNK = 1 << 20  # numbers made at once


@dataclass(frozen=True)
class EntrySample:
    """Entries of a tensor, each with its weight in a sum over all entries.

    indices  one (n,) int64 a mode
    values   (n,) in the dtype of the tensor
    weights  (n,) float64, 1 / (n q_i) for entries drawn with probability q_i; one where the sample
             is the whole tensor
    """

    indices: tuple[Tensor, ...]
    values: Tensor
    weights: Tensor

    @classmethod
    def draw(cls, tensor: Tensor, count: int, rng: torch.Generator) -> EntrySample:
        """About `count` entries of a contiguous tensor; all of them where there are no more."""
        flat = tensor.reshape(-1)
        size = flat.shape[0]
        if size <= count:
            every = torch.arange(size, device=flat.device)
            ones = torch.ones(size, dtype=torch.float64, device=flat.device)
            return cls(mode_indices(every, tensor.shape), flat, ones)
        half = count // 2
        drawn = torch.cat([draw_uniform(flat, half, rng), draw_by_square(flat, half, rng)])
        values = flat[drawn]
        squares = values.to(torch.float64).square()
        total = total_square(flat)
        share = squares / torch.where(total > 0, total, 1.0)
        q = 0.5 / size + 0.5 * share
        return cls(mode_indices(drawn, tensor.shape), values, 1 / (q * drawn.shape[0]))

    def square_residuals(self, state: CPState) -> Tensor:
        """Estimates of ||X - X_hat||^2 of all starts, (s,) float64."""
        sums = []
        for i in range(state.starts):
            columns = [u[:, i] for u in state.factors]
            model = model_values(columns, state.weights[i], self.indices)
            residual = self.values.to(torch.float64) - model
            sums.append((self.weights * residual.square()).sum())
        return torch.stack(sums)


def model_values(factors: Sequence[Tensor], weights: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """sum_j w_j prod_k U_k[i_k, j] at the given entries: (n,) float64, from (n_k, r) and (r,)."""
    rank = int(weights.shape[0])
    rows = max(1, _CHUNK // rank)
    parts = []
    for picked in zip(*(torch.split(i, rows) for i in indices), strict=True):
        product = weights.to(factors[0].dtype)
        for u, i in zip(factors, picked, strict=True):
            product = product * u.index_select(0, i)
        parts.append(product.sum(1, dtype=torch.float64))
    return torch.cat(parts)


def mode_indices(flat: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Row-major positions (n,) as one index a mode."""
    found = []
    for size in reversed(shape):
        found.append(flat % size)
        flat = flat // size
    return tuple(reversed(found))


def draw_uniform(flat: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Positions drawn with replacement, (count,)."""
    return torch.randint(flat.shape[0], (count,), generator=rng, device=flat.device)


def draw_by_square(flat: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Positions (count,) drawn with replacement by the squares of the entries; uniform for zeros.

    First a run of entries by its energy, then one within it.
    """
    size = flat.shape[0]
    energies = _run_squares(flat)
    if not bool(energies.sum() > 0):
        return draw_uniform(flat, count, rng)
    runs = draw_index(energies, count, rng)
    within = torch.arange(_RUN, device=flat.device)
    found = []
    for part in torch.split(runs, _CHUNK // _RUN):
        places = part[:, None] * _RUN + within  # (some, 64)
        squares = flat[places.clamp(max=size - 1)].to(torch.float64).square()
        squares = torch.where(places < size, squares, 0.0)
        found.append(part * _RUN + draw_index(squares, 1, rng)[:, 0])
    return torch.cat(found)


def draw_index(weights: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Indices (..., count) of the last axis of `weights` (..., n) >= 0, drawn by them.

    A place of weight zero is never drawn, unless all are.
    """
    levels = weights.to(torch.float64).cumsum(-1)
    total = levels[..., -1:]
    spots = torch.rand(
        (*weights.shape[:-1], count), generator=rng, device=weights.device, dtype=torch.float64
    )
    # A spot below the total, so that the place found is one at which the levels rise.
    spots = torch.minimum(spots * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(levels, spots.contiguous(), right=True).clamp(
        max=weights.shape[-1] - 1
    )


def total_square(flat: Tensor) -> Tensor:
    """The sum of squares, a float64 scalar."""
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    for part in torch.split(flat, _CHUNK):
        total = total + part.to(torch.float64).square().sum()
    return total


def _run_squares(flat: Tensor) -> Tensor:
    """Sums of squares of runs of 64 entries, the last one perhaps shorter: float64."""
    whole = flat.shape[0] // _RUN * _RUN
    parts = [
        part.to(torch.float64).view(-1, _RUN).square().sum(1)
        for part in torch.split(flat[:whole], _CHUNK)
    ]
    if whole < flat.shape[0]:
        parts.append(total_square(flat[whole:])[None])
    return torch.cat(parts)
