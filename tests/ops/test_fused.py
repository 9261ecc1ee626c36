"""The path "fused": where it is offered, what it computes, and when the cost model takes it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import tensorlrf
from tensorlrf import ops
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import LowRank, TuckerFactors
from tensorlrf.nn import FactoredConv2d, FactoredLinear
from tensorlrf.ops._profile import CPU, H200, chip_profile
from tensorlrf.ops.explain import explain, main
from tensorlrf.ops.explain import sample as empty_sample
from tensorlrf.ops.forms import form_of
from tensorlrf.ops.forms.lowering import LINEAR
from tensorlrf.ops.fused import fuses
from tensorlrf_kernels import chips
from tests.draws import seeded
from tests.ops.samples import assert_rounding, random_factors
from tests.ops.test_fused_structured import FACTORS


def test_the_core_goes_to_the_side_of_the_smaller_rank() -> None:
    x = seeded(5, 8)
    for ranks in ((2, 4), (4, 2), (3, 3)):
        core, out, inp = seeded(*ranks), seeded(6, ranks[0], seed=1), seeded(8, ranks[1], seed=2)
        factors = TuckerFactors(core, (out, inp))
        (kernel,) = LINEAR.paths(factors)["fused"]
        right, left = kernel.weights()
        assert right.shape[0] == left.shape[1] == min(ranks)
        torch.testing.assert_close(left @ right, factors.to_dense())
        assert_rounding(ops.run_linear("fused", factors, x), factors, x, None, F.linear)


OFFERED = {
    **{f"conv of {f}": random_factors(f, (64, 48, 3, 3), 16) for f in ("cp", "tucker2", "lowrank")},
    **{name: make() for name, make in FACTORS.items()},
    "lowrank": random_factors("lowrank", (6, 8), 3),
}


@pytest.mark.parametrize("name", OFFERED)
def test_it_is_offered_where_a_kernel_can_run(name: str) -> None:
    factors = OFFERED[name]
    assert fuses(factors)
    assert "fused" not in ops.paths_of(factors)
    words = r"path='fused' is a GPU kernel.*on cpu; move them.*\.to\('cuda'\).*'chain'"
    linear, conv = (ops.linear, FactoredLinear), (ops.conv2d, FactoredConv2d)
    call, layer = linear if len(factors.shape) == 2 else conv
    x = seeded(2, factors.shape[1], *(5,) * (len(factors.shape) - 2))
    with pytest.raises(UnsupportedError, match=words):
        call(x, factors, path="fused")
    with pytest.raises(UnsupportedError, match=words):
        layer(factors).path_table = ops.PathTable.single("fused")


def choice(rank: int, rows: int, dtype: torch.dtype = torch.bfloat16, size: int = 4096) -> str:
    factors = empty_sample("lowrank", (size, size), rank, dtype)
    return ops.best_path(
        factors, rows, paths=("dense", "chain", "fused"), rebuild=False, profile=H200
    )


@pytest.mark.parametrize("rank", [32, 64, 128, 256, 512])
def test_few_rows_are_fused(rank: int) -> None:
    assert {choice(rank, M) for M in (1, 16, 128)} == {"fused"}


@pytest.mark.parametrize("rank", [32, 64, 128, 256, 512, 1024])
def test_between_few_and_many_rows_the_chain_wins(rank: int) -> None:
    assert {choice(rank, M) for M in (256, 512, 1024, 2048, 4096)} == {"chain"}


def test_many_rows_are_fused_at_a_low_rank() -> None:
    assert {choice(rank, 8192) for rank in (32, 64, 128)} == {"fused"}
    assert {choice(rank, M) for rank in (512, 1024) for M in (2048, 8192, 65536)} == {"chain"}


def test_what_no_kernel_runs_costs_what_the_chain_costs() -> None:
    for rank, rows, dtype in ((512, 8192, torch.bfloat16), (64, 8192, torch.float64)):
        factors = empty_sample("lowrank", (4096, 4096), rank, dtype)
        assert ops.linear_cost(factors, "fused", rows) == ops.linear_cost(factors, "chain", rows)


def test_float32_without_tensor_cores_is_fused_for_few_rows_alone() -> None:
    assert choice(64, 16, torch.float32) == "fused"
    assert choice(64, 8192, torch.float32) == "chain"


def test_a_fused_call_moves_no_intermediate_and_launches_once() -> None:
    factors = empty_sample("lowrank", (4096, 2048), 64, torch.bfloat16)
    fused, chain = (ops.linear_cost(factors, path, 8192) for path in ("fused", "chain"))
    assert fused.flops == chain.flops
    assert chain.bytes - fused.bytes == 2 * (2 * 8192 * 64)
    assert (fused.launches, chain.launches) == (1, 2)


def test_a_tile_wider_than_the_rank_costs_what_it_executes() -> None:
    narrow, wide = (empty_sample("lowrank", (256, 256), r, torch.bfloat16) for r in (65, 128))
    costs = [ops.linear_cost(f, "fused", 8192) for f in (narrow, wide)]
    executed = [step.flops * step.padding for cost in costs for step in cost.steps]
    assert executed[0] == pytest.approx(executed[1])


def test_the_floor_is_below_every_path() -> None:
    for format, shape in (
        ("lowrank", (768, 512)),
        ("cp", (64, 32, 3, 3)),
        ("tucker", (64, 32, 3, 3)),
    ):
        for dtype in (torch.bfloat16, torch.float32):
            factors = empty_sample(format, shape, 16, dtype)
            for profile in (CPU, H200, chip_profile(chips.A100, tf32=True)):
                for rows in (1, 100, 10_000):
                    floor = profile.floor(ops.floor_cost(factors, rows), dtype)
                    for path in set(ops.paths_of(factors)) - {"dense"}:
                        assert floor <= profile.seconds(ops.path_cost(factors, path, rows), dtype)


def test_a_profile_follows_its_chip() -> None:
    plain, tf32 = chip_profile(chips.H200), chip_profile(chips.H200, tf32=True)
    cost = ops.Cost((ops.Step("matmul", 10**15, 1),))
    faster = chips.H200.tf32_rate / chips.H200.matmul_rate(torch.float32)
    assert plain.seconds(cost, torch.float32) / tf32.seconds(cost, torch.float32) == pytest.approx(
        faster, rel=1e-3
    )
    assert plain.seconds(cost, torch.bfloat16) == tf32.seconds(cost, torch.bfloat16)


def test_programs_that_do_not_fill_the_device_take_longer() -> None:
    n = H200.processors
    work = [
        H200.step_seconds(ops.Step("fused", 0, 10**9, 1.0, k), torch.bfloat16)
        for k in (n, n // 2, n + 1, 0)
    ]
    full, half, spill, free = (t - H200.launch["fused"] for t in work)
    assert half == pytest.approx(2 * full)
    assert spill == pytest.approx(full * 2 * n / (n + 1))
    assert free == full


def test_explain_prints_every_path_and_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["4096x4096", "--rank", "64", "--rows", "16", "8192", "--device", "h200"]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA H200" in out
    rows = {line.split()[0]: line.split()[-1] for line in out.splitlines()[2:4]}
    assert rows == {"16": "fused", "8192": "fused"}
    assert "fused at 16 rows: decode BM=16" in out
    assert main(["64x32x3x3", "--format", "cp", "--rank", "8", "--device", "cpu"]) == 0
    assert "fold_depthwise" in capsys.readouterr().out


def test_explain_chooses_what_the_table_chooses() -> None:
    factors = LowRank(seeded(64, 8, dtype=torch.float32), seeded(8, 96, dtype=torch.float32))
    explained = explain(factors, [1, 64, 1024])
    table = ops.PathTable.from_cost(factors)
    assert explained.chosen == {rows: table.lookup(rows) for rows in (1, 64, 1024)}


def test_explain_asks_the_form_for_its_paths() -> None:
    weight = seeded(64, 64, dtype=torch.float32)
    for factors in (
        tensorlrf.blr(weight, 4, block=16),
        tensorlrf.tr(weight, 3, sizes=((8, 8), (8, 8)), n_iter_max=2, random_state=0),
        tensorlrf.tt_matrix(weight, 3, order=3),
        tensorlrf.kron(weight, 2, shapes=((2, 2), (32, 32))),
    ):
        here = explain(factors, [1, 64])
        assert tuple(here.seconds[1]) == ops.linear_paths(factors)
        there = explain(factors, [1, 64], device="H200").seconds[64]
        assert tuple(there) == ("dense", *form_of(factors).linear(factors))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["64", "--rank", "8"], "shape=64 is no layer; give OUTxIN"),
        (["64xx", "--rank", "8"], "shape='64xx' is no shape"),
        (["64x64", "--rank", "0"], "rank=0 must be 1 at least"),
        (["64x64", "--rank", "8", "--rows", "0"], "rows=0 must be 1 at least"),
        (["64x64", "--rank", "8", "--format", "svd"], "'svd'"),
        (["64x64", "--rank", "8", "--dtype", "int8"], "'int8'"),
        (["64x64", "--rank", "8", "--device", "H9000"], "'H9000'"),
    ],
)
def test_explain_names_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
