"""The path "fused" of convolutions, as far as it can be told without a GPU."""

from __future__ import annotations

import pytest
import torch

from tensorlrf import ops
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import CPFactors, Factors, Grouped, LowRank, TuckerFactors
from tensorlrf.ops._cost import Positions, conv_cost
from tensorlrf.ops.fused import fuses
from tests.draws import seeded


def of(format: str, r: int, shape: tuple[int, ...] = (64, 48, 3, 3)) -> Factors:
    O, I, kh, kw = shape
    if format == "cp":
        factors = tuple(seeded(n, r, seed=k, dtype=torch.float32) for k, n in enumerate(shape))
        return CPFactors(seeded(r, seed=9, dtype=torch.float32), factors)
    if format == "tucker":
        core = seeded(r, r, kh, kw, seed=0, dtype=torch.float32)
        sides = (seeded(O, r, seed=1, dtype=torch.float32), seeded(I, r, seed=2).float())
        return TuckerFactors(core, sides, (0, 1))
    left, right = seeded(O, r, seed=1), seeded(r, I * kh * kw, seed=2)
    return LowRank(left.float(), right.float(), shape)


FORMATS = ("cp", "tucker", "lowrank")


@pytest.mark.parametrize("format", FORMATS)
def test_off_the_gpu_it_is_the_chain_and_no_path_of_its_own(format: str) -> None:
    factors = of(format, 16)
    assert fuses(factors)
    assert "fused" not in ops.conv2d_paths(factors)
    x = seeded(2, 48, 9, 7, seed=5, dtype=torch.float32)
    geometry = ((2, 1), (1, 1), (1, 1))
    chain = ops.run_conv2d("chain", factors, x, None, *geometry)
    torch.testing.assert_close(ops.run_conv2d("fused", factors, x, None, *geometry), chain)
    with pytest.raises(UnsupportedError, match=r"on cpu; move them to an NVIDIA GPU.*'chain'"):
        ops.conv2d(x, factors, path="fused")


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
    core = seeded(16, 8, 3, 3, seed=0, dtype=torch.float32)
    half = TuckerFactors(core, (seeded(48, 8, seed=1).float(),), (1,))
    assert not fuses(half)
    assert not fuses(LowRank(seeded(4, 2, seed=0), seeded(2, 9, seed=1), (4, 3, 3)))
    assert not fuses(Grouped.stack([of("cp", 8), of("cp", 8)]))
