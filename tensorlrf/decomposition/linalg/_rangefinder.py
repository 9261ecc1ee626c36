"""Randomised range finding (Halko, Martinsson & Tropp 2011)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError

OVERSAMPLING = 10
"""Directions of a sketch beyond the rank, by default."""

SKETCH = ("n_power_iter", "n_oversample")


def check_sketch(n_power_iter: int, n_oversample: int) -> None:
    """Both are whole numbers, not negative."""
    for name, value in zip(SKETCH, (n_power_iter, n_oversample), strict=True):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ArgumentError(f"{name}={value!r} must be a whole number, 0 or more")


def check_sketches(solver: str, n_power_iter: int, n_oversample: int, usual: int) -> None:
    """Raise ArgumentError for other values than by default (of power iterations `usual`) where the
    solver makes no sketch of a given size."""
    for name, value, default in zip(
        SKETCH, (n_power_iter, n_oversample), (usual, OVERSAMPLING), strict=True
    ):
        if value != default and solver != "randomized":
            raise ArgumentError(
                f"{name}={value} goes with solver='randomized'; {solver!r} makes no sketch of a "
                "given size, leave it out"
            )


def read_by(solver: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a config without those that its solver does not read."""
    idle = () if solver == "randomized" else SKETCH
    return {name: value for name, value in options.items() if name not in idle}


def range_of(
    matrix: Tensor, r: int, n_power_iter: int, n_oversample: int, generator: torch.Generator
) -> Tensor:
    """Orthonormal basis (m, s) of nearly the leading left singular space, s = r + n_oversample.

    A Gaussian sketch, then power iterations with a QR factorisation after every product, without
    which the small singular directions drown in rounding (Algorithm 4.4). s is at most min(m, n).
    """
    m, n = matrix.shape
    s = min(m, n, r + n_oversample)
    sketch = torch.randn(n, s, generator=generator, dtype=matrix.dtype, device=matrix.device)
    basis: Tensor
    basis, _ = torch.linalg.qr(matrix @ sketch)
    for _ in range(n_power_iter):
        basis, _ = torch.linalg.qr(matrix.T @ basis)
        basis, _ = torch.linalg.qr(matrix @ basis)
    return basis
