"""A sketch of X^T X by what the layer's own weight makes of the inputs.

With W (m, n) the weight of a linear layer and V = T W for some T (l, m), sums of y x^T and y y^T of
the products y = V x are V G and V G V^T, and

    G' = G V^T (V G V^T)^-1 V G + diag(d),    d = diag(G) - diag of the first,

is a Nyström approximation of G from below (Tropp, Yurtsever, Udell & Cevher 2017, "Fixed-rank
approximation of a positive-semidefinite matrix from streaming data") with the variances of G. With
T the identity V G' is V G but for d: of G all is known that a fit of low rank asks, for the best
one is U U^T W with U the leading eigenvectors of W G W^T. With fewer rows T is normal, so that V
has the directions that count in outputs. It is a sum, and so adds up exactly over any parts.

For a layer of 4096 outputs and 14336 inputs all outputs take .37 times the memory of G, half of
them .16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tensorlrf.compression.calibration.moments._sums import Sums, add_products
from tensorlrf.decomposition.linalg.compact import LowRankPlusDiagonal

SEED = 20170
"""Of T: one for all, or sums of two machines would be of different things."""

LEAST_JITTER = 1e-8
"""Of the largest y^2: about as far as sums in float32 are off."""


class Images(Sums):
    """image   sums of y x^T, (l, n)
    inner   of y y^T, (l, l)
    squares of each column, (n,)
    """

    def __init__(self, n: int, size: int, device: torch.device, weight: Tensor | None) -> None:
        self._test = None if weight is None else seen_by(weight, size)
        self.image = torch.zeros(size, n, dtype=torch.float64, device=device)
        self.inner = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.squares = torch.zeros(n, dtype=torch.float64, device=device)

    def take(self, rows: Tensor) -> None:
        assert self._test is not None
        made = rows @ self._test.to(rows.dtype).T  # (N, l)
        add_products(self.image, made, rows)
        add_products(self.inner, made, made)
        self.squares += rows.square().sum(0)

    def merge(self, other: Self) -> None:
        self.image += other.image
        self.inner += other.inner
        self.squares += other.squares

    def mean(self, count: int, *, last: bool = False) -> LowRankPlusDiagonal:
        rows = torch.linalg.solve_triangular(_root(self.inner), self.image, upper=False)
        rest = (self.squares - rows.square().sum(0)).clamp(min=0) / count
        return LowRankPlusDiagonal(rows / count**0.5, rest, float(rest.sum()))

    def tensors(self) -> dict[str, Tensor]:
        return {"image": self.image, "inner": self.inner, "squares": self.squares}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.image, self.inner = tensors["image"], tensors["inner"]
        self.squares = tensors["squares"]


def seen_by(weight: Tensor, size: int) -> Tensor:
    """V (l, n) in float32 or float64, of a weight (m, n)."""
    known = weight.detach().flatten(1)
    known = known if known.dtype == torch.float64 else known.to(torch.float32)
    if size == len(known):
        return known
    # The one generator whose numbers are the same in every version, on every machine.
    drawn = np.random.RandomState(SEED).standard_normal((size, len(known)))
    return torch.from_numpy(drawn).to(known) @ known


def _root(inner: Tensor) -> Tensor:
    """L (l, l), lower triangular, with L L^T the sums of y y^T and as little more as it takes."""
    whole = (inner + inner.T) / 2
    largest = float(whole.diagonal().max())
    jitter = LEAST_JITTER * (largest if 0 < largest < float("inf") else 1.0)
    while True:
        shifted = whole.clone()
        shifted.diagonal().add_(jitter)
        root: Tensor
        root, info = torch.linalg.cholesky_ex(shifted)
        if not info or not torch.isfinite(whole.diagonal()).all():  # which `squares` will tell
            return root
        jitter *= 10
