"""PARAFAC2 beside tensorly's: what its own tests ask for, of our function, on its tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorlrf
from tensorlrf.decomposition import fit_parafac2

tensorly = pytest.importorskip("tensorly")
from tensorly.decomposition import parafac2 as theirs  # noqa: E402  # where tensorly is there
from tensorly.metrics.factors import congruence_coefficient  # noqa: E402
from tensorly.parafac2_tensor import parafac2_to_slices  # noqa: E402
from tensorly.random import random_parafac2  # noqa: E402

pytestmark = pytest.mark.slow


def made(
    count: int, least: int, columns: int, rank: int, seed: int = 1234
) -> tuple[Any, list[Any]]:
    """A model of tensorly's, its small entries of A lifted as its tests do, and the slices."""
    draws = np.random.RandomState(seed)
    shapes = [(least + draws.randint(5), columns) for _ in range(count)]
    model = random_parafac2(shapes, rank=rank, random_state=draws)
    model.factors[0] = model.factors[0] + 0.01
    return model, list(parafac2_to_slices(model))


@pytest.mark.parametrize(("init", "starts"), [("svd", 1), ("random", 8)])
def test_recovers_the_factors_of_a_random_model(init: str, starts: int) -> None:
    model, slices = made(25, 15, 30, 3)
    f = tensorlrf.parafac2(slices, 3, init=init, n_restarts=starts, random_state=0)
    assert f.rel_error(slices) < 0.1
    A, _, C = (x.numpy() for x in f.factors)
    assert congruence_coefficient(np.abs(model.factors[0]), np.abs(A))[0] > 0.98
    assert congruence_coefficient(model.factors[2], C)[0] > 0.98
    true = zip(model.projections, model.factors[0], strict=True)
    for (p, a), found, own in zip(true, f.evolving(), A, strict=True):
        B = (p @ model.factors[1]) * np.sign(a)
        assert congruence_coefficient(B, found.numpy() * np.sign(own))[0] > 0.98


@pytest.mark.parametrize("seed", range(3))
def test_fits_no_worse_than_tensorly_from_the_same_start(seed: int) -> None:
    _, slices = made(15, 25, 60, 4, seed)
    noisy = [x + 0.02 * np.random.RandomState(seed).standard_normal(x.shape) for x in slices]
    _, errors = theirs(noisy, 4, init="svd", n_iter_max=300, return_errors=True, random_state=0)
    assert fit_parafac2(noisy, 4).error <= float(errors[-1]) * 1.002


def test_a_tensor_and_its_slices_are_one() -> None:
    _, slices = made(25, 15, 30, 3)
    stack = np.stack([x[:15] for x in slices])
    from_stack = tensorlrf.parafac2(stack, 3, n_iter_max=2)
    from_slices = tensorlrf.parafac2(list(stack), 3, n_iter_max=2)
    assert np.array_equal(from_stack.to_dense().numpy(), from_slices.to_dense().numpy())


def test_what_comes_back_is_a_tensor_of_tensorly() -> None:
    model, slices = made(6, 8, 9, 2)
    ours = tensorlrf.from_tensorly(model)
    assert ours.rel_error(np.concatenate(slices)) < 1e-14
    f = tensorlrf.parafac2(slices, 2)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        again = parafac2_to_slices(tensorlrf.to_tensorly(f))
    for one, other in zip(again, f.slices(), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-12)
