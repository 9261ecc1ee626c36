"""Linear layers on structured factors: every path against the dense layer, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf import ops
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import BlockLowRank, Factors
from tests.draws import seeded
from tests.ops.samples import STRUCTURED_FORMATS, assert_rounding, structured

sizes = st.tuples(*[st.integers(1, 4)] * 4)
above_one = st.tuples(*[st.integers(2, 4)] * 4)  # einsum multiplies where it has nothing to sum
formats = st.sampled_from(STRUCTURED_FORMATS)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    formats,
    sizes,
    st.integers(1, 4),
    st.lists(st.integers(0, 3), max_size=3),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_every_path_is_the_dense_layer(
    format: str,
    sizes: tuple[int, ...],
    rank: int,
    lead: list[int],
    with_bias: bool,
    dtype: torch.dtype,
) -> None:
    factors = structured(format, sizes, rank, dtype)
    m, n = factors.shape
    x = seeded(*lead, n, seed=20, dtype=dtype)
    bias = seeded(m, seed=21, dtype=dtype) if with_bias else None
    for path in (None, *ops.linear_paths(factors)):
        y = ops.linear(x, factors, bias, path=path)
        assert_rounding(y, factors, x, bias, F.linear)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(formats, above_one, st.integers(2, 4), st.integers(2, 5))
def test_counted_flops_are_those_of_torch(
    format: str, sizes: tuple[int, ...], rank: int, rows: int
) -> None:
    factors = structured(format, sizes, rank)
    x = seeded(rows, factors.shape[1])
    for path in ops.linear_paths(factors):
        with FlopCounterMode(display=False) as counter:
            ops.linear(x, factors, path=path)
        assert ops.linear_cost(factors, path, rows).flops == counter.get_total_flops()


class Runs(nn.Module):
    def __init__(self, factors: Factors, path: str) -> None:
        super().__init__()
        self.factors, self.path = factors, path

    def forward(self, x: Tensor) -> Tensor:
        return ops.run_linear(self.path, self.factors, x)


@pytest.mark.parametrize("format", STRUCTURED_FORMATS)
def test_a_run_can_be_traced(format: str) -> None:
    factors = structured(format, (2, 3, 2, 4), 2)
    for path in ops.linear_paths(factors):
        traced = fx.symbolic_trace(Runs(factors, path))
        for lead in ((), (3,), (2, 0, 3)):
            x = seeded(*lead, factors.shape[1])
            expected = ops.linear(x, factors, path=path)
            torch.testing.assert_close(traced(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("format", STRUCTURED_FORMATS)
def test_torch_func_differentiates_along_factors(format: str) -> None:
    """Factors that it has put together are asked for their paths, too."""
    factors = structured(format, (2, 3, 2, 4), 2)
    x, weights = seeded(3, factors.shape[1]), seeded(3, factors.shape[0], seed=7)

    def gradient(layer: Callable[[Any], Tensor]) -> Any:
        return torch.func.grad(lambda f: (layer(f) * weights).sum())(factors)

    expected = gradient(lambda f: x @ f.to_dense().T).tensors()
    for path in (None, *ops.linear_paths(factors)):
        found = gradient(partial(ops.linear, x, path=path)).tensors()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("format", STRUCTURED_FORMATS)
def test_compiles_whole(format: str) -> None:
    torch._dynamo.reset()
    factors = structured(format, (2, 3, 2, 4), 2)
    for path in ops.linear_paths(factors):
        run = torch.compile(Runs(factors, path), fullgraph=True, backend="eager", dynamic=True)
        for rows in (3, 7):
            x = seeded(rows, factors.shape[1])
            expected = ops.linear(x, factors, path=path)
            torch.testing.assert_close(run(x), expected, rtol=1e-12, atol=1e-12)


def test_paths_follow_the_format() -> None:
    def paths(format: str) -> tuple[str, ...]:
        return ops.linear_paths(structured(format, (2, 3, 2, 4), 2))

    assert paths("kron") == paths("monarch") == paths("blast") == ("dense", "chain")
    assert paths("tt") == paths("tr") == paths("grid") == ("dense", "chain", "fold")
    assert paths("ragged") == paths("tree") == ("dense", "chain")
    with pytest.raises(ArgumentError, match="path='fused' is unknown; choose one of dense, chain"):
        ops.linear(seeded(12), structured("kron", (2, 3, 2, 4), 2), path="fused")


def test_blocks_without_rank_give_zeros() -> None:
    zero = BlockLowRank.pack([(0, 0, (torch.zeros(3, 0), torch.zeros(0, 2)))], (3, 2))
    for path in ops.linear_paths(zero):
        y = ops.linear(torch.ones(4, 2), zero, torch.arange(3.0), path=path)
        torch.testing.assert_close(y, torch.arange(3.0).expand(4, 3))
