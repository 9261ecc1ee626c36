"""The path "fused" of structured linear layers, as far as it can be told without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tensorlrf import ops
from tensorlrf.factors import (
    BlastFactors,
    BlockLowRank,
    Factors,
    KroneckerSum,
    MonarchFactors,
    TRFactors,
    TTMatrix,
)
from tensorlrf.ops._cost import linear_cost
from tensorlrf.ops.fused import fused_problem, fuses
from tests.draws import seeded
from tests.ops.samples import random_factors


def kron(terms: int = 2, sizes: tuple[int, ...] = (16, 24, 32, 16)) -> KroneckerSum:
    m1, n1, m2, n2 = sizes
    return KroneckerSum(seeded(terms, m1, n1, seed=1), seeded(terms, m2, n2, seed=2))


def train(rank: int = 4, shape: tuple[int, ...] = ()) -> TTMatrix:
    ends = (1, 3, rank, 3, 1)
    cores = [seeded(ends[k], 4, 5, ends[k + 1], seed=k) for k in range(4)]
    return TTMatrix(tuple(cores), shape)


def blocks(ranks: list[tuple[int | None, ...]], side: int = 64) -> BlockLowRank:
    """On a grid, side x 64 each."""
    made: list[tuple[int, int, Tensor | tuple[Tensor, Tensor]]] = []
    for i, row in enumerate(ranks):
        for j, rank in enumerate(row):
            whole = seeded(side, 64, seed=7 * i + j)
            pair = seeded(side, rank or 1, seed=i), seeded(rank or 1, 64, seed=j)
            made.append((side * i, 64 * j, whole if rank is None else pair))
    return BlockLowRank.pack(made, (side * len(ranks), 64 * len(ranks[0])))


FACTORS: dict[str, Callable[[], Factors]] = {
    "kron": kron,
    "tt": train,
    "padded tt": lambda: train(shape=(250, 601)),
    "blocks": lambda: blocks([(8, 1), (2, 5)]),
    "blocks and dense ones": lambda: blocks([(8, None), (None, 5)]),
    "monarch": lambda: MonarchFactors(
        seeded(4, 24, 5, 4, seed=1), seeded(5, 4, 4, 64, seed=2), (93, 317)
    ),
    "blast": lambda: BlastFactors(
        seeded(3, 32, 16, seed=1), seeded(4, 16, 64, seed=2), seeded(3, 4, 16, seed=3), (95, 253)
    ),
}
OPS = dict.fromkeys(FACTORS, "blr_linear") | dict.fromkeys(
    ("kron", "tt", "padded tt"), "kron_linear"
)


def test_all_compile_into_one_graph() -> None:
    some = [
        *(make() for make in FACTORS.values()),
        *(random_factors(format, (6, 8), 3) for format in ("lowrank", "cp", "tucker")),
    ]

    def run(inputs: list[Tensor]) -> list[Tensor]:
        return [ops.run_linear("fused", f, x) for f, x in zip(some, inputs, strict=True)]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    inputs = [seeded(3, f.shape[1], seed=7).requires_grad_() for f in some]
    ours, eager = compiled(inputs), run(inputs)
    gradients = torch.autograd.grad(torch.stack([y.sum() for y in ours]).sum(), inputs)
    for y, own, dx, f in zip(ours, eager, gradients, some, strict=True):
        torch.testing.assert_close(y, own, rtol=1e-12, atol=1e-12)  # the same products
        expected = f.to_dense().sum(0).expand_as(dx)
        torch.testing.assert_close(dx, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2048])
@pytest.mark.parametrize("name", FACTORS)
def test_it_moves_less_than_the_chain_in_fewer_launches(name: str, rows: int) -> None:
    factors = FACTORS[name]().to(torch.bfloat16)
    fused, chain = (linear_cost(factors, path, rows) for path in ("fused", "chain"))
    kernel = fused.steps[-1]
    assert kernel.kind.startswith("fused")
    assert kernel.padding >= 1.0
    found = fused_problem(factors, rows)
    assert found is not None
    op, problem = found
    assert op == OPS[name]
    assert problem.dtype is torch.bfloat16
    if "tt" not in name:  # whose cores are merged first
        # BLAST has its scales between two launches, as the chain has.
        assert fused.launches < chain.launches or (name == "blast" and fused.launches == 3)
        assert fused.bytes < chain.bytes
        # The products themselves are the same, but for scales that are no matrix product here.
        assert fused.flops == chain.flops or name in ("blast", "monarch")
        assert fused.flops <= chain.flops
    if OPS[name] == "blr_linear":
        # Products that share a launch wait for each other, and keep what lies between them.
        assert (kernel.kind == "fused_few") == (fused.launches == 1)
        if fused.launches == 1:
            assert fused.bytes == 2 * (rows * sum(factors.shape) + factors.n_params)


@pytest.mark.parametrize(
    "factors",
    [
        kron(17),
        kron(2, (8, 24, 32, 16)),
        kron(2, (16, 24, 32, 136)),
        train(17),
        blocks([(1, 1, 1, 1)], 3),
        TRFactors((seeded(2, 6, 3), seeded(3, 8, 2))),
    ],
    ids=["17 terms", "a factor of 8 rows", "136 columns", "rank 17", "narrow strips", "a ring"],
)
def test_what_no_kernel_serves_is_the_chain(factors: Factors) -> None:
    assert not fuses(factors)
    assert fused_problem(factors, 64) is None


def test_in_float64_the_cost_is_that_of_the_library() -> None:
    for factors in (kron(), train(), train(1), blocks([(8, 1), (None, 5)])):
        # A train may be cut in the middle, as the path "fold" does.
        library = [path for path in ops.linear_paths(factors) if path != "dense"]
        assert linear_cost(factors, "fused", 64) in [linear_cost(factors, p, 64) for p in library]
