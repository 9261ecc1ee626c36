"""A sketch of X^T X, streamed: frequent directions.

Of rows X (N, n) it keeps S (l, n). Whenever as many rows again have come, all are turned into
singular vectors, and the l largest squared singular values are made smaller by the one that
follows, delta, which leaves l rows (Liberty 2013; Ghashami, Liberty, Phillips & Woodruff 2016,
"Frequent directions: simple and deterministic matrix sketching"). A step takes at most delta off in
any direction, and at least (l + 1) delta off |S|^2 in all. So after any stream, and any merging,

    0 <= X^T X - S^T S <= D I,   D = sum of the deltas <= |X - X_k|^2 / (l + 1 - k)  for all k <= l,

with X_k the best approximation of rank k. The variances of the columns are summed up beside it, so
that what S leaves out of them is known: S^T S + diag of that has the diagonal of X^T X itself, and
is off by D at most, and by no more than the sum of what S leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from tensorlrf.compression.calibration.moments._sums import Sums
from tensorlrf.decomposition.linalg.compact import LowRankPlusDiagonal


class Directions(Sums):
    """size    l
    squares  of each column summed up, (n,)
    lost     D
    """

    def __init__(self, n: int, size: int, device: torch.device) -> None:
        self.size = size
        self.squares = torch.zeros(n, dtype=torch.float64, device=device)
        self.lost = torch.zeros((), dtype=torch.float64, device=device)
        self._kept = torch.zeros(2 * size, n, dtype=torch.float64, device=device)
        self._filled = 0

    @property
    def rows(self) -> Tensor:
        """S, and the rows that have come since: fewer than 2 l."""
        return self._kept[: self._filled]

    def take(self, rows: Tensor) -> None:
        # A row has its place by its number alone, so that batches may be split in any way.
        self.squares += rows.square().sum(0)
        self._keep(rows)

    def merge(self, other: Self) -> None:
        self.squares += other.squares
        self.lost += other.lost
        self._keep(other.rows)

    def mean(self, count: int, *, last: bool = False) -> LowRankPlusDiagonal:
        rest = (self.squares - self.rows.square().sum(0)).clamp(min=0)
        off = float(torch.minimum(self.lost, rest.sum())) / count
        return LowRankPlusDiagonal(self.rows / count**0.5, rest / count, off)

    def tensors(self) -> dict[str, Tensor]:
        self._kept[self._filled :] = 0
        filled = self.lost.new_tensor(float(self._filled))
        return {"rows": self._kept, "filled": filled, "squares": self.squares, "lost": self.lost}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._kept, self._filled = tensors["rows"], int(tensors["filled"])
        self.squares, self.lost = tensors["squares"], tensors["lost"]

    def _keep(self, rows: Tensor) -> None:
        while len(rows):
            room = len(self._kept) - self._filled
            part, rows = rows[:room], rows[room:]
            self._kept[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == len(self._kept):
                self._shrink()

    def _shrink(self) -> None:
        inner = self._kept @ self._kept.T  # (2 l, 2 l)
        if not torch.isfinite(inner.diagonal()).all():  # which `squares` will tell
            self._filled = 0
            return
        values, vectors = torch.linalg.eigh(inner)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        delta, values = values[self.size], values[: self.size]
        shares = torch.where(values > delta, (values - delta) / values, 0.0).sqrt()
        turned = (vectors[:, : self.size] * shares).T @ self._kept
        self._kept[: self.size] = turned
        self._filled = self.size
        self.lost += delta
