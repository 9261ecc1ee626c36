"""The Gram matrix of a conv's patches from correlations of the shifted input.

With taps p = (a, b) and q = p + d, the block G_pq sums x(u) x(u + d)^T over the positions u that
tap p visits. Tap p visits a window of the padded grid; the sum over *all* u on the grid, R_d, is
shared by all pairs of taps d apart, and differs from G_pq only by the rows and columns outside
that window. So, with E the rows and F the columns that the window leaves out,

    G_pq = R_d - sum over E x all - sum over all x F + sum over E x F

exactly, where the corrections are strips of at most k - 1 rows or columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 14

Key = tuple[int, ...]


class ShiftedCorrelations:
    """Sums x(u) x(u + d)^T, (I, I) in float64: whole grids and the strips that windows leave out.

    channels   I
    kernel     (kh, kw)
    dilation   of the taps; the stride is 1
    """

    def __init__(
        self,
        channels: int,
        kernel: tuple[int, ...],
        dilation: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._channels = channels
        self._kernel = kernel
        self._dilation = dilation
        self._device = device
        self._sums: dict[Key, Tensor] = {}

    def add(self, padded: Tensor, zeros: tuple[int, int, int, int]) -> int:
        """Take a padded batch (batch, I, H, W); returns the number of patches in it.

        `zeros` says how many columns (left, right) and rows (top, bottom) of it are zero padding:
        strips that lie in it are skipped.
        """
        (kh, kw), (dh, dw) = self._kernel, self._dilation
        height, width = padded.shape[2:]
        out_height, out_width = height - dh * (kh - 1), width - dw * (kw - 1)
        left, right, top, bottom = zeros
        # A shift in the flat grid runs over the ends of rows and images; zeros must stand there.
        wide = max(0, dw * (kw - 1) - left - right)
        high = max(0, dh * (kh - 1) - top - bottom)
        grid = F.pad(padded, (0, wide, 0, high)).permute(0, 2, 3, 1).contiguous()
        flat = grid.reshape(-1, self._channels)  # (batch H W, I)
        row_of = grid.shape[2]
        grid = grid[:, :height, :width]

        for da, db in differences(kh, kw):
            u, v = da * dh, db * dw
            offset = u * row_of + v
            self._accumulate((da, db), flat[: flat.shape[0] - offset], flat[offset:])
            here = grid[:, : height - u, max(0, -v) : width - max(0, v)]
            there = grid[:, u:, max(0, v) : width - max(0, -v)]
            # Rows and columns of `here` that hold data both here and there.
            rows = range(top, height - bottom - u)
            first = max(left, -v)
            columns = range(first - max(0, -v), min(width - right, width - right - v) - max(0, -v))
            out_rows = [outside(a * dh, out_height, height - u, rows) for a in range(kh - da)]
            out_columns = [
                outside(b * dw, out_width, width - abs(v), columns) for b in range(kw - abs(db))
            ]
            for a, r in enumerate(out_rows):
                self._accumulate((da, db, 0, a), here[:, r], there[:, r])
            for b, c in enumerate(out_columns):
                self._accumulate((da, db, 1, b), here[:, :, c], there[:, :, c])
            for (a, r), (b, c) in itertools.product(enumerate(out_rows), enumerate(out_columns)):
                if r and c:
                    self._accumulate((da, db, 2, a, b), here[:, r][:, :, c], there[:, r][:, :, c])
        return int(padded.shape[0]) * out_height * out_width

    def merge(self, other: ShiftedCorrelations) -> None:
        """Take what another one has summed."""
        for key, part in other._sums.items():
            self._sums[key] = self._sums[key] + part if key in self._sums else part

    def total(self) -> Tensor:
        """sum of the patches' x x^T so far, in the order (I, kh, kw): (n, n)."""
        kh, kw = self._kernel
        I = self._channels
        blocks = torch.empty(kh, kw, kh, kw, I, I, dtype=torch.float64, device=self._device)
        for da, db in differences(kh, kw):
            for a, b in itertools.product(range(kh - da), range(kw - abs(db))):
                block = self._sum((da, db)) - self._sum((da, db, 0, a)) - self._sum((da, db, 1, b))
                block = block + self._sum((da, db, 2, a, b))
                p = (a, b + max(0, -db))
                q = (a + da, b + max(0, db))
                if p == q:
                    block = (block + block.T) / 2
                    block.diagonal().clamp_(min=0.0)  # a difference of sums of squares
                blocks[(*p, *q)] = block
                blocks[(*q, *p)] = block.T
        n = I * kh * kw
        return blocks.permute(4, 0, 1, 5, 2, 3).reshape(n, n)

    def _sum(self, key: Key) -> Tensor:
        found = self._sums.get(key)
        if found is None:
            return torch.zeros((), dtype=torch.float64, device=self._device)
        return found

    def _accumulate(self, key: Key, here: Tensor, there: Tensor) -> None:
        here = here.reshape(-1, self._channels)
        there = there.reshape(-1, self._channels)
        if here.shape[0] == 0:
            return
        if key not in self._sums:
            shape = (self._channels, self._channels)
            self._sums[key] = torch.zeros(shape, dtype=torch.float64, device=self._device)
        total = self._sums[key]
        for start in range(0, here.shape[0], CHUNK):
            total += here[start : start + CHUNK].T @ there[start : start + CHUNK]


def differences(kh: int, kw: int) -> Iterator[tuple[int, int]]:
    """q - p for one of each pair of taps (p, q), (q, p): 13 of them for 3 x 3."""
    for da in range(kh):
        for db in range(-(kw - 1) if da else 0, kw):
            yield da, db


def sums_of(kh: int, kw: int) -> int:
    """How many sums `ShiftedCorrelations` keeps at the most: for each difference of taps one of the
    whole grid, and one for each window's rows, columns and corners outside."""
    return sum((1 + kh - da) * (1 + kw - abs(db)) for da, db in differences(kh, kw))


def outside(start: int, length: int, size: int, data: range) -> list[int]:
    """Of `size` indices, those that hold data and lie outside start .. start + length."""
    return [i for i in data if 0 <= i < size and not start <= i < start + length]
