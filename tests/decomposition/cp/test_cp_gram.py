"""CP of conv kernels and matrices in the metric of their inputs."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.cp import _filter_als
from tensorlrf.decomposition.cp._cp import cp, fit_cp
from tensorlrf.decomposition.cp._filter_als import FilterALS, Terms, unwhitened
from tensorlrf.decomposition.linalg import _solve
from tensorlrf.decomposition.svd._svd import fit_svd
from tensorlrf.errors import DegenerateWarning, UnsupportedError
from tensorlrf.factors import CPFactors
from tests.decomposition.tucker.test_tucker2 import error_on_images, kernel, patch_moments, pictures
from tests.draws import seeded
from tests.metrics import in_moments, moments_within, output_error


def random_terms(shape: tuple[int, ...], rank: int, seed: int = 0) -> Terms:
    factors = tuple(seeded(n, rank, seed=seed + k) for k, n in enumerate(shape))
    return Terms(torch.ones(rank, dtype=torch.float64), factors)


def dense(terms: Terms) -> Tensor:
    return CPFactors(terms.weights, terms.factors).to_dense()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_error_is_that_of_the_convolution(dtype: torch.dtype) -> None:
    images, weight = pictures(4, 8, 10), kernel(12, 8).to(dtype)
    fit = fit_cp(weight, 6, gram=patch_moments(images), random_state=0)
    assert fit.factors.dtype == dtype
    assert fit.factors.shape == tuple(weight.shape)
    whole = fit.factors.to(torch.float64).to_dense()
    assert fit.error == pytest.approx(error_on_images(weight, whole, images), rel=1e-6)


@pytest.mark.parametrize("rank", [4, 12])
def test_serves_held_out_inputs_better_than_plain_cp(rank: int) -> None:
    known, held_out = pictures(12, 12, 12), pictures(12, 12, 12, seed=1)
    weight = kernel(16, 12)
    served = cp(weight, rank, gram=patch_moments(known), random_state=0)
    plain = cp(weight, rank, random_state=0)
    better = error_on_images(weight, served.to_dense(), held_out)
    assert better < 0.9 * error_on_images(weight, plain.to_dense(), held_out)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    outputs=st.integers(1, 6),
    inputs=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    rank=st.integers(1, 6),
    inputs_rank=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_no_sweep_raises_the_error_and_plain_cp_is_never_better(
    outputs: int, inputs: list[int], rank: int, inputs_rank: int, seed: int
) -> None:
    """Singular second moments and ranks beyond use included."""
    weight = seeded(outputs, *inputs, seed=seed)
    n = weight[0].numel()
    gram = moments_within(n, min(inputs_rank, n), seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        fit = fit_cp(weight, rank, gram=gram, n_iter_max=10, random_state=seed)
        plain = cp(weight, rank, random_state=seed)
    # An error near zero is the root of a sum that cancels: what differs from the weight where there
    # are no inputs may be many times larger than the weight, and adds the root of its rounding.
    floor = 1e-6
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(fit.errors[:-1]))
    assert fit.error <= output_error(weight, plain.to_dense(), gram) * (1 + 1e-9) + floor
    assert fit.error == pytest.approx(output_error(weight, fit.factors.to_dense(), gram), abs=floor)
    assert all(bool(torch.isfinite(t).all()) for t in fit.factors.tensors().values())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("shape", "rank"), [((6, 5, 3, 3), 4), ((5, 4, 3), 3), ((4, 3, 2, 2, 3), 3), ((6, 7), 3)]
)
def test_every_mode_is_the_least_squares_solution(
    shape: tuple[int, ...], rank: int, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient vanishes; conjugate gradients reach the same with enough steps."""
    monkeypatch.setattr(_filter_als, "EXACT_UNKNOWNS", 1 << 20 if exact else 0)
    if not exact:
        monkeypatch.setattr(_solve, "CG_STEPS", 400)
    weight = seeded(*shape)
    n = weight[0].numel()
    x = seeded(n, 3 * n, seed=9)
    gram = x @ x.T
    metric = FilterALS(in_moments(weight, gram), shape)
    for mode in range(len(shape)):
        fixed = frozenset(range(len(shape))) - {mode}
        solved = metric.sweep(random_terms(shape, rank, seed=3), fixed)
        unknown = (solved.factors[mode] * solved.weights).requires_grad_()
        factors = tuple(unknown if k == mode else f for k, f in enumerate(solved.factors))
        off = (weight - dense(Terms(torch.ones_like(solved.weights), factors))).flatten(1)
        loss = (off @ gram * off).sum()
        (gradient,) = torch.autograd.grad(loss, unknown)
        assert float(gradient.norm() * unknown.detach().norm()) <= 1e-8 * float(loss.detach())


