"""Path tables and the cost model that fills them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf import ops
from tensorlrf.errors import ArgumentError
from tensorlrf.ops._profile import CPU, H200
from tensorlrf.ops.buckets import BUCKETS, bucket
from tests.ops.samples import random_factors, random_grouped

choices = st.dictionaries(
    st.sampled_from(BUCKETS), st.sampled_from(["dense", "chain", "fold"]), min_size=1
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(choices)
def test_a_table_holds_what_was_chosen(choices: dict[int, str]) -> None:
    table = ops.PathTable.from_choices(choices)
    for rows, path in choices.items():
        assert table.lookup(rows) == path
    assert table.lookup(10**9) == choices[max(choices)]
    assert table.lookup(0) == table.lookup(1) == choices[min(choices)]
    assert set(table.paths) <= set(choices.values())
    neighbours = zip(table.entries, table.entries[1:], strict=False)
    assert all(a[1] != b[1] for a, b in neighbours)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(choices)
def test_round_trip_through_json(choices: dict[int, str]) -> None:
    table = ops.PathTable.from_choices(choices)
    assert ops.PathTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert ops.PathTable.from_json(json.dumps(table.to_json())) == table


def test_a_bucket_ends_at_a_power_of_two() -> None:
    table = ops.PathTable(((64, "dense"), (None, "chain")))
    assert [table.lookup(m) for m in (1, 63, 64, 65, 10**7)] == ["dense"] * 3 + ["chain"] * 2
    assert str(table) == "dense for M <= 64, chain above"
    assert [bucket(m) for m in (0, 1, 2, 3, 4, 5, 1023, 1024, 1025)] == [
        1, 1, 2, 4, 4, 8, 1024, 1024, 2048,
    ]  # fmt: skip
    assert bucket(10**9) == BUCKETS[-1]


def test_one_path_for_all_rows_needs_no_branch() -> None:
    table = ops.PathTable.single("chain")
    assert len(table.entries) == 1
    assert str(table) == "chain"
    assert table.lookup(object()) == "chain"  # type: ignore[arg-type]  # looks at nothing


@pytest.mark.parametrize(
    "entries",
    [
        (),
        ((64, "dense"),),
        ((None, "dense"), (None, "chain")),
        ((64, "dense"), (32, "chain"), (None, "dense")),
        (("64", "dense"), (None, "chain")),
    ],
)
def test_a_table_out_of_order_is_refused(entries: tuple) -> None:
    with pytest.raises(ArgumentError, match="ascending rows"):
        ops.PathTable(entries)


def test_what_is_no_table_is_refused() -> None:
    for values in (3, [1, 2], "{}x", [[1]]):
        with pytest.raises(ArgumentError):
            ops.PathTable.from_json(values)
    with pytest.raises(ArgumentError, match="choices"):
        ops.PathTable.from_choices({})


@pytest.mark.parametrize("profile", [CPU, H200], ids=["cpu", "h200"])
@pytest.mark.parametrize(("axes", "groups"), [(2, 1), (1, 1), (3, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("rebuild", [False, True])
def test_the_table_by_cost_takes_the_least_predicted_time(
    profile: ops.DeviceProfile, axes: int, groups: int, rebuild: bool
) -> None:
    stride: tuple[int, ...] = (2, 1, 1)[:axes]
    shape, dtype = (64 * groups, 64, *(3,) * axes), torch.float32
    for format in ("lowrank", "cp", "tucker2"):
        factors = random_grouped(format, shape, groups, dtype=dtype, rank=16).to("meta")
        table = ops.PathTable.from_cost(factors, stride=stride, rebuild=rebuild, profile=profile)
        for rows in (1, 64, 4096, 2**20):
            times = {
                path: profile.seconds(
                    ops.path_cost(factors, path, rows, stride=stride, rebuild=rebuild), dtype
                )
                for path in ops.paths_of(factors)
            }
            assert times[table.lookup(rows)] == min(times.values())
        floor = ops.floor_cost(factors, 4096, stride=stride)
        least = {ops.path_cost(factors, path, 4096, stride=stride).flops for path in times}
        assert floor.flops == min(least)
        elements = (2 + 1) * 4096 * groups * 64 + factors.n_params
        assert floor.bytes == 4 * elements


def test_the_table_by_cost_can_be_kept_to_some_paths() -> None:
    factors = random_factors("cp", (64, 64, 3, 3), 16)
    assert ops.PathTable.from_cost(factors, paths=("fold",)) == ops.PathTable.single("fold")
    with pytest.raises(ArgumentError, match="unknown"):
        ops.PathTable.from_cost(factors, paths=("folded",))


def test_a_high_rank_runs_dense_and_a_low_rank_in_factors() -> None:
    low, high = (random_factors("lowrank", (512, 512), r, dtype=torch.float32) for r in (16, 500))
    assert ops.PathTable.from_cost(low, rebuild=False).lookup(1024) == "chain"
    assert ops.PathTable.from_cost(high, rebuild=False).lookup(1024) == "dense"


def test_a_weight_that_is_rebuilt_in_each_call_is_counted_by_default() -> None:
    factors = random_factors("lowrank", (512, 512), 300, dtype=torch.float32)
    rebuilt, kept = (ops.linear_cost(factors, "dense", 64, rebuild=r).flops for r in (True, False))
    assert rebuilt - kept == 2 * 512 * 300 * 512
    assert ops.path_cost(factors, "dense", 64).flops == rebuilt
    assert ops.PathTable.from_cost(factors).lookup(64) == "chain"
    assert ops.PathTable.from_cost(factors, rebuild=False).lookup(64) == "dense"


def test_fewer_launches_win_where_launches_are_all() -> None:
    factors = random_factors("cp", (8, 8, 3, 3), 2, dtype=torch.float32)
    slow = replace(CPU, launch=dict.fromkeys(CPU.launch, 1.0))
    assert ops.best_path(factors, 64, rebuild=False, profile=slow) == "dense"


def test_profiles_scale_with_the_device() -> None:
    cost = ops.path_cost(
        random_factors("lowrank", (512, 512), 16, dtype=torch.float32), "chain", 4096
    )
    launches = sum(CPU.launch[step.kind] for step in cost.steps)
    whole, half = (p.seconds(cost, torch.float32) for p in (CPU, CPU.scaled("half", 0.5)))
    assert half - launches == pytest.approx(2 * (whole - launches))
    assert ops.profile_of("cpu").rate["conv"] == pytest.approx(
        CPU.rate["conv"] * torch.get_num_threads() / 2
    )
    assert ops.profile_of("meta") == ops.profile_of("cpu")
    with pytest.raises(ArgumentError, match="device='odd' is none that torch knows"):
        ops.profile_of("odd")


def test_rows_alone_estimate_the_positions() -> None:
    exact = ops.Positions.of((4, 32, 32), (3, 3), stride=2, padding=1)
    assert ops.Positions.from_rows(exact.output, (2, 2)) == exact
    assert str(ops.Cost((ops.Step("matmul", 2000, 12),))) == "2,000 FLOPs, 12 bytes, 1 launches"
