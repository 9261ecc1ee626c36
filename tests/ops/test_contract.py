"""Contractions of factors against einsum over what they stand for."""

from __future__ import annotations

import numpy
import pytest
import torch

from tensorlrf import ops
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import TRFactors
from tests.draws import seeded
from tests.ops.samples import CONV_FORMATS, random_factors, structured

FORMATS = [format for format in CONV_FORMATS if format not in ("kron", "block_term")]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("expression", "sizes"),
    [
        ("oihw,i->ohw", [(4,)]),
        ("oihw,ni,mo->nmhw", [(2, 4), (3, 5)]),
        ("oihw,o,i,h,w->", [(5,), (4,), (3,), (2,)]),
        ("oihw->wh", []),
    ],
)
def test_is_einsum_of_the_dense_tensor(
    format: str, expression: str, sizes: list[tuple[int, ...]]
) -> None:
    factors = random_factors(format, (5, 4, 3, 2), 2)
    others = [seeded(*size, seed=30 + k) for k, size in enumerate(sizes)]
    expected = torch.einsum(expression, factors.to_dense(), *others)
    torch.testing.assert_close(
        ops.contract(expression, factors, *others), expected, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("a", FORMATS)
@pytest.mark.parametrize("b", FORMATS)
def test_inner_product_of_two_formats(a: str, b: str) -> None:
    f, g = random_factors(a, (5, 4, 3, 2), 2), random_factors(b, (5, 4, 3, 2), 3)
    expected = (f.to_dense() * g.to_dense()).sum()
    torch.testing.assert_close(ops.inner(f, g), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ops.inner(f, g.to_dense()), expected, rtol=1e-11, atol=1e-11)


def test_a_ring_is_contracted_core_by_core() -> None:
    ring = structured("tr", (3, 2, 4, 2), 2)
    assert isinstance(ring, TRFactors)
    apart = TRFactors(ring.cores)
    v = seeded(4, seed=30)
    expected = torch.einsum("abcd,c->dab", apart.to_dense(), v)
    torch.testing.assert_close(ops.contract("abcd,c->dab", apart, v), expected)
    with pytest.raises(UnsupportedError, match="TRFactors"):
        ops.contract("mn,n->m", ring, seeded(8))


def test_nothing_of_the_size_of_the_whole_is_made() -> None:
    """2 TB would be needed for the tensor of which this is the norm."""
    f = random_factors("cp", (800,) * 4, 2)
    grams = torch.ones(2, 2, dtype=torch.float64)
    for factor in f.factors:
        grams = grams * (factor.T @ factor)
    expected = f.weights @ grams @ f.weights
    torch.testing.assert_close(ops.inner(f, f), expected, rtol=1e-10, atol=0)


def test_gradients() -> None:
    f = random_factors("cp", (3, 2, 2), 2)
    leaves = [t.requires_grad_() for t in (seeded(2), *f.tensors().values())]

    def run(v, *tensors):
        parts = dict(zip(f.tensors(), tensors, strict=True))
        return ops.contract("abc,b->ac", type(f).from_tensors(parts, f.meta()), v)

    assert torch.autograd.gradcheck(run, leaves)


def test_wrong_arguments_are_named() -> None:
    f, v = random_factors("cp", (5, 4, 3), 2), seeded(4)
    with pytest.raises(ArgumentError, match="explicit output"):
        ops.contract("abc,b", f, v)
    with pytest.raises(ArgumentError, match="ellipses"):
        ops.contract("...,b->b", f, v)
    with pytest.raises(ArgumentError, match="names 1 operands; 2 were given"):
        ops.contract("abc->a", f, v)
    with pytest.raises(ArgumentError, match="output mode 'z'"):
        ops.contract("abc,b->z", f, v)
    with pytest.raises(ShapeError, match="2 modes, 'ab'"):
        ops.contract("ab,b->a", f, v)
    with pytest.raises(ShapeError, match="mode 'a' has size 4 there and 5"):
        ops.contract("abc,a->b", f, v)
    with pytest.raises(ShapeError, match=r"\(5, 4, 3\), b \(4,\)"):
        ops.inner(f, v)
    with pytest.raises(UnsupportedError, match="to_dense"):
        ops.contract("a->a", numpy.ones(3))
