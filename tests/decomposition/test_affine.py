"""The affine form: factors about the mean input, and a bias that makes good the rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tensorlrf
from tensorlrf.decomposition import bias_correction


def inputs(n: int, seed: int, rows: int = 200) -> Tensor:
    """(N, n) rows with a mean that is far from zero."""
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, n, generator=g, dtype=torch.float64) @ torch.randn(
        n, n, generator=g, dtype=torch.float64
    )
    return mixed + 2 * torch.randn(n, generator=g, dtype=torch.float64)


def error(weight: Tensor, approximation: Tensor, x: Tensor, bias: Tensor | None = None) -> float:
    lost = x @ (weight - approximation).flatten(1).T
    return float((lost if bias is None else lost - bias).square().mean())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_it_is_the_best_rank_and_bias(m: int, n: int, r: int, seed: int) -> None:
    r = min(r, m, n)
    weight = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = inputs(n, seed)
    gram, mean = x.T @ x / len(x), x.mean(0)
    linear = tensorlrf.svd(weight, r, gram=gram).to_dense()
    factors = tensorlrf.svd(weight, r, gram=gram, mean=mean)
    shift = bias_correction(weight, factors, mean)
    affine = error(weight, factors.to_dense(), x, shift)
    # Never worse than the linear form, nor than it with the bias put right afterwards.
    slack = 1e-9 * error(weight, torch.zeros_like(weight), x)
    assert affine <= error(weight, linear, x) + slack
    late = (weight - linear) @ mean
    assert affine <= error(weight, linear, x, late) + slack
    # Eckart and Young about the mean: the discarded energy of the centred outputs.
    centred = (x - mean) @ weight.T
    energies = torch.linalg.svdvals(centred).square() / len(x)
    assert affine * m == pytest.approx(float(energies[r:].sum()), abs=slack * m + 1e-12)


def test_tucker_about_the_mean_serves_a_layer_with_a_bias() -> None:
    g = torch.Generator().manual_seed(3)
    kernel = torch.randn(8, 6, 3, 3, generator=g, dtype=torch.float64)
    x = inputs(54, 5, rows=600)
    gram, mean = x.T @ x / len(x), x.mean(0)
    about = tensorlrf.tucker(kernel, (3, 4), modes=(0, 1), gram=gram, mean=mean)
    plain = tensorlrf.tucker(kernel, (3, 4), modes=(0, 1), gram=gram)
    shift = bias_correction(kernel, about, mean)
    best = error(kernel, about.to_dense(), x, shift)
    assert best < error(kernel, plain.to_dense(), x)
    # Any other bias does worse.
    assert best < error(kernel, about.to_dense(), x, shift + 1e-3)
