"""The kernels of kron_linear in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorlrf_kernels import kron_linear as op
from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.kron_linear import fused
from tensorlrf_kernels.kron_linear.launch import KronProblem, backward, forward, holds, neighbours
from tensorlrf_kernels.launches import LaunchConfig
from tests.kernels.drawn.kron import (
    NAMES,
    KronOperands,
    backward_bounds,
    draw_kron,
    exact,
    forward_bound,
    gradients,
)
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within
from tests.kernels.interpreted.running import CHIP, DTYPES, run

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]

SIZES = st.sampled_from([16, 17, 24, 33])
CASES = {
    "M": st.integers(1, 4),
    "one": st.tuples(SIZES, SIZES),
    "other": st.tuples(SIZES, SIZES),
    "s": st.integers(1, 2),
    "dtype": st.sampled_from(DTYPES),
    "terms": st.booleans(),
    "activation": st.sampled_from([None, *ACTIVATIONS]),
    "layout": st.sampled_from(sorted(LAYOUTS)),
    "swap": st.sampled_from([0, 1]),
    "tile": st.sampled_from([16, 32]),
}


def plan(o: KronOperands, swap: int, tile: int, hold: int) -> LaunchConfig:
    """The heuristic's launch with other tiles, and fewer programs than there are rows."""
    problem = fused.problem_of(len(o.x), o.a, o.b)
    config = forward(problem, CHIP)
    assert config is not None
    blocks = {**config.blocks, "SWAP": swap, "HOLD": hold, "BM1": tile, "BM2": 32}
    blocks |= {"BK1": 64, "BK2": 64} if hold else {"BK1": 16, "BK2": tile}
    assert holds(blocks, problem)
    return replace(config, blocks=blocks, programs=4)


def plan_gradient(o: KronOperands, of: str, swap: int, tile: int) -> LaunchConfig:
    problem = fused.problem_of(len(o.x), o.a, o.b)
    config = backward(problem if of == "a" else problem.swapped, CHIP)
    assert config is not None
    deep = 64 if tile == 32 else 32  # held, or beyond 32 in several steps
    blocks = {"BM": tile, "BN": 32, "BK": deep, "BL": deep, "CHUNK": 2, "SWAP": swap}
    assert set(blocks) == set(config.blocks)
    return replace(config, blocks=blocks)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(hold=st.sampled_from([0, 1]), **CASES)
@example(
    M=3, one=(40, 17), other=(33, 24), s=3, dtype=torch.float16, terms=True, activation="gelu",
    layout="columns", swap=1, tile=16, hold=1,
)  # fmt: skip
@example(
    M=3, one=(40, 17), other=(33, 24), s=3, dtype=torch.float32, terms=True, activation=None,
    layout="gaps", swap=0, tile=16, hold=0,
)  # fmt: skip
def test_forward(  # type: ignore[no-untyped-def]
    M, one, other, s, dtype, terms, activation, layout, swap, tile, hold
) -> None:
    o = draw_kron(M, one, other, s, dtype, terms=terms, layout=LAYOUTS[layout])
    call, y = fused.forward_call(
        plan(o, swap, tile, hold), o.x, o.a, o.b, o.bias, o.residual, activation
    )
    y.fill_(math.nan)
    run([call])
    assert_within(y, exact(o, activation), forward_bound(o, activation), "y")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(needed=st.lists(st.booleans(), min_size=5, max_size=5), **CASES)
@example(
    M=3, one=(33, 17), other=(17, 24), s=2, dtype=torch.float16, terms=True, activation="silu",
    layout="columns", swap=1, tile=16, needed=[True] * 5,
)  # fmt: skip
@example(
    M=3, one=(24, 32), other=(17, 40), s=2, dtype=torch.float32, terms=True, activation=None,
    layout="gaps", swap=0, tile=32, needed=[False, True, True, False, True],
)  # fmt: skip
def test_backward(  # type: ignore[no-untyped-def]
    M, one, other, s, dtype, terms, activation, layout, swap, tile, needed
) -> None:
    o = draw_kron(M, one, other, s, dtype, terms=terms, layout=LAYOUTS[layout])
    needed = [need and t is not None for need, t in zip(needed, o.each(), strict=True)]
    dy = draw_kron(M, one, other, s, dtype, layout=LAYOUTS[layout], seed=1).residual
    assert dy is not None
    turned = KronOperands(dy, o.a.transpose(1, 2), o.b.transpose(1, 2))
    configs = [
        plan(o, swap, tile, int(tile == 32)),
        plan(turned, 1 - swap, tile, 0),
        plan_gradient(o, "a", swap, tile),
        plan_gradient(o, "b", swap, tile),
    ]
    calls, made = fused.backward_calls(
        configs, dy, o.x, o.a, o.b, o.bias, o.residual, activation, needed
    )
    for tensor in made.values():
        if tensor is not dy:
            tensor.fill_(math.nan)
    if calls:
        run(calls)
    found = fused.collect(made, needed)
    assert [g is not None for g in found] == needed
    expected, bounds = gradients(o, dy, activation), backward_bounds(o, dy, activation)
    for name, g in zip(NAMES, found, strict=True):
        if g is not None:
            assert g.dtype == dtype
            assert_within(g, expected[name], bounds[name], f"gradient in {name}")