def test_inputs_that_are_alike_at_all_places_have_the_channels_moments() -> None:
    """Of patches whose places do not correlate the mean over places is that of each."""
    channels = seeded(4, 9) @ seeded(4, 9).T
    gram = torch.kron(channels, torch.eye(6, dtype=torch.float64))
    metric = FilterALS(in_moments(seeded(5, 24), gram), (5, 4, 2, 3))
    root = metric.channel_root()
    torch.testing.assert_close(root @ root.T, channels)


def test_few_conjugate_gradients_do_not_raise_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_filter_als, "EXACT_UNKNOWNS", 0)
    weight = kernel(10, 8).double()
    for gram in (patch_moments(pictures(3, 8, 9)), moments_within(72, 9)):
        fit = fit_cp(weight, 5, gram=gram, random_state=0)
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(fit.errors[:-1]))
        assert fit.error <= output_error(weight, cp(weight, 5, random_state=0).to_dense(), gram)


def test_the_normal_matrix_is_the_one_of_its_products() -> None:
    shape, rank = (6, 5, 3, 2), 4
    weight = seeded(*shape)
    metric = FilterALS(in_moments(weight, moments_within(30, 30)), shape)
    terms = random_terms(shape, rank)
    pairs = terms.factors[0].T @ terms.factors[0]
    for mode in (1, 2, 3):
        matrix = metric._normal_matrix(terms, mode, pairs)
        columns = []
        for place in range(shape[mode] * rank):
            unit = torch.zeros(shape[mode] * rank, dtype=torch.float64)
            unit[place] = 1
            factors = list(terms.factors)
            factors[mode] = unit.view(shape[mode], rank)
            spread = metric.gram @ Terms(terms.weights, tuple(factors)).filters @ pairs
            columns.append(metric._contract(spread, terms, mode).reshape(-1))
        torch.testing.assert_close(matrix, torch.stack(columns, dim=1))


@pytest.mark.parametrize("inputs_rank", [72, 11])
def test_an_exact_kernel_stays_exact(inputs_rank: int) -> None:
    weight = dense(random_terms((10, 8, 3, 3), 4))
    fit = fit_cp(weight, 4, gram=moments_within(72, inputs_rank), n_restarts=3, random_state=0)
    assert fit.error < 1e-6
    if inputs_rank == 72:
        assert fit.factors.rel_error(weight) < 1e-5


def test_directions_without_inputs_are_free() -> None:
    """A kernel that differs from an exact one only where no input ever is."""
    exact = dense(random_terms((8, 6, 3, 3), 3))
    spoilt = exact.clone()
    spoilt[:, 2] = seeded(8, 3, 3, seed=5)
    x = seeded(6, 9, 200, seed=6)
    x[2] = 0
    x = x.reshape(54, 200)
    fit = fit_cp(spoilt, 3, gram=x @ x.T, n_iter_max=300, tol=0, random_state=0)
    plain = cp(spoilt, 3, random_state=0)
    assert output_error(spoilt, plain.to_dense(), x @ x.T) > 0.01
    assert fit.error < 1e-5


@pytest.mark.parametrize("inputs_rank", [12, 5])
@pytest.mark.parametrize("rank", [1, 4, 9, 20])
def test_a_matrix_has_the_optimum(rank: int, inputs_rank: int) -> None:
    weight, gram = seeded(9, 12), moments_within(12, inputs_rank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        fit = fit_cp(weight, rank, gram=gram, random_state=0)
    best = fit_svd(weight, min(rank, 9), gram=gram)
    assert fit.error == pytest.approx(best.error, rel=1e-6, abs=1e-7)
    assert fit.factors.rank == rank


def test_unwhitening_is_the_inverse_on_what_inputs_span() -> None:
    shape = (4, 6, 3)
    channels = moments_within(6, 4)
    values, vectors = torch.linalg.eigh(channels)
    root = vectors * values.clamp_min(0).sqrt()
    terms = random_terms(shape, 3)
    back = dense(unwhitened(terms, root))
    whitened = torch.einsum("oit,ij->ojt", back, root)
    projector = (root.norm(dim=0) > 1e-5 * root.norm(dim=0).max()).double()
    torch.testing.assert_close(whitened, torch.einsum("ojt,j->ojt", dense(terms), projector))


def test_fixed_modes_stay() -> None:
    weight, gram = kernel(8, 6).double(), moments_within(54, 30)
    start = CPFactors(torch.ones(4).double(), tuple(seeded(n, 4) for n in weight.shape))
    plain = cp(weight, 4, init=start, fixed_modes=(1, 3))
    fit = fit_cp(weight, 4, init=start, fixed_modes=(1, 3), gram=gram)
    for k in (1, 3):
        assert torch.equal(fit.factors.factors[k], start.factors[k])
    assert fit.error <= output_error(weight, plain.to_dense(), gram)


def test_a_graph_is_not_kept() -> None:
    with pytest.raises(UnsupportedError, match="differentiable=True is not served; use svd"):
        fit_cp(kernel(8, 6), 3, gram=torch.eye(54), differentiable=True)
