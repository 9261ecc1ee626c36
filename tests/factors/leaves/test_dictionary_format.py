"""Dictionaries with sparse codes obey the laws of factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Dictionary, Factors
from tests.draws import seeded
from tests.laws.coded import CodedLaws

PLACES = torch.tensor([[0, 2], [1, 3], [0, 1], [2, 3], [1, 2]], dtype=torch.uint8)


def sample(seed: int = 0) -> Dictionary:
    return Dictionary(seeded(5, 2, seed=seed), seeded(4, 6, seed=seed + 50), PLACES)


class TestDictionary(CodedLaws):
    def sample(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dictionary:
        return sample(seed).to(dtype)

    def dense_by_definition(self, factors: Factors) -> Tensor:
        assert isinstance(factors, Dictionary)
        rows = [
            sum(v * factors.atoms[int(p)] for v, p in zip(values, places, strict=True))
            for values, places in zip(factors.values, factors.places, strict=True)
        ]
        return torch.stack(rows)  # type: ignore[arg-type]  # sums of tensors are tensors


def test_places_take_as_few_bytes_as_hold_them() -> None:
    for k, dtype in ((256, torch.uint8), (257, torch.int16), (32768, torch.int16)):
        f = Dictionary(torch.ones(2, 1), torch.ones(k, 3), torch.zeros(2, 1, dtype=dtype))
        assert f.n_bytes == 8 + 12 * k + 2 * dtype.itemsize
    wide = torch.zeros(2, 1, dtype=torch.int32)
    assert Dictionary(torch.ones(2, 1), torch.ones(32769, 1), wide).rank == (32769, 1)


def test_refuses_places_that_cannot_be() -> None:
    f = sample()
    for places, words in (
        (PLACES.long(), "for 4 atoms it must be torch.uint8"),
        (PLACES + 2, "from 0 to 3, ascending"),
        (PLACES.flip(1), "ascending in each row"),
    ):
        with pytest.raises(ArgumentError, match=words):
            Dictionary(f.values, f.atoms, places)
    with pytest.raises(ShapeError, match="with s from 1 to the 4 atoms"):
        Dictionary(f.values, f.atoms, PLACES[:, :1])
