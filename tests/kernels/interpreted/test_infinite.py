"""An infinite input goes where the definition takes it: what only fills a tile up takes no part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.blr_linear import fused as blr
from tensorlrf_kernels.blr_linear import launch as blr_launch
from tensorlrf_kernels.cp_conv2d import fused as cp
from tensorlrf_kernels.cp_conv2d import launch as cp_launch
from tensorlrf_kernels.cp_conv2d import reference as cp_reference
from tensorlrf_kernels.geometry import Geometry, problem
from tensorlrf_kernels.kron_linear import fused as kron
from tensorlrf_kernels.kron_linear import launch as kron_launch
from tensorlrf_kernels.kron_linear import reference as kron_reference
from tensorlrf_kernels.launches import Call, Problem
from tensorlrf_kernels.lowrank_linear import fused as linear
from tensorlrf_kernels.lowrank_linear import launch as linear_launch
from tensorlrf_kernels.lowrank_linear import reference as linear_reference
from tensorlrf_kernels.lowrank_swiglu import fused as swiglu
from tensorlrf_kernels.lowrank_swiglu import launch as swiglu_launch
from tensorlrf_kernels.tucker_conv2d import fused as tucker
from tensorlrf_kernels.tucker_conv2d import launch as tucker_launch
from tensorlrf_kernels.tucker_conv2d import reference as tucker_reference
from tests.kernels.drawn import blr as blr_operands
from tests.kernels.drawn import kron as kron_operands
from tests.kernels.drawn import lowrank as operands
from tests.kernels.drawn import swiglu as swiglu_operands
from tests.kernels.drawn.conv import draw_conv
from tests.kernels.drawn.cp_conv import draw_cp
from tests.kernels.interpreted import running
from tests.kernels.interpreted.running import CHIP, DTYPES

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]

Made = tuple[list[Call], Tensor, Tensor]  # launches, what they fill, what the reference gives


def struck(x: Tensor, at: float) -> Tensor:
    """x with `at` in one place of its second row or image."""
    made = x.clone()
    made[(1,) * x.ndim] = at
    return made


def positive(t: Tensor) -> Tensor:
    """Sums of it and an infinity are infinite: nothing cancels."""
    return t.abs() + 0.01


def lowrank(rows: int, rank: int, dtype: torch.dtype, at: float) -> Made:
    o = operands.draw(rows, 40, 50, rank, dtype).map(positive)
    o = replace(o, x=struck(o.x, at))
    config = linear_launch.forward(linear.problem_of(o.x, o.right, o.left), CHIP)
    assert config is not None
    config = running.alone(config) if config.cooperative else config
    calls, y, _ = linear.forward_calls(config, o.x, o.right, o.left, o.bias, o.residual)
    return calls, y, linear_reference.lowrank_linear(*o.map(Tensor.double).each())  # type: ignore[arg-type]


def gated(rows: int, rank: int, dtype: torch.dtype, at: float) -> Made:
    o = swiglu_operands.draw(rows, 40, 50, rank, rank + 1, dtype).map(positive)
    o = replace(o, x=struck(o.x, at))
    config = swiglu_launch.forward(swiglu.problem_of(o.x, o.gate, o.up), CHIP)
    assert config is not None
    config = running.alone(config) if config.cooperative else config
    calls, y, _ = swiglu.forward_calls(config, o.x, o.gate, o.up)
    return calls, y, swiglu_operands.exact(o)


def tucker_conv(rows: int, rank: int, dtype: torch.dtype, at: float) -> Made:
    o = draw_conv(2, (5, 40), rank, (rows // 4, 4), (3, 3), Geometry(padding=(1, 1)), dtype)
    o = o.map(positive)
    o.x = struck(o.x, at)
    asked = problem(o.x, o.size, 40, 5, rank, tf32=False)
    config = tucker_launch.forward(asked, CHIP)
    assert config is not None
    calls, y = tucker.forward_calls(config, *o.each(), o.geometry, o.size)
    wide = o.map(Tensor.double)
    expected = tucker_reference.tucker_conv2d(
        wide.x, wide.core, wide.out_factor, None, wide.bias, *o.geometry
    )
    return calls, y, expected


def cp_conv(rows: int, rank: int, dtype: torch.dtype, at: float) -> Made:
    o = draw_cp(2, (5, 40), rank, (rows // 4, 4), (3, 3), Geometry(padding=(1, 1)), dtype)
    o = o.map(positive)
    o.x = struck(o.x, at)
    asked = problem(o.x, o.size, 40, 5, rank, tf32=False)
    config = cp_launch.forward(asked, replace(CHIP, multiprocessors=1))
    assert config is not None
    assert config.blocks["EXPAND"]
    calls, y = cp.forward_calls(config, o.x, o.factors, o.bias, o.geometry, o.size)
    wide = o.map(Tensor.double)
    return calls, y, cp_reference.cp_conv2d(wide.x, *wide.factors, wide.bias, *o.geometry)


def kronecker(rows: int, rank: int, dtype: torch.dtype, at: float) -> Made:
    o = kron_operands.draw_kron(rows // 8, (rank, rank + 1), (rank + 2, rank), 2, dtype)
    o = o.map(positive)
    o = replace(o, x=struck(o.x, at))
    config = kron_launch.forward(kron.problem_of(len(o.x), o.a, o.b), CHIP)
    assert config is not None
    call, y = kron.forward_call(config, o.x, o.a, o.b)
    wide = o.map(Tensor.double)
    return [call], y, kron_reference.kron_linear(wide.x, wide.a, wide.b)


def blocks(rows: int, rank: int, dtype: torch.dtype, at: float) -> Made:
    grid = blr_operands.grid([40, 24], [48, 32], lambda i, j: rank + i - j)
    o = blr_operands.draw_tiling(rows, grid, (64, 80)).map(lambda t: positive(t).to(dtype))
    o = replace(o, x=struck(o.x, at))
    config = blr_launch.forward(Problem(rows, 4096, 4096, o.form.rank, dtype), CHIP)
    assert config is not None
    config = running.alone(config) if config.cooperative else config
    calls, y = blr.forward_calls(config, o.form, o.x, o.panels, o.bias, None)
    return calls, y, o.map(Tensor.double).chain()


def lowrank_slope(rows: int, rank: int, dtype: torch.dtype, at: float) -> Made:
    o = operands.draw(rows, 40, 50, rank, dtype, terms=False).map(positive)
    dy = struck(positive(operands.draw(rows, 40, 1, 1, dtype, seed=1).x.expand(-1, 40)), at)
    config = linear_launch.backward(linear.problem_of(o.x, o.right, o.left), CHIP)
    assert config is not None
    t, needed = o.x @ o.right.T, [True, False, False, False, False]
    calls, made = linear.backward_calls(
        config, config, dy, o.x, t.float(), o.right, o.left, None, None, None, needed
    )
    return calls, made["dx"], dy.double() @ o.left.double() @ o.right.double()


def gated_slope(rows: int, rank: int, dtype: torch.dtype, at: float) -> Made:
    o = swiglu_operands.draw(rows, 40, 50, rank, rank + 1, dtype).map(positive)
    dh = struck(positive(operands.draw(rows, 40, 1, 1, dtype, seed=1).x.expand(-1, 40)), at)
    problem_ = swiglu.problem_of(o.x, o.gate, o.up)
    config = swiglu_launch.backward(problem_, CHIP)
    turned = linear_launch.backward(swiglu.turned_problem(problem_, 2 * rank + 1), CHIP)
    assert config is not None
    assert turned is not None
    t, needed = swiglu_operands.kept(o).float(), [True, *[False] * 6]
    calls, made = swiglu.backward_calls(config, turned, dh, o.x, t, o.gate, o.up, needed)
    return calls, made["dx"], swiglu_operands.gradients(o, dh)["x"]


MAKERS = [lowrank, gated, tucker_conv, cp_conv, kronecker, blocks, lowrank_slope, gated_slope]


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("rows", [16, 136])
@pytest.mark.parametrize("rank", [17, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_infinity_stays_one(
    make: Callable[..., Made], rows: int, rank: int, dtype: torch.dtype
) -> None:
    for at in (math.inf, math.nan):
        calls, y, expected = make(rows, rank, dtype, at)
        running.run(calls)
        assert not torch.isfinite(expected).all()
        assert torch.isfinite(expected).any()
        assert torch.equal(y.isposinf(), expected.isposinf())
        assert torch.equal(y.isnan(), expected.isnan())
