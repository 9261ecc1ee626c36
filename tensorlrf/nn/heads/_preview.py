"""The columns that tell most of the logits of a head, and how many of them it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.decomposition.shrinkage import shrunk, spanning_amount
from tensorlrf.errors import ArgumentError, ShapeError

KS = (1, 10)
"""Best words of which the recall is told."""

NUMBERS = 1 << 24
"""Logits that are looked at together where there are many rows."""

WINDOWS = 8
"""Window sizes that are tried, about: between d / 16 and d / 2."""

SLACK = 0.5
"""Of the words that may be missed on the states that sizes are chosen by: on others more are."""


def read(d: int, V: int, window: int, top: int) -> int:
    """Numbers of B and T that a head of these sizes reads for one row."""
    return d * d + V * window + top * (d - window)


def moved(d: int, V: int, window: int, top: int) -> int:
    """Numbers that go through memory for one row: those of words that are picked are read, written
    next to one another and read again."""
    return read(d, V, window, top) + 2 * top * (d - window)


@dataclass(frozen=True)
class Turned:
    """W = B T for the columns B (V, d) that tell most of the logits, the first ones first, and the
    mean (d,) of T h."""

    columns: Tensor
    turn: Tensor
    mean: Tensor

    @classmethod
    def of(cls, weight: Tensor, states: Tensor | None) -> Turned:
        """Without states the singular vectors of W are T. With some, of covariance C = S S^T, those
        of W S are Q, and T = Q^T S^-1: then E|B_w (T h)_w - W h|^2 about the mean is least."""
        wide = weight.to(torch.float64)
        square = wide.T @ wide
        mean = wide.new_zeros(wide.shape[1])
        if states is None:
            basis = torch.linalg.eigh(square)[1].flip(-1)
            return cls(wide @ basis, basis.T.contiguous(), mean)
        rows = rows_of(states, wide.shape[1]).to(torch.float64)
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        root = torch.linalg.cholesky(shrunk(covariance, spanning_amount(covariance)))
        basis = torch.linalg.eigh(root.T @ square @ root)[1].flip(-1)
        unit = torch.eye(len(root), dtype=root.dtype, device=root.device)
        inverse = torch.linalg.solve_triangular(root, unit, upper=False)
        turn = basis.T @ inverse
        return cls(wide @ (root @ basis), turn, turn @ mean)

    def shift(self, window: int) -> Tensor:
        """What the columns beyond the window add on the mean."""
        return self.columns[:, window:] @ self.mean[window:]

    def least_moved(
        self, bias: Tensor | None, rows: Tensor, recall: Sequence[float]
    ) -> tuple[int, int]:
        """(window, top) that miss half of what they may on these rows, by moving least."""
        V, d = self.columns.shape
        step = max(1, d // (2 * WINDOWS))
        windows = [*range(step, max(step + 1, d // 2 + 1), step)]
        before: dict[int, list[Tensor]] = {w: [] for w in windows}
        columns, k = self.columns.to(rows.dtype), min(KS[-1], V)
        for part in torch.split(rows, max(1, NUMBERS // V)):
            turned = part @ self.turn.to(rows.dtype).T
            best = F.linear(turned, columns, bias).topk(k).indices
            for w in windows:
                logits = F.linear(turned[:, :w], columns[:, :w], bias) + self.shift(w).to(rows)
                least = logits.gather(1, best)
                ahead = [(logits > one[:, None]).sum(1) for one in least.unbind(1)]
                before[w].append(torch.stack(ahead, 1))  # words that the preview puts before each
        found = [(d, 1)]
        for w, seen in before.items():
            places = torch.cat(seen)
            tops = [
                _within(places[:, :k], 1 - SLACK * (1 - share))
                for k, share in zip(KS, recall, strict=True)
            ]
            found.append((w, min(V, max(*tops, k))))
        return min(found, key=lambda sizes: moved(d, V, *sizes))


def _within(places: Tensor, share: float) -> int:
    """So many words that so large a share of those with these many before them is among them."""
    ranked = places.flatten().sort().values
    return int(ranked[min(len(ranked), math.ceil(share * len(ranked))) - 1]) + 1


def rows_of(states: Any, d: int) -> Tensor:
    """States (..., d) as rows, in float32 at the least. Raises ArgumentError, ShapeError."""
    if not isinstance(states, Tensor) or states.ndim < 1 or states.shape[-1] != d:
        got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ShapeError(f"states is {got}; it must be a tensor (..., {d}), inputs of the head")
    rows = states.detach().reshape(-1, d)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if not len(rows) or not torch.isfinite(rows).all():
        what = "contains NaN or Inf" if len(rows) else "has no rows"
        raise ArgumentError(f"states {what}; give inputs of the head, (..., {d})")
    return rows
