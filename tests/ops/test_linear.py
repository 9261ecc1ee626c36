"""ops.linear by every path against the dense layer, and what it costs."""

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
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import BlockLowRank, CPFactors, Factors, LowRank
from tests.draws import seeded
from tests.ops.samples import (
    LINEAR_FORMATS,
    STRUCTURED_FORMATS,
    assert_rounding,
    random_factors,
    structured,
)


@pytest.mark.parametrize("formats", [LINEAR_FORMATS, STRUCTURED_FORMATS], ids=["two", "structured"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_path_is_the_dense_layer_and_costs_what_is_counted(
    formats: tuple[str, ...], data: st.DataObject
) -> None:
    draw = data.draw
    format, rank = draw(st.sampled_from(formats)), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    if formats is LINEAR_FORMATS:
        sizes = draw(st.tuples(*[st.integers(1, 9)] * 2))
        factors = random_factors(format, sizes, rank, dtype=dtype)
    else:
        sizes = draw(st.tuples(*[st.integers(1, 4)] * 4))
        factors = structured(format, sizes, rank, dtype)
    m, n = factors.shape
    lead = draw(st.lists(st.integers(0, 3), max_size=3))
    x = seeded(*lead, n, seed=20, dtype=dtype)
    bias = seeded(m, seed=21, dtype=dtype) if draw(st.booleans()) else None
    assert_rounding(ops.linear(x, factors, bias), factors, x, bias, F.linear)
    rows = x.shape[:-1].numel()
    # einsum multiplies where it has nothing to sum, which torch does not count.
    counted = formats is LINEAR_FORMATS or min(*sizes, rank, rows) > 1
    for path in ops.linear_paths(factors):
        with FlopCounterMode(display=False) as counter:
            y = ops.linear(x, factors, bias, path=path)
        assert_rounding(y, factors, x, bias, F.linear)
        if counted:
            assert ops.linear_cost(factors, path, rows).flops == counter.get_total_flops()


def test_costs_of_a_low_rank_layer_by_hand() -> None:
    f = LowRank(torch.zeros(8, 2), torch.zeros(2, 4))
    chain, dense = ops.linear_cost(f, "chain", 3), ops.linear_cost(f, "dense", 3)
    assert chain.flops == 2 * 3 * (4 * 2 + 2 * 8)
    assert chain.bytes == 4 * ((3 * 4 + 4 * 2 + 3 * 2) + (3 * 2 + 2 * 8 + 3 * 8))
    assert (chain.launches, dense.launches) == (2, 2)
    assert ops.linear_cost(f, "dense", 3, rebuild=False).flops == 2 * 3 * 4 * 8


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


def test_compiles_whole_with_factors_as_arguments() -> None:
    torch._dynamo.reset()
    some = [random_factors(format, (6, 5)) for format in ("lowrank", "cp", "tucker2")]

    def run(x: Tensor, factors: list[Any]) -> list[Tensor]:
        return [ops.linear(x, f, path=path) for f in factors for path in (None, "chain")]

    compiled = torch.compile(run, fullgraph=True, backend="eager", dynamic=True)
    for rows in (3, 7):
        x = seeded(rows, 5)
        for ours, eager in zip(compiled(x, some), run(x, some), strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-12, atol=1e-12)


def test_paths_follow_the_format() -> None:
    def paths(format: str) -> tuple[str, ...]:
        return ops.linear_paths(structured(format, (2, 3, 2, 4), 2))

    assert paths("kron") == paths("monarch") == paths("blast") == ("dense", "chain")
    assert paths("tt") == paths("tr") == paths("grid") == ("dense", "chain", "fold")
    assert paths("ragged") == paths("tree") == ("dense", "chain")


def test_blocks_without_rank_give_zeros() -> None:
    zero = BlockLowRank.pack([(0, 0, (torch.zeros(3, 0), torch.zeros(0, 2)))], (3, 2))
    for path in ops.linear_paths(zero):
        y = ops.linear(torch.ones(4, 2), zero, torch.arange(3.0), path=path)
        torch.testing.assert_close(y, torch.arange(3.0).expand(4, 3))


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
