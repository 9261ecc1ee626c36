"""How long the inputs of a layer are, which tells how far their second moments are off.

The variance of G = X X^T / N over samples of the same inputs is (E|x|^4 - |G|^2) / N in all; about
a mean mu, of which E|x - mu|^4 is a combination of the moments here and there, likewise.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from tensorlrf.compression.calibration.taps._taps import Taps
from tensorlrf.decomposition.linalg.compact import Gram


class Lengths:
    """Sums of |x|^2 x (n,) and |x|^4 over inputs or patches x, in float64."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.cubes = torch.zeros(n, dtype=torch.float64, device=device)
        self.fourth = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Take inputs (N, n)."""
        if rows.shape[0]:
            squares = torch.linalg.vector_norm(rows, dim=1).to(torch.float64).square()  # (N,)
            largest = self._take(squares)
            self.cubes += largest * ((squares / largest).to(rows.dtype) @ rows).to(torch.float64)

    def add_patches(self, padded: Tensor, taps: Taps, columns: Tensor | None = None) -> None:
        """Take the patches of padded inputs (batch, I, *size) of one group: |x|^2 of a patch is the
        sum of |pixel|^2 under the taps, which see `columns` alone of it where these are given."""
        if not padded.shape[0]:
            return
        pixels = torch.linalg.vector_norm(padded, dim=1, keepdim=True).to(torch.float64).square()
        squares = sum(taps.windows(pixels))
        assert isinstance(squares, Tensor)  # (batch, 1, *positions)
        largest = self._take(squares)
        shares = (squares / largest).to(padded.dtype)
        # What a tap reads is multiplied by the share of the patch that it reads it for. Laid out on
        # the grid for several taps, as wide as half of the input, they take one product, in the
        # dtype of the inputs as those of G are.
        several = max(1, padded.shape[1] // 2)
        images, cubes = padded.flatten(2), []
        for first in range(0, taps.size, several):
            some = range(first, min(first + several, taps.size))
            laid = padded.new_zeros(padded.shape[0], len(some), *padded.shape[2:])
            for k, window in enumerate(itertools.islice(taps.windows(laid), first, some.stop)):
                window[:, k] = shares[:, 0]
            cubes.append((images @ laid.flatten(2).mT).sum(0))  # (I, taps)
        own = slice(None) if columns is None else columns.to(self.cubes.device)
        self.cubes[own] += largest * torch.cat(cubes, dim=1).flatten().to(torch.float64)

    def merge(self, other: Lengths) -> None:
        """Take what another one of the same layer has seen."""
        self.cubes += other.cubes
        self.fourth += other.fourth

    def _take(self, squares: Tensor) -> Tensor:
        """Their largest, or one, by which they may be divided: |x|^2 x soon leaves float32."""
        self.fourth += squares.square().sum()
        largest = squares.max()
        return torch.where(largest > 0, largest, 1.0)


def fourth_about_mean(fourth: float, cubes: Tensor, gram: Gram, mean: Tensor) -> float:
    """E|x - mu|^4 from E|x|^4, E|x|^2 x (n,), G (n, n) and mu (n,).

    |x - mu|^2 = |x|^2 - 2 x.mu + |mu|^2, squared and multiplied out.
    """
    square = float(mean.square().sum())
    spread = 4 * float(mean @ gram @ mean) - 3 * square**2
    spread += 2 * square * float(gram.diagonal().sum()) - 4 * float(mean @ cubes)
    value = fourth + spread
    return max(0.0, value) if math.isfinite(value) else math.inf
