"""Layers on leaves and on sums obey the laws of forms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Composite, Factors, Quantized, SparseTensor, TTFactors
from tensorlrf.nn import FactoredLinear
from tests.draws import seeded
from tests.factors.leaves.test_composite import parts
from tests.ops.samples import random_factors
from tests.ops.test_form_laws import CompiledSlowly, OfMatrices


class TestQuantized(CompiledSlowly, OfMatrices):
    def matrices(self) -> Iterator[Factors]:
        yield Quantized.encode(seeded(5, 6), "int4", group=3)
        yield Quantized.encode(random_factors("lowrank", (5, 6)), "fp8")
        yield Quantized.encode(random_factors("kron", (4, 6)), "int8")


class TestSparse(OfMatrices):
    def matrices(self) -> Iterator[Factors]:
        yield SparseTensor.of(seeded(5, 6) * (seeded(5, 6, seed=1) > 0))


class TestComposite(CompiledSlowly, OfMatrices):
    def matrices(self) -> Iterator[Factors]:
        yield Composite(parts())
        yield Composite(parts()[:1])


def test_a_part_without_linear_layers_is_named() -> None:
    train = TTFactors((seeded(1, 6, 2), seeded(2, 8, 1)))
    for factors, words in (
        (Composite((parts()[0], train)), r"parts\[1\] of the Composite is a TTFactors"),
        (Quantized.encode(train), "a Quantized of 'tt'"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            FactoredLinear(factors)
