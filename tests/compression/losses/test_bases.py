"""Directions of a layer's outputs, plain and in a metric of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.losses._bases import Basis, OutputMoments, leading, rows_of
from tensorlrf.decomposition.second_moments import OutputMetric
from tests.compression.networks import set_weights
from tests.draws import seeded, seeded32

LAYERS = {
    "tall": (lambda: nn.Linear(5, 9), (80, 5)),
    "wide": (lambda: nn.Linear(9, 5), (80, 9)),
    "conv": (lambda: nn.Conv2d(3, 6, 3, padding=1), (4, 3, 6, 6)),
    "groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), (5, 4, 12)),
}


def layer(kind: str) -> tuple[DenseLayer, Tensor, Basis]:
    """(a layer, inputs, its basis)."""
    make, shape = LAYERS[kind]
    site, x = DenseLayer.of(set_weights(make())), seeded32(*shape)
    moments = OutputMoments(site)
    if moments.of_inputs:
        moments.add(x.reshape(-1, 1, x.shape[-1]))
    else:
        moments.add(outputs(site, site.weight, x))
    return site, x, moments.basis()


def outputs(site: DenseLayer, weight: Tensor, x: Tensor) -> Tensor:
    """(positions, groups, m), without bias."""
    y = x @ weight.T if site.taps is None else site.taps.outputs(x, weight)
    rows = rows_of(site, y, 1)
    assert rows is not None
    return rows[0]


def metric(m: int, seed: int) -> OutputMetric:
    q = torch.linalg.qr(seeded(m, m, seed=seed))[0]
    return OutputMetric((q * torch.logspace(0, -2, m, dtype=torch.float64)) @ q.T)


@pytest.mark.parametrize("kind", LAYERS)
@settings(derandomize=True, deadline=None, max_examples=8)
@given(seed=st.integers(0, 99), part=st.integers(1, 4))
def test_cuts_lose_what_the_energies_beyond_say_in_the_metric_too(
    kind: str, seed: int, part: int
) -> None:
    """And no other matrix of that rank loses less (Eckart and Young), of which the plain cut is
    one."""
    site, x, plain = layer(kind)
    m = site.shape[0] // site.groups
    metrics = [metric(m, seed + k) for k in range(site.groups)]
    turned, rank = plain.within(metrics), min(part, plain.full - 1)
    y = outputs(site, site.weight, x).double()
    lost = {}
    for word, basis in (("plain", plain), ("turned", turned)):
        off = y - outputs(site, basis.truncated(site, rank), x).double()
        lost[word] = [
            float(one.turned(off[:, k].T).square().sum()) / len(y) for k, one in enumerate(metrics)
        ]
    for k in range(site.groups):
        tail, whole = float(turned.energies[k, rank:].sum()), float(turned.energies[k].sum())
        # Directions are float32: 1e-5 of the whole is far above their rounding.
        assert lost["turned"][k] == pytest.approx(tail, abs=1e-5 * whole)
        assert lost["turned"][k] <= lost["plain"][k] + 1e-5 * whole
        # Products of directions in float32, the longest 10 for the least eigenvalue, .01, of R.
        eye = turned.measures[k].T @ turned.vectors[k]
        torch.testing.assert_close(eye, torch.eye(len(eye)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_no_metric_and_one_that_counts_all_alike_change_nothing(kind: str) -> None:
    site, _, plain = layer(kind)
    m = site.shape[0] // site.groups
    assert plain.within(None) is plain
    assert torch.equal(plain.within([None] * site.groups).vectors, plain.vectors)
    alike = plain.within([OutputMetric(2 * torch.eye(m))] * site.groups)
    # Of squares, rounded in float32.
    torch.testing.assert_close(alike.energies, 2 * plain.energies, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        alike.truncated(site, 2), plain.truncated(site, 2), rtol=1e-4, atol=1e-5
    )


@settings(derandomize=True, deadline=None, max_examples=20)
@given(m=st.integers(1, 8), k=st.integers(1, 8), rank=st.integers(0, 4), seed=st.integers(0, 9))
def test_leading_directions_are_singular_vectors(m: int, k: int, rank: int, seed: int) -> None:
    """Of what is thin, dead or of low rank too."""
    half = seeded(m, rank, seed=seed) @ seeded(rank, k, seed=seed + 1)
    left, squares = leading(half)
    n = min(m, k)
    wanted = torch.linalg.svdvals(half).square()
    # Squares of squares are off by eps of float64 times the largest, and some for sums of eight.
    slack = 1e-12 * float(wanted.max())
    torch.testing.assert_close(squares[:n], wanted, rtol=0, atol=slack)
    torch.testing.assert_close(
        left.T @ left, torch.eye(left.shape[1], dtype=torch.float64), rtol=0, atol=1e-12
    )
    along = left.T @ half
    torch.testing.assert_close(along.square().sum(1)[:n], wanted, rtol=0, atol=10 * slack)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(error=st.floats(0.01, 0.99))
def test_the_rank_within_an_error_is_the_least(error: float) -> None:
    _, _, basis = layer("tall")
    rank, energies = basis.rank_within(error), basis.energies.sum(0)
    within = [float(energies[r:].sum()) <= error**2 * float(energies.sum())
              for r in range(len(energies) + 1)]  # fmt: skip
    assert rank == max(1, within.index(True))
