"""Singular vectors of a matrix that is divided: of the side that every piece has whole, and of the
side that is divided."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.large._divided import Reading
from tensorlrf.decomposition.large._group import Group
from tensorlrf.decomposition.linalg._gram import descending_eigh, mode_gram, thin_svd, unfold


def mode_grams(reading: Reading, rows: int, modes: Sequence[int]) -> dict[int, Tensor]:
    """X_(k) X_(k)^T (n_k, n_k), float64, for each of `modes` (as they stand in the pieces), none of
    them the divided one, in one pass."""
    sizes = reading.shape
    found = {
        k: torch.zeros(sizes[k], sizes[k], dtype=torch.float64, device=reading.device)
        for k in modes
    }
    for _, piece in reading.pieces(rows):
        for k, gram in found.items():
            gram += mode_gram(piece, k)
    return {k: reading.group.total(gram) for k, gram in found.items()}


class WholeSide:
    """Left singular vectors of a matrix (n, many) whose columns come a piece at a time.

    By its Gram, summed in float64; for float64 by the R factor (n, n) of its transpose, since a
    Gram would lose half of its digits.
    """

    def __init__(self, n: int, reading: Reading) -> None:
        self.size, self.group = n, reading.group
        self.by_gram = reading.dtype != torch.float64
        rows = n if self.by_gram else 0
        self.known = torch.zeros(rows, n, dtype=torch.float64, device=reading.device)

    @staticmethod
    def held(n: int) -> int:
        """Bytes of one, with its spectrum."""
        return 6 * 8 * n * n

    @staticmethod
    def each(reading: Reading) -> int:
        """Bytes for a row of a piece that is added."""
        return 0 if reading.dtype != torch.float64 else 4 * 8 * reading.row

    def add(self, tensor: Tensor, mode: int) -> None:
        """The columns of the unfolding along `mode`."""
        if self.by_gram:
            self.known += mode_gram(tensor, mode)
        else:
            stacked = torch.cat([self.known, unfold(tensor, mode).T])
            self.known = torch.linalg.qr(stacked, mode="r")[1]

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Vectors (n, k), with a sign of their own, and energies (k,), descending; float64."""
        if self.by_gram:
            energies, vectors = descending_eigh(self.group.total(self.known))
        else:
            _, values, right = thin_svd(torch.cat(self.group.rows(self.known)))
            energies, vectors = values**2, right.T
        return vectors * signs(vectors), energies


def divided_svd(matrix: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V^T of a matrix (n, c) of which this rank has some rows, in float64; U has the same
    rows, S (k,) descending and V^T (k, c) are whole, k = min(n, c).

    Each rank factors its rows, Q_i R_i, and the R_i below one another have the same S and V (the
    tall-skinny QR of Demmel, Grigori, Hoemmen & Langou 2012, in one step).
    """
    wide = matrix.to(torch.float64)
    if group.size == 1:
        left, values, right = thin_svd(wide)
    else:
        own, upper = torch.linalg.qr(wide)
        parts = group.rows(upper)
        left, values, right = thin_svd(torch.cat(parts))
        before = sum(map(len, parts[: group.rank]))
        left = own @ left[before : before + len(upper)]
    sign = signs(right.T)
    return left * sign, values, right * sign[:, None]


def signs(vectors: Tensor) -> Tensor:
    """(k,) by which the largest entry of each column (n, k) becomes positive, so that rounding, as
    other pieces have it, turns none around."""
    if vectors.numel() == 0:
        return vectors.new_ones(vectors.shape[1])
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(vectors)
