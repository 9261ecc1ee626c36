"""What singular values say of matrices, and of a model's weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensorlrf
from tensorlrf.decomposition import spectral_measures
from tensorlrf.errors import ArgumentError
from tests.draws import seeded


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    seed=st.integers(0, 99),
    exponent=st.sampled_from([-200, 0, 200]),
)
def test_ranks_are_between_one_and_the_rank(m: int, n: int, seed: int, exponent: int) -> None:
    w = seeded(m, n, seed=seed)
    found = spectral_measures(w * 2.0**exponent)
    values = torch.linalg.svdvals(w)
    shares = values / values.sum()
    assert found.size == min(m, n)
    near = 1 + 1e-9
    assert found.stable_rank * near >= 1
    # The entropy of shares is at least that of their squares, which falls more steeply.
    assert math.exp(found.entropy) <= found.effective_rank * near <= found.size * near**2
    assert found.effective_rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))
    assert found.nuclear_norm * 2.0**-exponent == pytest.approx(float(values.sum()))
    assert found.frobenius_norm * 2.0**-exponent == pytest.approx(float(w.norm()))
    assert found.stable_rank == pytest.approx(float(w.norm() / values[0]) ** 2)


def test_known_matrices() -> None:
    flat = spectral_measures(torch.linalg.qr(seeded(6, 4))[0])
    assert (flat.effective_rank, flat.stable_rank) == (pytest.approx(4), pytest.approx(4))
    assert flat.entropy == pytest.approx(math.log(4))
    one = spectral_measures(torch.ones(3, 5))
    assert (one.effective_rank, one.stable_rank) == (pytest.approx(1), pytest.approx(1))
    assert one.entropy == pytest.approx(0, abs=1e-9)
    zero = spectral_measures(torch.zeros(3, 5))
    assert (zero.effective_rank, zero.nuclear_norm, zero.entropy) == (0, 0, 0)


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 6), nn.Linear(6, 4)
    )
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(seeded(*p.shape, seed=k))
    return model


def test_each_layer_and_all_of_them_as_one_block_diagonal_matrix(tmp_path: Path) -> None:
    model = network()
    found = tensorlrf.spectra(model)
    assert [row.name for row in found.layers] == ["0", "2", "3"]
    kernel = model[0].weight.detach().flatten(1)
    whole = torch.block_diag(kernel[:3], kernel[3:], model[2].weight, model[3].weight).detach()
    expected = spectral_measures(whole)
    assert found.layer("0").measures.nuclear_norm == pytest.approx(
        spectral_measures(torch.block_diag(kernel[:3], kernel[3:])).nuclear_norm, rel=1e-5
    )
    for measure in ("nuclear_norm", "effective_rank", "stable_rank", "entropy"):
        assert getattr(found.model, measure) == pytest.approx(getattr(expected, measure), rel=1e-5)
    assert "Conv2d" in str(found)
    assert json.loads(found.to_json())["model"]["size"] == 16
    with pytest.raises(KeyError):
        found.layer("1")
    with pytest.raises(ArgumentError, match="measure='size' is unknown"):
        found.plot(tmp_path / "s.png", "size")


def test_factored_layers_are_seen_and_skipped_ones_are_not() -> None:
    model = network()
    model[2] = tensorlrf.nn.factorize(model[2], "svd", 2)
    found = tensorlrf.spectra(model, skip="3")
    assert [row.name for row in found.layers] == ["0", "2"]
    assert found.layer("2").measures.effective_rank <= 2 + 1e-6
    assert found.layer("2").kind == "Linear"


def test_what_has_no_spectrum() -> None:
    with pytest.raises(ArgumentError, match="no layer that is or could be factored"):
        tensorlrf.spectra(nn.Sequential(nn.ReLU()))
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    with pytest.raises(ArgumentError, match="the weight of 3 contains NaN"):
        tensorlrf.spectra(model)
