"""ops.linear by every path against the dense layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf import ops
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, LowRank
from tests.draws import seeded
from tests.ops.samples import LINEAR_FORMATS, assert_rounding, sample

sizes = st.integers(1, 9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(LINEAR_FORMATS),
    sizes,
    sizes,
    st.integers(1, 5),
    st.lists(st.integers(0, 3), max_size=3),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_every_path_is_the_dense_layer(
    format: str, m: int, n: int, rank: int, lead: list[int], with_bias: bool, dtype: torch.dtype
) -> None:
    factors = sample(format, (m, n), rank, dtype)
    x = seeded(*lead, n, seed=20, dtype=dtype)
    bias = seeded(m, seed=21, dtype=dtype) if with_bias else None
    for path in (None, *ops.linear_paths(factors)):
        y = ops.linear(x, factors, bias, path=path)
        assert_rounding(y, factors, x, bias, F.linear)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(LINEAR_FORMATS), sizes, sizes, st.integers(1, 5), st.integers(1, 7))
def test_counted_flops_are_those_of_torch(
    format: str, m: int, n: int, rank: int, rows: int
) -> None:
    factors = sample(format, (m, n), rank)
    for path in ops.linear_paths(factors):
        with FlopCounterMode(display=False) as counter:
            ops.linear(seeded(rows, n), factors, path=path)
        assert ops.linear_cost(factors, path, rows).flops == counter.get_total_flops()


def test_costs_of_a_low_rank_layer_by_hand() -> None:
    f = LowRank(torch.zeros(8, 2), torch.zeros(2, 4))
    chain, dense = ops.linear_cost(f, "chain", 3), ops.linear_cost(f, "dense", 3)
    assert chain.flops == 2 * 3 * (4 * 2 + 2 * 8)
    assert chain.bytes == 4 * ((3 * 4 + 4 * 2 + 3 * 2) + (3 * 2 + 2 * 8 + 3 * 8))
    assert (chain.launches, dense.launches) == (2, 2)
    assert ops.linear_cost(f, "dense", 3, rebuild=False).flops == 2 * 3 * 4 * 8


@pytest.mark.parametrize("path", [None, "chain"])
def test_compiles_whole(path: str | None) -> None:
    torch._dynamo.reset()
    factors = sample("lowrank", (6, 5), 2)
    run = torch.compile(
        lambda x, f: ops.linear(x, f, path=path), fullgraph=True, backend="eager", dynamic=True
    )
    for rows in (3, 7):
        x = seeded(rows, 5)
        expected = ops.linear(x, factors, path=path)
        torch.testing.assert_close(run(x, factors), expected, rtol=1e-12, atol=1e-12)


def test_wrong_arguments_are_named() -> None:
    f = LowRank(torch.zeros(8, 2), torch.zeros(2, 4))
    x = torch.zeros(3, 4)
    with pytest.raises(ShapeError, match=r"\(3, 5\).*in_features = 4"):
        ops.linear(torch.zeros(3, 5), f)
    with pytest.raises(ShapeError, match="in_features = 4"):
        ops.linear(torch.zeros(()), f)
    with pytest.raises(ShapeError, match=r"bias has shape \(4,\).*\(8,\)"):
        ops.linear(x, f, torch.zeros(4))
    with pytest.raises(ArgumentError, match=r"bias is torch\.float64"):
        ops.linear(x, f, torch.zeros(8, dtype=torch.float64))
    with pytest.raises(ArgumentError, match=r"x has dtype torch\.float64.*\.to\(\)"):
        ops.linear(x.double(), f)
    with pytest.raises(ArgumentError, match=r"x is on meta.*\.to\(\)"):
        ops.linear(x.to("meta"), f)
    with pytest.raises(ArgumentError, match="path='fold' is unknown; choose one of dense, chain"):
        ops.linear(x, f, path="fold")
    with pytest.raises(ShapeError, match=r"\(out_features, in_features\)"):
        ops.linear(x, CPFactors(torch.ones(1), (torch.ones(2, 1),) * 3))
    with pytest.raises(UnsupportedError, match="Tensor"):
        ops.linear(x, torch.zeros(8, 4))
