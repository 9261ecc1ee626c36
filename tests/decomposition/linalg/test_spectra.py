"""Spectra of one matrix and of many: a batch is a leading dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.decomposition.linalg import _gram
from tensorlrf.decomposition.linalg._gram import (
    complete,
    descending_eigh,
    left_singular,
    short_gram,
    short_spectra,
    thin_svd,
)
from tensorlrf.decomposition.linalg._spectrum import FullSVD, ShortSideEigh, whole_spectrum
from tests.draws import seeded

quick = settings(derandomize=True, deadline=None, max_examples=25)
DTYPES = (torch.float64, torch.float32)


@st.composite
def stacks(draw: st.DrawFn) -> Tensor:
    """(b, m, n), wide, tall and square, some of them of low rank or zero."""
    b, m, n = (draw(st.integers(1, k)) for k in (4, 9, 9))
    stack = seeded(b, m, n, seed=draw(st.integers(0, 99)), dtype=draw(st.sampled_from(DTYPES)))
    kind = draw(st.sampled_from(["full", "low rank", "zero", "graded"]))
    if kind == "low rank":
        stack[0, :, 1:] = stack[0, :, :1]
    elif kind == "zero":
        stack[-1] = 0
    elif kind == "graded":
        stack *= torch.logspace(0, -4, n, dtype=stack.dtype)
    return stack


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Up to roundings of `dtype` of the largest."""
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    atol = 200 * torch.finfo(dtype).eps * max(largest, 1.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def orthonormal(vectors: Tensor) -> bool:
    """Columns of (*batch, n, k)."""
    identity = torch.eye(vectors.shape[-1], dtype=vectors.dtype)
    off = (vectors.mT @ vectors - identity).abs().max() if vectors.numel() else torch.zeros(())
    return float(off) <= 200 * torch.finfo(vectors.dtype).eps


@quick
@given(stack=stacks())
def test_svd_of_a_batch_is_that_of_each(stack: Tensor) -> None:
    left, values, right = thin_svd(stack)
    near(left * values[:, None] @ right, stack, stack.dtype)
    assert orthonormal(left)
    assert orthonormal(right.mT)
    for matrix, found in zip(stack, values, strict=True):
        near(found, thin_svd(matrix)[1], stack.dtype)


@quick
@given(stack=stacks())
def test_eigenvectors_of_a_batch_are_those_of_each(stack: Tensor) -> None:
    grams = short_gram(stack)
    values, vectors = descending_eigh(grams)
    assert orthonormal(vectors)
    assert (values >= 0).all()
    assert (values.diff(dim=-1) <= 0).all()
    near(vectors * values[:, None] @ vectors.mT, grams, torch.float64)
    for matrix, gram, found in zip(stack, grams, values, strict=True):
        near(gram, short_gram(matrix), torch.float64)
        near(found, descending_eigh(gram)[0], torch.float64)


@quick
@given(stack=stacks(), keep=st.integers(1, 9))
def test_the_first_vectors_of_short_sides(stack: Tensor, keep: int) -> None:
    energies, vectors = short_spectra(stack, keep, stack.dtype)
    k = min(stack.shape[1:])
    assert vectors.shape == (len(stack), k, min(keep, k))
    assert vectors.dtype == stack.dtype
    assert orthonormal(vectors)
    for matrix, found in zip(stack, energies, strict=True):
        alone, first = short_spectra(matrix, keep, stack.dtype)
        near(found, alone, torch.float64)
        assert first.shape == vectors.shape[1:]


@quick
@given(stack=stacks(), side=st.sampled_from([0, 1]))
def test_left_singular_vectors_of_one_and_of_many(stack: Tensor, side: int) -> None:
    turned = stack if side == 0 else stack.mT
    k, dtype = min(stack.shape[1:]), stack.dtype
    values = torch.linalg.svdvals(stack.double())
    for matrices, exact in ((turned, values), (turned[0], values[0])):
        vectors, energies = left_singular(matrices)
        assert vectors.shape == (*matrices.shape[:-1], k)
        assert vectors.dtype == dtype
        assert orthonormal(vectors)
        near(energies, exact**2, torch.float64)
        seen = torch.linalg.vector_norm((vectors.mT @ matrices).double(), dim=-1)
        # Vectors of a Gram know what is below the root of float64's rounding no better than that.
        blind = 4 * torch.finfo(torch.float64).eps ** 0.5
        atol = max(200 * torch.finfo(dtype).eps, blind) * max(float(exact.max()), 1.0)
        torch.testing.assert_close(seen, exact, rtol=0, atol=atol)
        few = left_singular(matrices, 1)[0]
        torch.testing.assert_close(few[..., :1], vectors[..., :1], rtol=0, atol=0)


@quick
@given(stack=stacks(), r=st.integers(1, 9))
def test_a_cut_of_many_is_that_of_each(stack: Tensor, r: int) -> None:
    r = min(r, *stack.shape[1:])
    makers: tuple[Callable[[Tensor], Any], ...] = (FullSVD, ShortSideEigh, whole_spectrum)
    for taken_apart in makers:
        spectrum = taken_apart(stack)
        left, right = spectrum.split(r)
        assert spectrum.energies.dtype == torch.float64
        u, values, vt = (part.double() for part in spectrum.triples)
        # Those of nothing are as large as rounding.
        atol = 1e-4 if stack.dtype == torch.float32 else 1e-7
        torch.testing.assert_close(u * values[:, None] @ vt, stack.double(), rtol=0, atol=atol)
        for k, matrix in enumerate(stack):
            alone = taken_apart(matrix)
            near(spectrum.energies[k], alone.energies, stack.dtype)
            lost, least = (
                (matrix - u @ v).double().square().sum()
                for u, v in ((left[k], right[k]), alone.split(r))
            )
            torch.testing.assert_close(lost, least, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_vectors_are_completed(batch: tuple[int, ...]) -> None:
    vectors = torch.linalg.qr(seeded(*batch, 6, 2))[0]
    whole = complete(vectors, 5)
    assert whole.shape == (*batch, 6, 5)
    assert torch.equal(whole[..., :2], vectors)
    assert orthonormal(whole)
    assert complete(vectors, 2) is vectors


@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_lapack_may_give_up_on_one_of_many(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is not said; the others come from it, that one by another way."""
    stack = seeded(4, 6, 5)
    grams = stack.mT @ stack
    real = getattr(torch.linalg, name)

    def gives_up(matrices: Tensor, *args: Any, **options: Any) -> Any:
        bad = (stack[2], grams[2])
        one = matrices.reshape(-1, *matrices.shape[-2:])
        if any(m.shape == b.shape and torch.equal(m, b) for m in one for b in bad):
            raise torch.linalg.LinAlgError("the algorithm failed to converge")  # type: ignore[attr-defined]
        return real(matrices, *args, **options)

    monkeypatch.setattr(_gram.torch.linalg, name, gives_up)
    if name == "svd":
        left, values, right = thin_svd(stack)
        near(left * values[:, None] @ right, stack, torch.float64)
        for matrix in stack:
            assert orthonormal(thin_svd(matrix)[0])
    else:
        values, vectors = descending_eigh(grams)
        near(vectors * values[:, None] @ vectors.mT, grams, torch.float64)
        assert (values.diff(dim=-1) <= 0).all()
