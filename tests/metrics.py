"""Second moments of inputs, and the relative error that a layer's outputs have in them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._quadratic import Product
from tensorlrf.decomposition._target import Target
from tensorlrf.factors import Factors
from tests.draws import seeded


def second_moments(inputs: Tensor) -> Tensor:
    """G = X X^T / N, (n, n), of N inputs (n, N)."""
    return inputs @ inputs.T / inputs.shape[1]


def moments(n: int, kind: str = "full", *, seed: int = 7) -> Tensor:
    """Of n correlated inputs: 4 n samples ("full"), n / 3 ("few"), or every third dead ("dead")."""
    samples = n // 3 if kind == "few" else 4 * n
    spectrum = torch.logspace(0, -2, n, dtype=torch.float64)
    inputs = seeded(n, n, seed=seed) @ (spectrum[:, None] * seeded(n, samples))
    if kind == "dead":
        inputs[::3] = 0
    return second_moments(inputs)


def in_moments(weight: Tensor, gram: Tensor | None) -> Target[Any]:
    """The target tr(D G D^T) of a weight (m, ...), G (n, n) as it is: not shrunk, nor checked; the
    sum of squares for none."""
    return Target.of(weight, Product(None, None if gram is None else gram.to(torch.float64)))


def moments_within(
    n: int,
    directions: int | None = None,
    *,
    samples: int | None = None,
    dead: int = 0,
    seed: int = 5,
) -> Tensor:
    """Of n inputs of falling size, 3 n samples if not said, that span so many directions (n); the
    last `dead` are zero."""
    k = n if directions is None else directions
    samples = 3 * n if samples is None else samples
    inputs = seeded(n, k, seed=seed) @ seeded(k, samples, seed=seed + 1)
    inputs = inputs * torch.logspace(0, -2, n, dtype=torch.float64)[:, None]
    inputs[n - dead :] = 0.0
    return second_moments(inputs)


def output_error(weight: Tensor, approximation: Tensor | Factors, gram: Tensor) -> float:
    """sqrt(tr(D G D^T) / tr(W G W^T)) with D = W - A, in float64; rounding below zero is zero."""
    wide, off = _weight_and_residual(weight, approximation)
    lost, whole = (float((m @ gram * m).sum()) for m in (off, wide))
    return math.sqrt(max(0.0, lost) / whole)


def error_on_inputs(weight: Tensor, approximation: Tensor | Factors, inputs: Tensor) -> float:
    """|D X| / |W X| with D = W - A, in float64: it resolves what cancels in second moments."""
    wide, off = _weight_and_residual(weight, approximation)
    return float((off @ inputs).norm() / (wide @ inputs).norm())


def _weight_and_residual(weight: Tensor, approximation: Tensor | Factors) -> tuple[Tensor, Tensor]:
    if not isinstance(approximation, Tensor):
        approximation = approximation.to(torch.float64).to_dense()
    wide = weight.double().flatten(1)
    return wide, wide - approximation.double().flatten(1)
