"""Batches shared out among threads, and Grams in float32 where a bound allows them."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import fit_svd
from tensorlrf.decomposition.linalg import _spectrum, parallel
from tensorlrf.decomposition.linalg._batched import GRAM_ERROR, NEAR, Matrices
from tensorlrf.decomposition.linalg._gram import short_spectra
from tensorlrf.decomposition.linalg.parallel import over_batch
from tests.draws import seeded32


def falling(b: int, m: int, n: int, power: float, seed: int = 0) -> Tensor:
    """(b, m, n) with singular values j^-power."""
    left, right = (torch.linalg.qr(seeded32(b, k, k, seed=seed + k))[0] for k in (m, n))
    k = min(m, n)
    values = torch.arange(1, k + 1) ** -power
    return left[..., :k] * values @ right[:, :k]


def least(stack: Tensor, r: int) -> Tensor:
    """The relative errors that no rank r goes below."""
    energies = torch.linalg.svdvals(stack.double()) ** 2
    return (energies[:, r:].sum(1) / energies.sum(1)).sqrt()


def errors(stack: Tensor, factors: object) -> Tensor:
    off = stack.double() - factors.to(torch.float64).to_dense()  # type: ignore[attr-defined]
    return off.flatten(1).norm(dim=1) / stack.double().flatten(1).norm(dim=1)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    b=st.integers(4, 6),
    m=st.integers(2, 40),
    n=st.integers(2, 40),
    power=st.floats(0.0, 4.0),
    share=st.floats(0.0, 1.0),
)
def test_no_error_is_above_the_least_by_more_than_is_said(
    b: int, m: int, n: int, power: float, share: float
) -> None:
    stack = falling(b, m, n, power)
    r = max(1, round(share * min(m, n)))
    rounding = 4 * torch.finfo(torch.float32).eps
    found = errors(stack, fit_svd(stack, r, batch_dims=1).factors)
    assert (found <= least(stack, r) * (1 + 2 * NEAR) + rounding).all()
    asked = errors(stack, fit_svd(stack, r, solver="eigh", batch_dims=1).factors)
    assert (asked <= least(stack, r) * (1 + 1e-6) + rounding).all()


KINDS = {
    "random": seeded32(128, 512),
    "slow": falling(1, 128, 512, 0.5)[0],
    "fast": falling(1, 128, 512, 3.0)[0],
    "of one sign": torch.rand(128, 512, generator=torch.Generator().manual_seed(0)),
    "of rank 5": seeded32(128, 5) @ seeded32(5, 512, seed=1),
    "graded rows": seeded32(128, 512) * torch.logspace(0, -6, 128)[:, None],
    "graded columns": seeded32(128, 512) * torch.logspace(0, -6, 512),
    "ones": torch.ones(128, 512),
    "identity": torch.eye(128),
    "narrow": seeded32(8, 4000),
    "wide and of one sign": torch.rand(300, 8000, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_eigenvalues_are_within_the_doubt(kind: str) -> None:
    matrix = KINDS[kind]
    single, _ = short_spectra(matrix[None], 1, grams=torch.float32)
    double, _ = short_spectra(matrix[None], 1)
    off = (single[0].double().cumsum(0) - double[0].cumsum(0)).abs()
    roots = torch.arange(1, len(off) + 1).sqrt()
    assert (off <= GRAM_ERROR * torch.finfo(torch.float32).eps * roots * double.norm()).all()


def test_single_precision_is_taken_where_it_will_do_and_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[torch.dtype] = []
    real = _spectrum.short_spectra

    def watched(*args: object, **options: object) -> object:
        taken.append(args[3])  # type: ignore[arg-type]
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_spectrum, "short_spectra", watched)
    fit_svd(falling(8, 32, 48, 0.5), 8, batch_dims=1)
    assert set(taken) == {torch.float32}
    for stack, r, options in (
        (falling(8, 32, 48, 4.0), 8, {}),  # next to nothing is left out
        (falling(8, 32, 48, 0.5), 8, {"solver": "eigh"}),
        (falling(8, 32, 48, 0.5), 32, {}),
    ):
        taken.clear()
        fit_svd(stack, r, batch_dims=1, **options)  # type: ignore[call-overload]
        assert taken[-1] == torch.float64
    # One place for which it will not do, behind a first one for which it does.
    mixed = torch.cat([falling(5, 32, 48, 0.5), falling(1, 32, 48, 4.0)])
    taken.clear()
    found = errors(mixed, fit_svd(mixed, 8, batch_dims=1).factors)
    assert taken[0] == torch.float32
    assert taken[-1] == torch.float64
    assert (found <= least(mixed, 8) * (1 + 2 * NEAR)).all()


def test_a_worse_cut_is_not_near_the_best() -> None:
    stack = falling(3, 32, 48, 0.5)
    matrices = Matrices(stack, "eigh", 8, torch.float32)
    reached = matrices.cut(8)[2]
    assert matrices.near_best(8, reached)
    worse = reached.clone()
    worse[1] *= 1 + 3 * NEAR
    assert not matrices.near_best(8, worse)


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTHWHILE", 0.0)
    monkeypatch.setattr(parallel, "PIECE", 2000)


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_places_are_the_same_in_any_number_of_threads(threaded: None, cores: int) -> None:
    stack = seeded32(11, 30, 20)
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        alone = [torch.linalg.svdvals(matrix) for matrix in stack]
        (values,) = over_batch(lambda some: (torch.linalg.svdvals(some),), (stack,), 1.0)
        assert torch.get_num_threads() == cores
        torch.testing.assert_close(values, torch.stack(alone))
        for solver in ("auto", "eigh", "exact"):
            fit = fit_svd(stack, 7, solver=solver, batch_dims=1)
            torch.testing.assert_close(errors(stack, fit.factors), least(stack, 7))
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_raised_and_the_threads_are_as_before(threaded: None) -> None:
    def fails(some: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(f"{len(some)} places")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="places"):
            over_batch(fails, (seeded32(8, 3, 3),), 1.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_gradients_pass_as_without_threads(threaded: None) -> None:
    stack = seeded32(6, 9, 7).requires_grad_()
    parts = fit_svd(stack, 3, differentiable=True, batch_dims=1).factors.to_dense()
    (gradient,) = torch.autograd.grad(parts.square().sum(), stack)
    alone = stack.detach().clone().requires_grad_()
    u, s, vt = torch.linalg.svd(alone, full_matrices=False)
    dense = u[..., :3] * s[:, None, :3] @ vt[:, :3]
    torch.testing.assert_close(gradient, torch.autograd.grad(dense.square().sum(), alone)[0])


def test_threads_that_begin_meanwhile_have_all_cores(threaded: None) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []

    def begun_by_others() -> None:
        torch.ones(2, 2) @ torch.ones(2, 2)
        seen.append(torch.get_num_threads())

    def some(stack: Tensor) -> tuple[Tensor, ...]:
        assert torch.get_num_threads() == 1
        other = threading.Thread(target=begun_by_others)
        other.start()
        other.join()
        return (stack,)

    try:
        over_batch(some, (seeded32(8, 30, 30),), 1.0)
    finally:
        torch.set_num_threads(before)
    assert len(seen) >= 4
    assert set(seen) == {2}
