"""The Gram matrix of a conv's patches from correlations of the shifted input.

Of two taps p and q of one phase, which read for the same outputs, q begins d behind p on the grid,
and the block G_pq sums x(u) x(u + d)^T over the positions u that p visits: a window of the grid.
The sum over *all* u on the grid, R_d, is shared by all pairs of taps d apart, and differs from G_pq
only by the rows and columns outside that window. So, with E the rows and F the columns that the
window leaves out,

    G_pq = R_d - sum over E x all - sum over all x F + sum over E x F

exactly, where the corrections are strips of at most k - 1 rows or columns. Taps of two phases, of a
transposed convolution, never read for one output: there G is zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tensorlrf.compression.calibration.taps._taps import Tap

CHUNK = 1 << 14

Key = tuple[int, ...]


class ShiftedCorrelations:
    """Sums x(u) x(u + d)^T, (I, I) in float64: whole grids and the strips that windows leave out.

    channels       I
    rows, columns  the taps along the two axes, (kh,) and (kw,)
    """

    def __init__(
        self,
        channels: int,
        rows: Sequence[Tap],
        columns: Sequence[Tap],
        device: torch.device,
    ) -> None:
        self._channels = channels
        self._rows, self._columns = rows, columns
        self._device = device
        self._sums: dict[Key, Tensor] = {}

    def add(
        self,
        grid: Tensor,
        outputs: Sequence[Sequence[int]],
        zeros: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    ) -> None:
        """Take a batch (batch, I, H, W) of what the taps slide over.

        outputs  how many there are of each phase, along rows and along columns
        zeros    how many (rows at the top, at the bottom), (columns on the left, on the right) of
                 it are zero: strips that lie in them are skipped
        """
        (top, bottom), (left, right) = zeros
        height, width = grid.shape[2:]
        row_pairs, column_pairs = pairs(self._rows), pairs(self._columns)
        # A shift in the flat grid runs over the ends of rows and images; zeros must stand there.
        wide = max(0, max(column_pairs) - left - right)
        high = max(0, max(row_pairs) - top - bottom)
        grid = F.pad(grid, (0, wide, 0, high)).permute(0, 2, 3, 1).contiguous()
        flat = grid.reshape(-1, self._channels)  # (batch H W, I)
        row_of = grid.shape[2]
        grid = grid[:, :height, :width]

        for u, v in differences(self._rows, self._columns):
            if u >= height or abs(v) >= width:
                continue  # no two pixels are so far apart
            offset = u * row_of + v
            self._accumulate((u, v), flat[: flat.shape[0] - offset], flat[offset:])
            before = max(0, -v)
            here = grid[:, : height - u, before : width - max(0, v)]
            there = grid[:, u:, max(0, v) : width - before]
            # Rows and columns of `here` that hold data both here and there.
            rows = range(top, height - bottom - u)
            columns = range(max(left, -v) - before, min(width - right, width - right - v) - before)
            out_rows = {a: outside(self._rows[a], outputs[0], rows) for a in row_pairs[u]}
            out_columns = {
                b: outside(self._columns[b], outputs[1], columns, before) for b in column_pairs[v]
            }
            for a, r in out_rows.items():
                self._accumulate((u, v, 0, a), here[:, r], there[:, r])
            for b, c in out_columns.items():
                self._accumulate((u, v, 1, b), here[:, :, c], there[:, :, c])
            for (a, r), (b, c) in itertools.product(out_rows.items(), out_columns.items()):
                if r and c:
                    self._accumulate((u, v, 2, a, b), here[:, r][:, :, c], there[:, r][:, :, c])

    def merge(self, other: ShiftedCorrelations) -> None:
        """Take what another one has summed."""
        for key, part in other._sums.items():
            self._sums[key] = self._sums[key] + part if key in self._sums else part

    def total(self) -> Tensor:
        """sum of the patches' x x^T so far, in the order (I, kh, kw): (n, n)."""
        kh, kw, I = len(self._rows), len(self._columns), self._channels
        shape = (kh, kw, kh, kw, I, I)
        blocks = torch.zeros(shape, dtype=torch.float64, device=self._device)
        row_pairs, column_pairs = pairs(self._rows), pairs(self._columns)
        for u, v in differences(self._rows, self._columns):
            ends = itertools.product(row_pairs[u].items(), column_pairs[v].items())
            for (a, other_a), (b, other_b) in ends:
                block = self._sum((u, v)) - self._sum((u, v, 0, a)) - self._sum((u, v, 1, b))
                block = block + self._sum((u, v, 2, a, b))
                p, q = (a, b), (other_a, other_b)
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
            shape = (self._channels, self._channels)
            return torch.zeros(shape, dtype=torch.float64, device=self._device)
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


def pairs(taps: Sequence[Tap]) -> dict[int, dict[int, int]]:
    """How far the second of two taps of one phase begins behind the first -> first -> second."""
    found: dict[int, dict[int, int]] = {}
    for (a, one), (b, other) in itertools.product(enumerate(taps), repeat=2):
        if one.phase == other.phase:
            found.setdefault(other.start - one.start, {})[a] = b
    return found


def differences(rows: Sequence[Tap], columns: Sequence[Tap]) -> list[tuple[int, int]]:
    """How far taps are apart, for one of each pair of taps (p, q), (q, p): 13 of them for 3 x 3."""
    both = itertools.product(sorted(pairs(rows)), sorted(pairs(columns)))
    return [apart for apart in both if apart >= (0, 0)]


def sums_of(rows: Sequence[Tap], columns: Sequence[Tap]) -> int:
    """How many sums `ShiftedCorrelations` keeps at the most: for each difference of taps one of the
    whole grid, and one for each window's rows, columns and corners outside."""
    row_pairs, column_pairs = pairs(rows), pairs(columns)
    apart = differences(rows, columns)
    return sum((1 + len(row_pairs[u])) * (1 + len(column_pairs[v])) for u, v in apart)


def outside(tap: Tap, outputs: Sequence[int], data: range, first: int = 0) -> list[int]:
    """Of the indices that hold data, counted from `first` on the grid, those that a tap does not
    read, with so many outputs of each phase."""
    start = tap.start - first
    return [i for i in data if not start <= i < start + outputs[tap.phase]]
