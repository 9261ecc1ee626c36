"""Gradients of decompositions are those of what they stand for, however they were found.

What is compared is the derivative of the whole along random directions, with central differences of
a solver that has no graph: their error is of order step^2, and eps / step over the gap.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition import cp, svd, tucker
from tensorlrf.errors import DegenerateWarning, UnsupportedError
from tensorlrf.factors import CPFactors, Factors
from tests.draws import seeded

SCALES = (1.0, 1e-20, 1e20, 1e-150, 1e150)
SPECTRA = {
    "all differ": (5.0, 4.0, 3.0, 2.0, 1.0, 0.5),
    "equal ones kept": (3.0, 3.0, 3.0, 1.0, 0.7, 0.5),
    "equal ones left out": (5.0, 4.0, 3.0, 1.0, 1.0, 1.0),
    "nearly equal ones": (3.0 + 1e-9, 3.0, 3.0 - 1e-9, 1.0, 1.0 - 1e-9, 1.0 - 1e-10),
    "of the rank asked for": (5.0, 4.0, 3.0, 0.0, 0.0, 0.0),
}


def orthonormal(n: int, r: int, seed: int) -> Tensor:
    basis: Tensor = torch.linalg.qr(seeded(n, r, seed=seed))[0]
    return basis


def matrix_of(values: tuple[float, ...], m: int, n: int) -> Tensor:
    k = len(values)
    spread = torch.tensor(values, dtype=torch.float64)
    return orthonormal(m, k, 1) * spread @ orthonormal(n, k, 2).T


def of_svd(x: Tensor, rank: int = 3, **options: Any) -> Tensor:
    return svd(x, rank, random_state=0, **options).to_dense()


def sweeps(solver: str, most: int) -> dict[str, Any]:
    """So many of them where it makes any."""
    return {"solver": solver, **({"n_iter_max": most, "tol": 0} if solver == "hooi" else {})}


def of_tucker(x: Tensor, rank: Any = 2, **options: Any) -> Tensor:
    return tucker(x, rank, random_state=0, **options).to_dense()


def of_cp(x: Tensor, rank: int = 2, **options: Any) -> Tensor:
    return cp(x, rank, random_state=0, **options).to_dense()


exact_svd = partial(of_svd, solver="exact")


def gradient(whole: Callable[[Tensor], Tensor], x: Tensor, against: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad((whole(leaf) * against).sum(), leaf)
    return grad


def assert_derivative(
    grad: Tensor,
    plain: Callable[[Tensor], Tensor],
    x: Tensor,
    against: Tensor,
    rel: float = 1e-6,
    step: float = 1e-5,
) -> None:
    for seed in range(2):
        way = seeded(*x.shape, seed=10 + seed) * step * float(x.abs().max())
        numeric = float(((plain(x + way) - plain(x - way)) * against).sum()) / 2
        assert abs(float((grad * way).sum()) - numeric) <= rel * float(grad.norm() * way.norm())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("shape", [(9, 7), (7, 9)])
def test_of_a_matrix(shape: tuple[int, int], kind: str, scale: float) -> None:
    x, against = matrix_of(SPECTRA[kind], *shape) * scale, seeded(*shape, seed=3)
    ways = {solver: partial(of_svd, solver=solver) for solver in ("exact", "eigh", "randomized")}
    ways["metric"] = partial(of_svd, gram=torch.eye(shape[1], dtype=torch.float64))
    ways["batched"] = lambda w, **options: of_svd(w[None], batch_dims=1, **options)[0]
    for way in ways.values():
        grad = gradient(partial(way, differentiable=True), x, against)
        assert_derivative(grad, exact_svd, x, against)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("solver", ["hosvd", "st_hosvd", "hooi", "randomized"])
@pytest.mark.parametrize("kind", ["exact", "equal", "noisy"])
def test_of_a_tucker_tensor(kind: str, solver: str, scale: float) -> None:
    bases = [orthonormal(n, 2, seed) for seed, n in enumerate((7, 6, 5))]
    if kind == "equal":  # unfoldings with two equal singular values
        x, rank = torch.einsum("ia,ja,k->ijk", bases[0], bases[1], bases[2][:, 0]), (2, 2, 1)
    else:
        x, rank = torch.einsum("abc,ia,jb,kc->ijk", seeded(2, 2, 2), *bases), (2, 2, 2)
    if kind == "noisy":
        x = x + 1e-3 * seeded(7, 6, 5, seed=9)
    x, against = x * scale, seeded(7, 6, 5, seed=3)
    way = partial(of_tucker, rank=rank, **sweeps(solver, 4))
    grad = gradient(partial(way, solver=solver, differentiable=True), x, against)
    # A sketch of three passes is within 1e-9 of the truncation of the noisy tensor.
    peer = "st_hosvd" if solver == "randomized" else solver
    assert_derivative(grad, partial(way, solver=peer), x, against, rel=1e-5)


@pytest.mark.parametrize("solver", ["hosvd", "st_hosvd"])
def test_of_a_batch_of_exact_tucker_tensors(solver: str) -> None:
    bases = [orthonormal(n, 2, seed) for seed, n in enumerate((5, 4, 3))]
    x = torch.einsum("zabc,ia,jb,kc->zijk", seeded(2, 2, 2, 2), *bases)
    against = seeded(*x.shape, seed=3)
    way = partial(of_tucker, solver=solver, batch_dims=1)
    grad = gradient(partial(way, differentiable=True), x, against)
    assert_derivative(grad, way, x, against)


@pytest.mark.parametrize("values", [(0.0,), (2.0,), (2.0, 2.0)])
def test_what_has_no_derivative_adds_nothing_that_is_not_finite(values: tuple[float, ...]) -> None:
    """A rank above that of the input, and the input of zero."""
    x, against = matrix_of(values, 7, 6), seeded(7, 6, seed=3)
    for solver in ("exact", "eigh", "randomized"):
        grad = gradient(partial(of_svd, solver=solver, differentiable=True), x, against)
        assert grad.norm() <= against.norm() * (1 + 1e-9)
    tensor, other = x.reshape(7, 3, 2), against.reshape(7, 3, 2)
    for solver in ("hosvd", "st_hosvd", "hooi", "randomized"):
        grad = gradient(partial(of_tucker, solver=solver, differentiable=True), tensor, other)
        assert torch.isfinite(grad).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        grad = gradient(partial(of_cp, rank=3, n_iter_max=20, differentiable=True), tensor, other)
    assert torch.isfinite(grad).all()


def squares(factors: Factors) -> tuple[Tensor, ...]:
    """What the signs of singular vectors, which are nobody's choice, leave alone."""
    return tuple(t.square() for t in factors.tensors().values())