# Frobenius-relative, as the benchmarks demand it. The bounds above hold in the worst case, and
# would miss a slope that is off by a thousandth.
IN_NORM = {torch.float32: 2e-6, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_close_in_norm(activation: str | None, dtype: torch.dtype) -> None:
    """The launches that the heuristic chooses, forward and backward."""
    o = draw_kron(3, (32, 24), (16, 17), 2, dtype)
    problem = fused.problem_of(3, o.a, o.b)
    asked = ((forward, problem), (forward, problem.turned))
    asked += ((backward, problem), (backward, problem.swapped))
    configs = [choose(one, CHIP) for choose, one in asked]
    call, y = fused.forward_call(configs[0], o.x, o.a, o.b, o.bias, o.residual, activation)
    y.fill_(math.nan)
    run([call])
    expected = exact(o, activation)
    assert float((y.double() - expected).norm() / expected.norm()) < IN_NORM[dtype]
    if activation in ("relu", "silu"):
        return  # the slope of the one jumps, and of three that do not two are enough
    dy = draw_kron(3, (32, 24), (16, 17), 2, dtype, seed=1).residual
    assert dy is not None
    calls, made = fused.backward_calls(
        configs, dy, o.x, o.a, o.b, o.bias, o.residual, activation, [True] * 5
    )
    run(calls)
    exact_gradients = gradients(o, dy, activation)
    for name, g in zip(NAMES, fused.collect(made, [True] * 5), strict=True):
        assert g is not None
        right = exact_gradients[name]
        assert float((g.double() - right).norm() / right.norm()) < IN_NORM[dtype], name


def test_float16_holds_an_intermediate_beyond_its_range() -> None:
    o = draw_kron(3, (32, 24), (16, 40), 2, torch.float16, terms=False)
    o.x *= 300
    o.a *= 300
    o.b *= 2.0**-14
    t = torch.einsum("sik,rkl->rsil", o.a.double(), o.x.double().view(3, 24, 40))
    assert t.abs().max() > torch.finfo(torch.float16).max
    for swap, hold in ((0, 0), (0, 1)):
        call, y = fused.forward_call(plan(o, swap, 32, hold), o.x, o.a, o.b)
        run([call])
        assert_within(y, exact(o, None), forward_bound(o, None), "y")


@pytest.mark.parametrize("activation", [None, "silu"])
def test_the_op_as_a_gpu_runs_it(activation: str | None) -> None:
    """Leading dimensions, launches by heuristic, gradients in the operands' shapes."""
    o = draw_kron(4, (17, 24), (16, 20), 2, torch.float32)
    lead = o.map(lambda t: t.view(2, 2, -1) if t.ndim == 2 else t)
    y = op._forward_cuda(*lead.each(), activation)
    assert y.shape == (2, 2, 272)
    assert_within(y.view(4, -1), exact(o, activation), forward_bound(o, activation), "y")
    dy = draw_kron(4, (17, 24), (16, 20), 2, torch.float32, seed=1).residual
    assert dy is not None
    expected, bounds = gradients(o, dy, activation), backward_bounds(o, dy, activation)
    for needed in ([True] * 5, [False, False, False, True, False]):
        found = op._backward_cuda(dy.view(2, 2, -1), *lead.each(), activation, needed)
        for name, t, g, need in zip(NAMES, lead.each(), found, needed, strict=True):
            assert g.shape == (t.shape if need else (0,))
            if need:
                got = g.view(expected[name].shape)
                assert_within(got, expected[name], bounds[name], f"gradient in {name}")


@pytest.mark.slow
def test_offsets_beyond_31_bits() -> None:
    """Rows of x, and terms of a, more than 2^31 elements apart; 4 GiB are mapped."""
    o = draw_kron(2, (16, 24), (17, 16), 2, torch.float16)
    far = torch.empty(2**31 + 2000, dtype=torch.float16)
    x, a = far.as_strided((2, 384), (2**31, 1)), far[1000:].as_strided((2, 16, 24), (2**31, 24, 1))
    x.copy_(o.x)
    a.copy_(o.a)
    o = replace(o, x=x, a=a)
    for hold in (0, 1):
        call, y = fused.forward_call(plan(o, 0, 16, hold), o.x, o.a, o.b, o.bias, o.residual)
        y.fill_(math.nan)
        run([call])
        assert_within(y, exact(o, None), forward_bound(o, None), "y")


@pytest.mark.parametrize(
    "change",
    [{"m1": 15}, {"n2": 129}, {"terms": 17}, {"terms": 0}, {"rows": 0}, {"dtype": torch.float64}],
    ids=str,
)
def test_what_no_kernel_serves(change: dict[str, object]) -> None:
    problem = KronProblem(8, 16, 128, 64, 33, 16, torch.float16)
    assert forward(problem, CHIP) is not None
    assert backward(problem, CHIP) is not None
    assert forward(problem._replace(**change), CHIP) is None  # type: ignore[arg-type]  # by name
    assert backward(problem._replace(**change), CHIP) is None  # type: ignore[arg-type]  # by name


def test_neighbours_differ_in_one_size_and_never_split_what_is_held() -> None:
    for rows, sizes in ((1, (64, 64, 64, 64)), (8192, (112, 64, 128, 33))):
        problem = KronProblem(rows, *sizes, 2, torch.bfloat16)
        for choose in (forward, backward):
            config = choose(problem, CHIP)
            assert config is not None
            around = list(neighbours(config, problem, CHIP))
            assert len(around) >= 8
            for other in around:
                changed = {k for k in config.blocks if config.blocks[k] != other.blocks[k]}
                options = ("num_warps", "num_stages", "programs", "registers")
                named = [k for k in options if getattr(config, k) != getattr(other, k)]
                assert len(changed) + len(named) == 1
                assert holds(other.blocks, problem)
