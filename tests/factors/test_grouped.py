from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors, Factors, Grouped, LowRank, TuckerFactors
from tests.laws.factors import FactorLaws


class GroupLaws(FactorLaws):
    """The laws, and those of groups; subclasses give one group."""

    groups = 2

    def one(self, *normal: Tensor) -> Factors:
        raise NotImplementedError

    def sizes(self) -> list[tuple[int, ...]]:
        """Of the tensors of one group."""
        raise NotImplementedError

    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Grouped:
        g = torch.Generator().manual_seed(seed)
        return Grouped.stack(
            [
                self.one(
                    *(
                        torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)
                        for size in self.sizes()
                    )
                )
                for _ in range(self.groups)
            ]
        )

    def test_the_groups_are_those_that_were_stacked(self) -> None:
        g = torch.Generator().manual_seed(5)
        parts = [
            self.one(*(torch.randn(*size, generator=g) for size in self.sizes()))
            for _ in range(self.groups)
        ]
        whole = Grouped.stack(parts)
        assert (whole.groups, whole.of) == (self.groups, parts[0].format)
        assert whole.rank == parts[0].rank
        for k, part in enumerate(parts):
            got = whole.group(k)
            assert type(got) is type(part)
            assert got.meta() == part.meta()
            for name, t in got.tensors().items():
                assert torch.equal(t, part.tensors()[name])
                assert t.data_ptr() == whole.parts[name][k].data_ptr()
        assert torch.equal(whole.group(-1).to_dense(), parts[-1].to_dense())


class TestGroupedLowRank(GroupLaws):
    def sizes(self) -> list[tuple[int, ...]]:
        return [(4, 2), (2, 10)]

    def one(self, *normal: Tensor) -> Factors:
        return LowRank(*normal, (4, 5, 2))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Grouped)
        left, right = factors.parts["left"], factors.parts["right"].reshape(2, 2, 5, 2)
        return torch.einsum("gor,grik->goik", left, right).reshape(8, 5, 2)


class TestGroupedCP(GroupLaws):
    def sizes(self) -> list[tuple[int, ...]]:
        return [(3,), (4, 3), (2, 3), (5, 3)]

    def one(self, *normal: Tensor) -> Factors:
        weights, *modes = normal
        return CPFactors(weights, tuple(modes))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Grouped)
        terms = factors.parts.values()
        return torch.einsum("gr,gor,gir,gkr->goik", *terms).reshape(8, 2, 5)


class TestGroupedTucker(GroupLaws):
    def sizes(self) -> list[tuple[int, ...]]:
        return [(2, 3, 4), (5, 2), (6, 4)]

    def one(self, *normal: Tensor) -> Factors:
        core, out, last = normal
        return TuckerFactors(core, (out, last), (0, 2))

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Grouped)
        return torch.einsum("gaib,goa,gkb->goik", *factors.parts.values()).reshape(10, 3, 6)


def lowrank(m: int = 4, r: int = 2, n: int = 6, **options: object) -> LowRank:
    return LowRank(torch.ones(m, r, **options), torch.ones(r, n, **options))  # type: ignore[call-overload]


def test_what_cannot_be_stacked() -> None:
    f = lowrank()
    with pytest.raises(ArgumentError, match=r"groups=\(\) is empty"):
        Grouped.stack([])
    with pytest.raises(ArgumentError, match=r"groups\[1\] is a Tensor; pass the factors of one"):
        Grouped.stack([f, torch.ones(4, 6)])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match=r"groups\[0\] is a Grouped"):
        Grouped.stack([Grouped.stack([f])])
    with pytest.raises(ArgumentError, match=r"groups\[1\] is a CPFactors, groups\[0\] a LowRank"):
        Grouped.stack([f, CPFactors(torch.ones(2), (torch.ones(4, 2), torch.ones(6, 2)))])
    for other in (lowrank(r=1), lowrank(m=3), LowRank(f.left, f.right, (4, 2, 3))):
        with pytest.raises(ShapeError, match=r"groups\[1\] has shape .* all groups must"):
            Grouped.stack([f, other])
    core = torch.ones(2, 2)
    partial = [TuckerFactors(core, (torch.ones(2, 2),), (k,)) for k in (0, 1)]
    with pytest.raises(ShapeError, match=r"groups\[1\] has shape"):
        Grouped.stack(partial)
    for options in ({"dtype": torch.float64}, {"device": "meta"}):
        with pytest.raises(ArgumentError, match=r"groups\[1\] is .*bring them together"):
            Grouped.stack([f, lowrank(**options)])


@pytest.mark.parametrize("k", [3, -4, True, 1.0])
def test_a_group_that_is_not_there(k: object) -> None:
    f = Grouped.stack([lowrank()] * 3)
    with pytest.raises(ArgumentError, match=r"must be a group, from 0 to 2"):
        f.group(k)  # type: ignore[arg-type]


def test_what_a_file_may_say_that_does_not_fit() -> None:
    f = Grouped.stack([lowrank()] * 3)
    meta = f.meta()
    for wrong, message in (
        ({"of": "svd"}, "of='svd' is unknown; choose one of .*cp, .*lowrank"),
        ({"of": "grouped"}, "of='grouped' is unknown"),
        ({"of": ["lowrank"]}, "of="),
        ({"groups": 0}, "groups=0 must be an int of at least 1"),
        ({"groups": 2}, "left is .* the 2 groups"),
        ({"groups": "3"}, "groups='3'"),
        ({"meta": {"shape": [4, 7]}}, "does not hold a 4 x 6 matrix"),
        ({"meta": {}}, "'shape' is missing"),
        ({"meta": 3}, "meta=3"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Grouped.from_tensors(f.tensors(), {**meta, **wrong})
    with pytest.raises(ShapeError, match="left is "):
        Grouped.from_tensors({**f.tensors(), "left": torch.ones(())}, meta)


def test_the_meta_is_a_copy() -> None:
    f = Grouped.stack([lowrank()])
    f.meta()["meta"]["shape"] = []
    assert f.shape == (4, 6)
