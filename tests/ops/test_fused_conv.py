"""The path "fused" of convolutions, as far as it can be told without a GPU."""

from __future__ import annotations

import pytest
import torch

from tensorlrf.factors import Factors, Grouped
from tensorlrf.ops._cost import Positions, conv_cost
from tensorlrf.ops.fused import fuses
from tests.ops.samples import random_factors


def of(format: str, rank: int, shape: tuple[int, ...] = (64, 48, 3, 3)) -> Factors:
    return random_factors(format, shape, rank, dtype=torch.float32)


FORMATS = ("cp", "tucker2", "lowrank")


@pytest.mark.parametrize("rank", [16, 40])
@pytest.mark.parametrize("format", FORMATS)
def test_it_moves_less_than_the_chain_in_fewer_launches(format: str, rank: int) -> None:
    factors = of(format, rank)
    at = Positions.of((32, 56, 56), (3, 3), padding=1)
    fused, chain = (conv_cost(factors, path, at) for path in ("fused", "chain"))
    assert fused.launches < chain.launches
    assert fused.bytes < chain.bytes
    # CP makes its first product for each vertical tap, the others do just what the chain does.
    assert fused.flops <= 3 * chain.flops if format == "cp" else fused.flops == chain.flops


def test_what_no_kernel_serves_costs_what_the_chain_does() -> None:
    at = Positions.of((8, 14, 14), (3, 3), padding=1)
    for factors in (of("lowrank", 300, (512, 512, 3, 3)), of("cp", 8).to(torch.float64)):
        assert conv_cost(factors, "fused", at) == conv_cost(factors, "chain", at)
    wide = of("cp", 8, (16, 16, 1, 9))
    positions = Positions.of((8, 14, 20), (1, 9))
    assert conv_cost(wide, "fused", positions) == conv_cost(wide, "chain", positions)


def test_above_rank_128_the_last_product_of_cp_is_the_librarys() -> None:
    at = Positions.of((32, 56, 56), (3, 3), padding=1)
    kinds = {
        rank: [step.kind for step in conv_cost(of("cp", rank), "fused", at).steps]
        for rank in (128, 129)
    }
    assert kinds == {128: ["fused"], 129: ["fused", "matmul"]}


def test_formats_without_a_kernel() -> None:
    assert all(fuses(of(format, 8)) for format in FORMATS)
    assert not fuses(of("tucker_in", 8))
    assert not fuses(of("lowrank", 2, (4, 3, 3)))
    assert not fuses(Grouped.stack([of("cp", 8), of("cp", 8)]))
