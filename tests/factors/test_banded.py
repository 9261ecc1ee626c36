"""Bands of rows obey the laws of factors, but for the places, which are whole numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, RankError, ShapeError, UnsupportedError
from tensorlrf.factors import BandedLowRank, Factors
from tests.draws import generator, seeded
from tests.laws.factors import FactorLaws

SIZES = ((3, 5), (4, 2), (6, 1))
"""Rows of each band, and its rank: the first is dense."""
WIDTH = 5


def banded(seed: int = 0, axis: int = 0, dense: bool = True) -> BandedLowRank:
    lefts = [seeded(*size, seed=10 * seed + k) for k, size in enumerate(SIZES)]
    rights: list[Tensor | None] = [
        seeded(r, WIDTH, seed=100 + 10 * seed + k) for k, (_, r) in enumerate(SIZES)
    ]
    if dense:
        rights[0] = None
    place = torch.randperm(13, generator=generator(3), dtype=torch.int32)
    return BandedLowRank(tuple(lefts), tuple(rights), place, axis)


class TestBanded(FactorLaws):
    axis = 0

    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> BandedLowRank:
        return banded(seed, self.axis).to(dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, BandedLowRank)
        bands = [
            left if right is None else torch.einsum("ir,rj->ij", left, right)
            for left, right in zip(factors.lefts, factors.rights, strict=True)
        ]
        whole = [torch.cat(bands)[int(at)] for at in factors.place]
        return torch.stack(whole, self.axis)

    def test_multilinear_in_each_tensor(self) -> None:
        """Together in all left sides."""
        f, g = self.sample(0), self.sample(1)
        mixed, swapped = f.tensors(), f.tensors()
        for name in mixed:
            if name.startswith("left"):
                mixed[name] = 2 * f.tensors()[name] + g.tensors()[name]
                swapped[name] = g.tensors()[name]
        found, other = (BandedLowRank.from_tensors(t, f.meta()) for t in (mixed, swapped))
        expected = 2 * f.to_dense() + other.to_dense()
        torch.testing.assert_close(found.to_dense(), expected, rtol=1e-11, atol=1e-11)

    def test_counts_what_is_stored(self) -> None:
        f = self.sample()
        floats = sum(t.numel() for name, t in f.tensors().items() if name != "place")
        assert f.n_params == floats + 13
        assert f.n_bytes == 8 * floats + 4 * 13
        assert f.to(torch.float16).n_bytes == 2 * floats + 4 * 13

    def test_gradients_reach_every_tensor(self) -> None:
        f = self.sample()
        names = [name for name in f.tensors() if name != "place"]

        def dense(*tensors: Tensor) -> Tensor:
            named = dict(zip(names, tensors, strict=True))
            return BandedLowRank.from_tensors({**named, "place": f.place}, f.meta()).to_dense()

        leaves = [f.tensors()[name].detach().requires_grad_() for name in names]
        assert torch.autograd.gradcheck(dense, leaves)

    def test_detach_cuts_the_graph(self) -> None:
        f = self.sample().map(lambda t: t.detach().requires_grad_())
        assert all(t.requires_grad for t in (*f.lefts, *f.rights) if t is not None)
        assert not any(t.requires_grad for t in f.detach().tensors().values())

    def test_it_is_the_transpose_of_its_transpose(self) -> None:
        f = self.sample()
        assert torch.equal(f.T.to_dense(), f.to_dense().T)
        assert f.T.T.place is f.place
        assert f.T.shape == f.shape[::-1]


class TestTransposed(TestBanded):
    axis = 1


def test_places_are_a_permutation_in_int32() -> None:
    f = banded()
    lefts, rights, place = f.lefts, f.rights, f.place
    twice = place.clone()
    twice[0] = twice[1]
    with pytest.raises(ArgumentError, match="place must hold each number from 0 to 12 once"):
        BandedLowRank(lefts, rights, twice)
    with pytest.raises(ArgumentError, match=r"place is torch.int64 .* must be torch.int32"):
        BandedLowRank(lefts, rights, place.long())
    with pytest.raises(ShapeError, match=r"place is \(12,\); the bands have 13 rows"):
        BandedLowRank(lefts, rights, place[:-1])
    with pytest.raises(ArgumentError, match="axis=2 must be 0 or 1"):
        BandedLowRank(lefts, rights, place, 2)
    with pytest.raises(ArgumentError, match="3 lefts and 2 rights"):
        BandedLowRank(lefts, rights[:2], place)
    with pytest.raises(ArgumentError, match="0 lefts and 0 rights"):
        BandedLowRank((), (), place)


def test_leading_terms_are_those_of_each_band() -> None:
    f = banded(dense=False).by_energy()
    torch.testing.assert_close(f.to_dense(), banded(dense=False).to_dense())
    part = f.leading((3, 1, 1))
    assert part.rank == (3, 1, 1)
    for k, (left, right) in enumerate(zip(part.lefts, part.rights, strict=True)):
        more = f.rights[k]
        assert right is not None
        assert more is not None
        band = f.lefts[k] @ more
        values = torch.linalg.svdvals(band)
        assert float((band - left @ right).square().sum()) == pytest.approx(
            float(values[left.shape[1] :].square().sum()), abs=1e-12
        )
    assert f.leading(1).rank == (1, 1, 1)
    whole = banded()
    assert whole.leading(1).rank == (1, 1)
    assert torch.equal(whole.leading(1).lefts[0], whole.lefts[0])
    with pytest.raises(RankError):
        f.leading((6, 1, 1))
    only = BandedLowRank((whole.lefts[0],), (None,), torch.arange(3, dtype=torch.int32))
    assert not only.has_terms
    with pytest.raises(UnsupportedError, match="no sum of terms"):
        only.leading(1)
