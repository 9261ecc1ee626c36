"""Sums of factors obey the laws of factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Composite, CPFactors, Factors, LowRank, Quantized
from tests.draws import seeded
from tests.laws.coded import CodedLaws


def parts(seed: int = 0) -> tuple[Factors, ...]:
    low = LowRank(seeded(6, 2, seed=seed), seeded(2, 8, seed=seed + 50))
    cp = CPFactors(
        seeded(3, seed=seed + 1), (seeded(6, 3, seed=seed + 2), seeded(8, 3, seed=seed + 3))
    )
    return low, Quantized.encode(seeded(6, 8, seed=seed + 4), "int4"), cp


class TestComposite(CodedLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Composite:
        return Composite(parts(seed)).to(dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Composite)
        return torch.stack([part.to_dense() for part in factors.parts]).sum(0)


def test_counts_are_those_of_the_parts() -> None:
    whole = Composite(parts())
    assert whole.rank == (2, 6, 3)
    assert whole.n_bytes == sum(part.n_bytes for part in parts())
    assert whole.n_params == sum(part.n_params for part in parts())
    assert "LowRank + Quantized + CPFactors" in repr(whole)


def test_refuses_parts_that_do_not_go_together() -> None:
    low, coded, _ = parts()
    for made, words in (
        ((), r"parts=\(\) is empty"),
        ((low, coded.to(torch.float32)), r"parts\[1\] is torch.float32 .* \.to\(\)"),
        ((low, coded.to("meta")), r"parts\[1\] is .* on meta"),
        ((low, Composite((low,))), r"parts\[1\] is a Composite"),
        ((low, low.to_dense()), r"parts\[1\] is a Tensor"),
    ):
        with pytest.raises(ArgumentError, match=words):
            Composite(made)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="parts is a LowRank; pass a tuple"):
        Composite(low)  # type: ignore[arg-type]
    other = LowRank(seeded(6, 2), seeded(2, 7))
    with pytest.raises(ShapeError, match=r"parts\[1\] stands for \(6, 7\) and parts\[0\]"):
        Composite((low, other))
    with pytest.raises(ArgumentError, match="format='cpp'"):
        Composite.from_tensors(low.tensors(), {"parts": [["cpp", {}]]})