@pytest.mark.parametrize("solver", ["exact", "eigh", "randomized"])
def test_of_the_sides_one_by_one(solver: str) -> None:
    x = matrix_of(SPECTRA["all differ"], 6, 6)[:, :5].requires_grad_()
    gram = torch.diag(torch.arange(1.0, 6.0).double())
    for metric in (None, gram) if solver == "eigh" else (None,):
        assert torch.autograd.gradcheck(
            lambda w, g=metric: squares(  # type: ignore[misc]
                svd(w, 3, solver=solver, random_state=0, gram=g, differentiable=True)
            ),
            (x,),
        )


@pytest.mark.parametrize("solver", ["hosvd", "st_hosvd", "hooi", "randomized"])
def test_of_core_and_factors_one_by_one(solver: str) -> None:
    x = seeded(4, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: squares(tucker(w, 2, **sweeps(solver, 2), random_state=0, differentiable=True)),
        (x,),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_graph_changes_no_value(dtype: torch.dtype) -> None:
    x = seeded(8, 6, 5).to(dtype)
    for solver in ("exact", "eigh", "randomized"):
        pair = [
            svd(x.clone().requires_grad_(), 3, solver=solver, random_state=0, differentiable=graph)
            for graph in (False, True)
        ]
        assert torch.equal(pair[0].left, pair[1].left)
        assert torch.equal(pair[0].right, pair[1].right)
        assert not pair[0].left.requires_grad
        assert pair[1].left.requires_grad
    for solver in ("hosvd", "st_hosvd", "hooi"):
        plain = tucker(x, 2, solver=solver)
        moving = tucker(x.clone().requires_grad_(), 2, solver=solver, differentiable=True)
        for one, other in zip(plain.tensors().values(), moving.tensors().values(), strict=True):
            assert torch.equal(one, other)
    plain_cp = cp(x, 2, random_state=0)
    moving_cp = cp(x.clone().requires_grad_(), 2, random_state=0, differentiable=True)
    for one, other in zip(plain_cp.tensors().values(), moving_cp.tensors().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", SPECTRA)
def test_in_lower_precision(kind: str, dtype: torch.dtype) -> None:
    x, against = matrix_of(SPECTRA[kind], 9, 7), seeded(9, 7, seed=3)
    x = x.to(dtype).double()
    if kind == "of the rank asked for" and dtype == torch.bfloat16:
        x = matrix_of(SPECTRA[kind], 9, 7)
    way = partial(of_svd, differentiable=True)
    found = gradient(way, x.to(dtype), against.to(dtype)).double()
    expected = gradient(way, x, against.to(dtype).double())
    # Rounding of the factors, of their product's gradient, and of the result, over gaps of a half.
    assert (found - expected).norm() <= 16 * torch.finfo(dtype).eps * expected.norm()


WAYS: dict[str, dict[str, Any]] = {
    "exact": {"solver": "exact"},
    "eigh": {"solver": "eigh"},
    "sketched": {"solver": "randomized"},
    "metric": {"gram": torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))},
    "batched": {"batch_dims": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives_of_a_matrix_and_of_its_sides(way: str) -> None:
    x = matrix_of(SPECTRA["all differ"], 6, 6)[:, :5].requires_grad_()

    def parts(w: Tensor) -> tuple[Tensor, ...]:
        w = w[None] if way == "batched" else w
        factors = svd(w, 3, random_state=0, differentiable=True, **WAYS[way])
        return factors.to_dense(), *squares(factors)

    assert torch.autograd.gradgradcheck(parts, (x,))


@pytest.mark.parametrize("solver", ["hosvd", "st_hosvd", "hooi", "randomized"])
def test_second_derivatives_of_a_tucker_tensor_and_of_its_parts(solver: str) -> None:
    x = seeded(4, 3, 3).requires_grad_()
    options = {**sweeps(solver, 2), "random_state": 0}

    def parts(w: Tensor) -> tuple[Tensor, ...]:
        factors = tucker(w, 2, differentiable=True, **options)
        return factors.to_dense(), *squares(factors)

    assert torch.autograd.gradgradcheck(parts, (x,))


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("shape", [(9, 7), (7, 9)])
def test_second_derivatives_of_what_they_stand_for(
    shape: tuple[int, int], kind: str, scale: float
) -> None:
    """Of the whole, whatever the spectrum: beside differences of the first derivative."""
    x, against = matrix_of(SPECTRA[kind], *shape) * scale, seeded(*shape, seed=3)
    whole, way = partial(exact_svd, differentiable=True), seeded(*shape, seed=4)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((whole(leaf) * against).sum(), leaf, create_graph=True)
    # Two ways to one derivative: rounding is divided by the gaps of the spectrum.
    torch.testing.assert_close(grad.detach(), gradient(whole, x, against), rtol=1e-6, atol=1e-6)
    if kind == "nearly equal ones":
        with pytest.raises(UnsupportedError, match="nearly equal and not equal"):
            torch.autograd.grad((grad * way).sum(), leaf)
        return
    (second,) = torch.autograd.grad((grad * way).sum(), leaf)
    step = 1e-6 * float(x.abs().max()) * way
    numeric = (gradient(whole, x + step, against) - gradient(whole, x - step, against)) / 2
    found = second * (1e-6 * float(x.abs().max()))
    assert float((found - numeric).norm()) <= 1e-4 * float(numeric.norm())


def test_third_derivatives_are_refused() -> None:
    x = seeded(5, 4, 3).requires_grad_()
    for whole in (of_svd, of_tucker):
        (grad,) = torch.autograd.grad(
            whole(x, differentiable=True).square().sum(), x, create_graph=True
        )
        for against in (torch.ones_like(grad), grad):
            (second,) = torch.autograd.grad(
                (grad * against).sum(), x, create_graph=True, retain_graph=True
            )
            with pytest.raises(UnsupportedError, match="third derivatives"):
                torch.autograd.grad(second.sum(), x, retain_graph=True)


def test_second_derivatives_of_cp_are_refused() -> None:
    x = seeded(5, 4, 3).requires_grad_()
    (grad,) = torch.autograd.grad(
        of_cp(x, differentiable=True).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def planted_cp(shape: tuple[int, ...], rank: int) -> Tensor:
    parts = tuple(seeded(n, rank, seed=k) for k, n in enumerate(shape))
    whole = CPFactors(torch.ones(rank, dtype=torch.float64), parts).to_dense()
    return whole + 0.1 * seeded(*shape, seed=7)


def test_gradcheck_of_cp() -> None:
    parts = tuple(orthonormal(3, 2, k) for k in range(3))
    x = CPFactors(torch.tensor([2.0, 1.0], dtype=torch.float64), parts).to_dense()
    x += 0.05 * seeded(3, 3, 3, seed=7)
    start = cp(x, 2, n_iter_max=200, tol=0, random_state=0)
    leaf = x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: tuple(
            cp(t, 2, init=start, n_iter_max=30, tol=0, differentiable=True).tensors().values()
        ),
        (leaf,),
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_cp_does_not_depend_on_the_scale(dtype: torch.dtype) -> None:
    x, against = planted_cp((5, 4, 3), 2).to(dtype), seeded(5, 4, 3, seed=3).to(dtype)
    # Steps in all factors end where the error tells factors apart no more, at a root of eps.
    way = partial(of_cp, n_iter_max=100, tol=0, solver="als", differentiable=True)
    expected = gradient(way, x, against)
    powers = (-100, -66, 66, 100) if dtype == torch.float32 else (-1000, -66, 66, 1000)
    for power in powers:
        found = gradient(way, x * 2.0**power, against)
        assert (found - expected).norm() <= 1e3 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("fixed", [(), (1,)])
def test_of_cp_with_small_components_and_fixed_modes(fixed: tuple[int, ...]) -> None:
    parts = tuple(orthonormal(n, 3, k) for k, n in enumerate((5, 4, 4)))
    weights = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)
    start = CPFactors(weights, parts)
    x, against = start.to_dense(), seeded(5, 4, 4, seed=3)
    way = partial(of_cp, rank=3, init=start, n_iter_max=60, tol=0, fixed_modes=fixed)
    grad = gradient(partial(way, differentiable=True), x, against)
    assert_derivative(grad, way, x, against, rel=1e-5, step=1e-8)


def test_of_cp_of_a_matrix() -> None:
    """Its factors are not unique; the whole is."""
    x, against = matrix_of(SPECTRA["equal ones kept"], 6, 6), seeded(6, 6, seed=3)
    grad = gradient(partial(of_cp, rank=3, differentiable=True), x, against)
    assert_derivative(grad, exact_svd, x, against)


@settings(max_examples=15, deadline=None)
@given(
    m=st.integers(2, 8), n=st.integers(2, 8), rank=st.integers(1, 8), seed=st.integers(0, 99),
    solver=st.sampled_from(["exact", "eigh", "randomized"]),
)  # fmt: skip
def test_any_shape_and_rank(m: int, n: int, rank: int, seed: int, solver: str) -> None:
    r = min(rank, m, n)
    x = seeded(m, n, seed=seed)
    values = torch.linalg.svdvals(x)
    if r < min(m, n) and float(values[r - 1] - values[r]) < 0.05 * float(values[0]):
        return
    against = seeded(m, n, seed=seed + 1)
    grad = gradient(partial(of_svd, rank=r, solver=solver, differentiable=True), x, against)
    assert_derivative(grad, partial(exact_svd, rank=r), x, against, rel=1e-5)
