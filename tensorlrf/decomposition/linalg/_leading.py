"""The leading eigenvectors of a matrix whose eigenvalues are known.

Chebyshev-filtered subspace iteration (Rutishauser 1970; Zhou & Saad 2007). Usually bounds of the
spectrum are guessed, and rounds go on until residuals are small. With all eigenvalues at hand the
filter is the best of its degree, the degree that is needed follows before the first product, and
what the vectors capture of the eigenvalues certifies them after the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import descending_eigh
from tensorlrf.decomposition.linalg._solver import EIGENVALUES, EIGH, HALF, PEAK, QR
from tensorlrf.decomposition.linalg.threads import cores_for, spectrum_work

Values = npt.NDArray[np.float64]

EXCESS = 1e-7
"""What the vectors may miss of the eigenvalues, as a share of the sum of those left out: half of
that in a residual, which is less than float32 rounds it by."""

GROWTH = 1e10
"""Of the first vector beside the last one in one filter; rounding, as much larger, is small."""

MOST = 64
"""Rounds."""

SMALLEST, SHARE = 1536, 16
"""Sides from which on, and the part of them up to which, vectors are sought so."""


@dataclass(frozen=True)
class Filter:
    """`rounds` times the Chebyshev polynomial of a degree, on so many vectors, which damps what is
    left of the eigenvalues from number `bound` on."""

    width: int
    bound: int
    degree: int
    rounds: int

    def seconds(self, n: int) -> float:
        product = 2.0 * n**2 * (self.width + HALF) / PEAK[torch.float64]
        return self.rounds * (self.degree * product + 4.0 * n * self.width**2 / QR)


def worthwhile(n: int, r: int) -> bool:
    """Whether eigenvalues alone, and then r vectors, should take less than all of both."""
    return n >= SMALLEST and SHARE * r <= n


def filter_for(values: Values, r: int) -> Filter | None:
    """The one that should take least for r vectors; `values` (n,) descending.

    None where the rest of a full eigendecomposition, beyond `values`, is the shorter way.
    """
    n = len(values)
    found = [_filter(values, r, r + max(16, r * extra // 8)) for extra in (1, 2, 4, 8)]
    best = min((f for f in found if f), key=lambda f: f.seconds(n), default=None)
    rest = (EIGH[0] - EIGENVALUES[0]) * n**3 + (EIGH[1] - EIGENVALUES[1]) * n**2
    return best if best is not None and best.seconds(n) < 0.8 * rest else None


def leading_eigh(matrix: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """As `descending_eigh`, of which the first r vectors at least; all where that is shorter."""
    if not worthwhile(len(matrix), r):
        return descending_eigh(matrix)
    try:
        with cores_for("spectrum", spectrum_work(*matrix.shape)):
            values = torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return descending_eigh(matrix)
    vectors = leading_eigenvectors(matrix, values.cpu().numpy(), r)
    return descending_eigh(matrix) if vectors is None else (values, vectors)


def leading_eigenvectors(matrix: Tensor, values: Values, r: int) -> Tensor | None:
    """(n, r) of a symmetric positive semidefinite `matrix` (n, n) with eigenvalues `values`.

    They are orthonormal and diagonalise it within their span. None where the full decomposition is
    the shorter way, or where these miss more of the eigenvalues than is allowed.
    """
    chosen = filter_for(values, r)
    if chosen is None:
        return None
    n, high, low = len(values), float(values[chosen.bound]), float(values[-1])
    draws = torch.Generator(matrix.device).manual_seed(0)
    block = torch.randn(n, chosen.width, generator=draws, dtype=matrix.dtype, device=matrix.device)
    with cores_for("product", float(n) ** 2 * chosen.width):
        for _ in range(chosen.rounds):
            block = torch.linalg.qr(_filtered(matrix, block, chosen.degree, high, low))[0]
        ritz, turn = torch.linalg.eigh(block.T @ (matrix @ block))
        if float(values[:r].sum()) - float(ritz[-r:].sum()) > allowed(values, r):
            return None
        vectors: Tensor = block @ turn[:, -r:].flip(1)
    return vectors


def allowed(values: Values, r: int) -> float:
    """What r vectors may miss of the sum of the first `values`: rounding included."""
    rounding = 4 * np.finfo(np.float64).eps * float(values[:r].sum()) * math.sqrt(len(values))
    return EXCESS * float(values[r:].sum()) + rounding


def _filter(values: Values, r: int, width: int) -> Filter | None:
    """The fewest rounds, and then the least degree, that leave no more than is allowed."""
    # Random vectors that hold r directions well are some more than these.
    bound = (r + width) // 2
    low, high = values[-1], values[bound]
    if not high > low:
        return None
    # T_d(x) = cosh(d arccosh x) for x >= 1, and the unwanted ones are mapped to [-1, 1].
    reach = np.arccosh(np.maximum((2 * values[:r] - high - low) / (high - low), 1))
    # Squared tangents that random vectors begin with (Halko, Martinsson & Tropp 2011, sec. 10.1).
    start = len(values) / (width - bound - 1) * (values[:r] - values[bound:].mean())
    left = allowed(values, r) / 2

    def missed(degree: int, rounds: int) -> float:
        logs = np.logaddexp(degree * reach, -degree * reach) - math.log(2)
        return float((start * np.exp(-2 * rounds * logs)).sum())

    most = max(1, int(math.acosh(GROWTH) / max(float(reach[0]), 0.1)))
    rounds = next((k for k in range(1, MOST + 1) if missed(most, k) <= left), None)
    if rounds is None:
        return None
    degree = next(d for d in range(1, most + 1) if missed(d, rounds) <= left)
    return Filter(width, bound, degree, rounds)


def _filtered(matrix: Tensor, block: Tensor, degree: int, high: float, low: float) -> Tensor:
    """T_degree of (matrix - centre) / half on `block`, which maps [low, high] to [-1, 1]."""
    centre, half = (high + low) / 2, (high - low) / 2
    before, now = block, torch.addmm(block, matrix, block, alpha=1 / half, beta=-centre / half)
    for _ in range(degree - 1):
        after = torch.addmm(before, matrix, now, alpha=2 / half, beta=-1)
        before, now = now, after.sub_(now, alpha=2 * centre / half)
    return now
