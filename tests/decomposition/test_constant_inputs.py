"""Inputs that hardly vary: about their mean nothing is left of them but rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition import blast, blr, kron, monarch, svd, tr, tt_matrix
from tensorlrf.decomposition.second_moments import about_mean, check_gram, second_moments

WITH_MEAN: list[Callable[..., Any]] = [svd, kron, tt_matrix, tr]


def constant(n: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Second moments and mean of three equal inputs."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, generator=draws, dtype=torch.float64).to(dtype).expand(n, 3)
    return x @ x.T / 3, x.mean(1)


@pytest.mark.parametrize("decompose", [blast, blr, monarch])
def test_rounding_in_the_place_of_moments_does_no_harm(decompose: Callable[..., Any]) -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    gram, mean = constant(8, torch.float32, 1)
    left = about_mean(gram.double(), mean.double(), 1.2e-7)
    assert torch.isfinite(decompose(weight, 0.5, gram=left).to_dense()).all()


def test_what_varies_keeps_its_variance() -> None:
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(5, 300, generator=draws, dtype=torch.float64) + 3.0
    x[2] = 7.0
    gram, mean = x @ x.T / 300, x.mean(1)
    metric = second_moments(gram, mean, 5, x)
    scale = float(gram.trace() / check_gram(gram, 5, x)[0].trace())  # a power of four
    centred = metric.given * scale
    expected = torch.cov(x, correction=0)
    torch.testing.assert_close(centred, expected, rtol=1e-9, atol=1e-12)
    assert not centred[2].any()
    assert not centred[:, 2].any()
