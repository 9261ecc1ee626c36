"""tensorly judges non-negative, constrained and symmetric models: what its own tests ask, of ours,
and losses no higher than its own on the same tensors."""

from __future__ import annotations

from typing import Any

import pytest
import tensorly as tl
import torch
from tensorly import decomposition as theirs
from torch import Tensor

from tensorlrf import decomposition as d
from tests.decomposition.nonnegative.checks import planted, uniform
from tests.draws import seeded

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _torch_backend() -> Any:
    with tl.backend_context("pytorch"):
        yield


def error(tensor: Tensor, model: Tensor) -> float:
    return float((tensor - model).norm() / tensor.norm())


TENSORS = {
    "uniform": uniform(10, 9, 8),
    "planted": planted((10, 9, 8), 3).to_dense(),
    "noisy": planted((10, 9, 8), 3).to_dense() + 0.1 * uniform(10, 9, 8, seed=5),
    "of four modes": uniform(5, 6, 4, 5),
}


@pytest.mark.parametrize("name", TENSORS)
def test_non_negative_cp_is_as_near_as_tensorlys(name: str) -> None:
    """Best of three starts each: which minimum a start leads to is chance."""
    x = TENSORS[name]
    ours = min(d.fit_nonnegative_cp(x, 3, random_state=k, tol=1e-7).error for k in range(3))
    peers = min(
        error(x, tl.cp_to_tensor(theirs.non_negative_parafac_hals(x, 3, init=init, random_state=k)))
        for init in ("svd", "random")
        for k in range(2)
    )
    assert ours <= max(peers * 1.005, 1e-4)


@pytest.mark.parametrize("name", TENSORS)
def test_non_negative_tucker_is_as_near_as_tensorlys(name: str) -> None:
    x = TENSORS[name]
    ours = min(d.fit_nonnegative_tucker(x, 2, random_state=k, tol=1e-7).error for k in range(3))
    peer = theirs.non_negative_tucker_hals(x, [2] * x.ndim, random_state=0)
    assert ours <= max(error(x, tl.tucker_to_tensor(peer)) * 1.005, 1e-3)


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("nonnegative", {"non_negative": True}),
        ("simplex", {"simplex": {0: 1, 1: 1, 2: 1}}),
        ("monotone", {"monotonicity": True}),
        ("unimodal", {"unimodality": True}),
    ],
)
def test_constrained_cp_is_as_near_as_tensorlys(word: str, option: dict[str, Any]) -> None:
    """Of tensorly's simplex columns a term has no weight: ours is at least as near."""
    x = TENSORS["noisy"]
    ours = min(d.fit_constrained_cp(x, 2, constraints=word, random_state=k).error for k in range(4))
    peer = theirs.constrained_parafac(x, rank=2, init="random", random_state=0, **option)
    assert ours <= error(x, tl.cp_to_tensor(peer)) * 1.01


def test_symmetric_cp_is_nearer_than_the_power_method() -> None:
    """tensorly takes off one term after the other, which is optimal for orthogonal ones alone."""
    u = torch.nn.functional.normalize(seeded(6, 3), dim=0)
    x = torch.einsum("ir,jr,kr->ijk", u, u, u)
    weights, column = theirs.symmetric_parafac_power_iteration(x, 3)
    peer = torch.einsum("r,ir,jr,kr->ijk", weights, column, column, column)
    assert d.fit_symmetric_cp(x, 3, random_state=0).error < min(1e-6, error(x, peer))


def test_what_tensorlys_own_tests_ask_of_a_non_negative_model() -> None:
    """A tensor of rank three is met, by starts of both kinds to the same model within a little."""
    x = planted((10, 10, 10), 3).to_dense()
    for seed in range(3):
        f = d.nonnegative_cp(x, 3, random_state=seed, tol=1e-9, n_iter_max=1000)
        assert f.rel_error(x) < 0.05
        assert float((f.to_dense() - x).abs().max()) < 0.1 * float(x.abs().max())
        assert all(bool((u >= 0).all()) for u in f.factors)
