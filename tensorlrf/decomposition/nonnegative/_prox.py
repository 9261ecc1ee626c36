"""Proximal operators: argmin over U of step * penalty(U) + ||U - V||^2 / 2, column by column.

A set is a penalty that is zero within and infinite outside, whose operator is the nearest point.
Each operator takes V (n, r) and the step; those of sets have no use for the latter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Prox = Callable[[Tensor, float], Tensor]
Project = Callable[[Tensor], Tensor]


def non_negative(v: Tensor) -> Tensor:
    """The nearest without a negative entry."""
    return v.clamp_min(0.0)


def unit_ball(v: Tensor) -> Tensor:
    """The nearest with columns of length one at the most."""
    lengths: Tensor = torch.linalg.vector_norm(v, dim=0)
    return v / lengths.clamp_min(1.0)


def simplex(v: Tensor) -> Tensor:
    """The nearest whose columns are non-negative and sum to one (Held, Wolfe & Crowder 1974): V
    less a threshold, which the largest entries tell."""
    n = v.shape[0]
    wide = v.to(torch.float64)
    falling = wide.sort(dim=0, descending=True).values
    over = falling.cumsum(0) - 1
    counts = torch.arange(1, n + 1, dtype=torch.float64, device=v.device)[:, None]
    kept = (falling * counts > over).sum(0, keepdim=True).clamp_min(1)
    nearest = (wide - over.gather(0, kept - 1) / kept).clamp_min(0.0)
    return (nearest / nearest.sum(0)).to(v.dtype)


def soft(v: Tensor, step: float) -> Tensor:
    """Of the sum of absolute values: all entries nearer to zero, by the step at the most."""
    return v.sign() * (v.abs() - step).clamp_min(0.0)


def absolute_sum(u: Tensor) -> float:
    """Its penalty."""
    return float(u.abs().sum(dtype=torch.float64))


def smooth(v: Tensor, step: float) -> Tensor:
    """Of the sum of squared differences of neighbours along a column: the solution of
    (1 + 2 step D^T D) U = V.

    With its mirror image behind it a column is periodic, and D^T D is diagonal in its Fourier
    coefficients: 2 - 2 cos(pi k / n).
    """
    n = v.shape[0]
    waves = torch.fft.rfft(torch.cat([v, v.flip(0)]).to(torch.float64), dim=0)  # (n + 1, r)
    k = torch.arange(n + 1, dtype=torch.float64, device=v.device)
    bend = 2 - 2 * torch.cos(math.pi * k / n)
    turned = waves / (1 + 2 * step * bend)[:, None]
    back: Tensor = torch.fft.irfft(turned, n=2 * n, dim=0)
    return back[:n].to(v.dtype)


def roughness(u: Tensor) -> float:
    """Its penalty."""
    return float(u.diff(dim=0).square().sum(dtype=torch.float64))


def rising(v: Tensor) -> Tensor:
    """The nearest whose columns do not fall: isotonic regression (Ayer et al. 1955)."""
    return _by_column(v, lambda column: pooled(column)[0])


def falling(v: Tensor) -> Tensor:
    """The nearest whose columns do not rise."""
    return rising(v.flip(0)).flip(0)


def unimodal(v: Tensor, least: float = -math.inf) -> Tensor:
    """The nearest whose columns rise and then fall, with no entry below `least` (Stout 2008): the
    end of the rise that leaves least to a rise up to it and a fall behind it."""
    return _by_column(v, lambda column: _unimodal(column, least))


def pooled(values: Sequence[float], least: float = -math.inf) -> tuple[list[float], list[float]]:
    """The nearest sequence that does not fall and has nothing below `least`, and what each
    beginning of the values leaves of itself, squared, to the nearest one: of none, of one, ...

    Neighbours that fall are pooled to their mean (Best & Chakravarti 1990).
    """
    blocks: list[tuple[float, int, float]] = []  # mean, count, what is left of their squares
    left, losses = 0.0, [0.0]
    for value in values:
        mean, count, squares = value, 1, 0.0  # squares about the mean
        while blocks and blocks[-1][0] >= mean:
            before, more, others = blocks.pop()
            left -= others + more * _below(before, least) ** 2
            squares += others + (before - mean) ** 2 * more * count / (more + count)
            mean += (before - mean) * more / (more + count)
            count += more
        blocks.append((mean, count, squares))
        left += squares + count * _below(mean, least) ** 2
        losses.append(left)
    return [max(mean, least) for mean, count, _ in blocks for _ in range(count)], losses


def _below(value: float, least: float) -> float:
    return max(least - value, 0.0) if least > -math.inf else 0.0


def _unimodal(values: list[float], least: float) -> list[float]:
    ahead, behind = pooled(values, least)[1], pooled(values[::-1], least)[1][::-1]
    totals = [up + down for up, down in zip(ahead, behind, strict=True)]
    end = totals.index(min(totals))
    return pooled(values[:end], least)[0] + pooled(values[end:][::-1], least)[0][::-1]


def _by_column(v: Tensor, nearest: Callable[[list[float]], list[float]]) -> Tensor:
    columns = [nearest(column) for column in v.T.tolist()]
    return torch.tensor(columns, dtype=v.dtype, device=v.device).reshape(v.T.shape).T.contiguous()
