"""ops.embedding: every path gives the rows of the table, and what each is said to cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf import ops
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TTMatrix, TuckerFactors
from tensorlrf.ops._profile import CPU, H200
from tensorlrf.ops.forms.shared._train_lookup import best_cut, merges
from tests.ops.samples import random_factors

PATHS = ("dense", "chain", "fused")
FORMATS = ("lowrank", "cp", "tucker", "tucker_partial", "tucker_in", "tt", "tt3")


def table(format: str, shape: tuple[int, int] = (13, 9)) -> Factors:
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64)

    if format == "tt3":  # padded in both modes
        return TTMatrix((normal(1, 2, 3, 2), normal(2, 3, 2, 4), normal(4, 3, 2, 1)), shape)
    return random_factors(format, shape, 3)


def indices(*lead: int) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(0, 13, lead, generator=draws)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("lead", [(), (60,), (2, 3), (0,)])
def test_rows_and_gradients_are_those_of_the_dense_table(
    format: str, path: str, lead: tuple[int, ...]
) -> None:
    f, i = table(format), indices(*lead)
    leaves = {name: t.clone().requires_grad_() for name, t in f.tensors().items()}
    own = type(f).from_tensors(leaves, f.meta())
    y = ops.run_embedding(path, own, i, 5)  # "fused" by the ops' own references here
    want = F.embedding(i, own.to_dense(), 5)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    dy = torch.randn(want.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = torch.autograd.grad(y, list(leaves.values()), dy)
    for g, w in zip(got, torch.autograd.grad(want, list(leaves.values()), dy), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-11)


def test_all_compile_into_one_graph() -> None:
    torch._dynamo.reset()
    tables = [table("lowrank"), table("tt3")]

    def run(i: Tensor) -> list[Tensor]:
        rows = [ops.run_embedding(path, f, i) for f in tables for path in ("chain", "fused")]
        return [*rows, *(ops.embedding(i, f) for f in tables)]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for i in (indices(4), indices(60), indices(2, 3)):
        torch.testing.assert_close(compiled(i), run(i))


@pytest.mark.parametrize("format", FORMATS)
def test_an_index_out_of_range_is_an_index_error_on_every_path(format: str) -> None:
    f = table(format)  # a train has more rows than the table
    for path in ("dense", "chain", "fused"):
        for beyond in (13, -1, 17):
            with pytest.raises(IndexError):
                ops.run_embedding(path, f, torch.tensor([0, beyond]))


def test_paths_are_offered_where_they_run() -> None:
    f = table("lowrank")
    assert ops.embedding_paths(f) == ("dense", "chain")
    with pytest.raises(UnsupportedError, match=r"path='fused'.*on cpu.*\.to\('cuda'\).*'chain'"):
        ops.embedding(indices(3), f, path="fused")
    whole = TuckerFactors(torch.ones(13, 9), (), ())
    for wrong in ("fold", "fused"):
        with pytest.raises(ArgumentError, match=f"path='{wrong}' is unknown"):
            ops.embedding(indices(3), whole, path=wrong)
    with pytest.raises(UnsupportedError, match="KroneckerSum, in which no rows"):
        ops.embedding(indices(3), random_factors("kron", (12, 9)))
    with pytest.raises(ShapeError, match=r"\(4, 3, 2\); the table"):
        ops.embedding(
            indices(3), CPFactors(torch.ones(2), tuple(torch.ones(n, 2) for n in (4, 3, 2)))
        )


@pytest.mark.parametrize(
    ("i", "padding", "words"),
    [
        (torch.ones(3), None, "indices is torch.float32; it must be a tensor of int32 or int64"),
        ([1, 2], None, "indices is list"),
        (torch.ones(3, dtype=torch.int64, device="meta"), None, "indices is on meta, the factors"),
        (torch.ones(3, dtype=torch.int64), 13, "padding_idx=13 must be None or a row.*-13 to 12"),
        (torch.ones(3, dtype=torch.int64), True, "padding_idx=True must be"),
    ],
)
def test_bad_input_is_named(i: Tensor, padding: int | None, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        ops.embedding(i, table("lowrank"), padding_idx=padding)


# ---- what it costs -------------------------------------------------------------------------------


def big(rank: int = 256, dtype: torch.dtype = torch.bfloat16) -> LowRank:
    sizes = ((131072, rank), (rank, 4096))
    return LowRank(*(torch.empty(s, dtype=dtype, device="meta") for s in sizes))


def big_train(*ranks: int) -> TTMatrix:
    sizes = {1: ((512, 64), (256, 64)), 2: ((64, 16), (64, 16), (32, 16))}[len(ranks)]
    ends = (1, *ranks, 1)
    return TTMatrix(
        [
            torch.empty(ends[k], n, d, ends[k + 1], dtype=torch.bfloat16, device="meta")
            for k, (n, d) in enumerate(sizes)
        ]
    )


def test_a_gather_is_bytes_and_no_flops() -> None:
    M, r, d = 1000, 256, 4096
    chain, fused = (ops.embedding_cost(big(), path, M) for path in ("chain", "fused"))
    assert chain.flops == fused.flops == 2 * M * r * d
    assert chain.steps[0] == ops.Step("gather", 0, M * (8 + 2 * 2 * r))
    # What was gathered is written and read again where a product of its own follows.
    assert chain.bytes - fused.bytes == 2 * (2 * M * r)
    assert (chain.launches, fused.launches) == (2, 1)
    kept = ops.embedding_cost(big(), "dense", M, rebuild=False)
    assert (kept.flops, kept.bytes) == (0, M * (8 + 2 * 2 * d))
    assert ops.embedding_cost(big(), "dense", M).flops == 2 * 131072 * r * d


def test_what_no_kernel_runs_costs_what_the_chain_costs() -> None:
    for factors in (big(dtype=torch.float64), big_train(65), big_train(65, 65)):
        if isinstance(factors, TTMatrix):
            assert best_cut(factors) is None
            with pytest.raises(ArgumentError, match="path='fused' is unknown"):
                ops.embedding_cost(factors, "fused", 100)
        else:
            costs = [ops.embedding_cost(factors, path, 100) for path in ("fused", "chain")]
            assert costs[0] == costs[1]


def test_the_table_is_rebuilt_for_many_indices_at_a_high_rank_alone() -> None:
    for profile in (CPU, H200):

        def best(rank: int, M: int, profile: ops.DeviceProfile = profile) -> str:
            return ops.best_embedding_path(big(rank), M, paths=("dense", "chain"), profile=profile)

        assert {best(64, M) for M in (1, 64, 8192, 65536)} == {"chain"}
        assert {best(2048, M) for M in (1, 64, 8192)} == {"chain"}
        assert best(2048, 10**6) == "dense"
        assert ops.best_embedding_path(big(64), 1, rebuild=False, profile=profile) == "dense"


def test_few_indices_are_fused_on_a_gpu() -> None:
    def best(factors: Factors, M: int) -> str:
        return ops.best_embedding_path(factors, M, paths=PATHS, profile=H200)

    assert {best(big(), M) for M in (1, 64, 1024)} == {"fused"}
    assert {best(big_train(32), M) for M in (1, 64, 8192)} == {"fused"}
    assert best(big_train(16, 16), 64) == "chain"  # its halves are larger than what is looked up
    assert best(big_train(16, 16), 8192) == "fused"


def test_a_train_is_cut_where_its_rank_is_least() -> None:
    assert best_cut(big_train(8, 64)) == 1
    assert best_cut(big_train(64, 8)) == 2
    assert best_cut(big_train(65, 8)) == 2
    factors = big_train(64, 8)
    assert not merges(factors.cores, 2, 1, factors.shape[1])
    assert merges(factors.cores, 2, 8192, factors.shape[1])
    assert merges(big_train(8).cores, 1, 1, 1)
    few, many = (ops.embedding_cost(factors, "fused", M) for M in (1, 8192))
    assert few == ops.embedding_cost(factors, "chain", 1)
    assert many.launches == 2  # the merge of the first two cores, and the kernel
    assert many.flops == 2 * 64 * 16 * 64 * 64 * 16 * 8 + 2 * 8192 * 8 * 4096
