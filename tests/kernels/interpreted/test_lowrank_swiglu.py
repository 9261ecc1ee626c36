"""The kernels of lowrank_swiglu in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear.launch import backward as linear_backward
from tensorlrf_kernels.lowrank_swiglu import fused
from tensorlrf_kernels.lowrank_swiglu.launch import backward, forward
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within, far_apart
from tests.kernels.drawn.lowrank import draw as draw_linear
from tests.kernels.drawn.swiglu import (
    NAMES,
    GatedOperands,
    backward_bounds,
    draw,
    exact,
    forward_bound,
    gradients,
    kept,
    kept_bound,
)
from tests.kernels.interpreted.running import CHIP, DTYPES, alone, apart, run

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]

SIZES = st.integers(1, 80)
CASES = {
    "K": st.integers(1, 150),
    "N": SIZES,
    "G": st.integers(1, 40),
    "U": st.integers(1, 40),
    "dtype": st.sampled_from(DTYPES),
    "gate_bias": st.booleans(),
    "up_bias": st.booleans(),
    "layout": st.sampled_from(sorted(LAYOUTS)),
}
HALF = {"dtype": torch.float16, "gate_bias": True, "up_bias": False, "layout": "columns"}
FULL = {"dtype": torch.float32, "gate_bias": False, "up_bias": True, "layout": "gaps"}


def plan(
    o: GatedOperands, choose: Callable[[Problem, object], LaunchConfig | None]
) -> LaunchConfig:
    config = choose(fused.problem_of(o.x, o.gate, o.up), CHIP)
    assert config is not None
    return config


def check_forward(config: LaunchConfig, o: GatedOperands) -> None:
    calls, y, t = fused.forward_calls(config, o.x, o.gate, o.up, keep=True)
    assert t is not None
    t.fill_(math.nan)
    run(calls)
    assert_within(y, exact(o), forward_bound(o), "y")
    assert t.dtype == fused.kept_dtype(o.x.dtype)
    assert_within(t, kept(o), kept_bound(o), "t")


def run_backward(
    o: GatedOperands, dh: torch.Tensor, needed: list[bool], **blocks: int
) -> tuple[torch.Tensor | None, ...]:
    """The gradients from an exact t."""
    config = plan(o, backward)
    config = replace(config, blocks={**config.blocks, **blocks})
    problem = fused.problem_of(o.x, o.gate, o.up)
    turned = linear_backward(fused.turned_problem(problem, o.gate.rank + o.up.rank), CHIP)
    assert turned is not None
    t = kept(o).to(fused.kept_dtype(o.x.dtype))
    calls, made = fused.backward_calls(config, turned, dh, o.x, t, o.gate, o.up, needed)
    if calls:
        run(calls)
    return fused.collect(made, o.x.dtype, o.gate.rank, needed)


@settings(max_examples=20, deadline=None)
@given(M=st.integers(1, 40), how=st.sampled_from([alone, apart]), **CASES)
@example(M=1, K=1, N=1, G=1, U=1, **HALF, how=alone)
@example(M=33, K=129, N=65, G=300, U=17, **HALF, how=apart)
@example(M=16, K=64, N=64, G=16, U=100, **FULL, how=alone)
def test_decode(M, K, N, G, U, dtype, gate_bias, up_bias, layout, how) -> None:  # type: ignore[no-untyped-def]
    terms = {"gate_bias": gate_bias, "up_bias": up_bias}
    o = draw(M, N, K, G, U, dtype, **terms, layout=LAYOUTS[layout])
    check_forward(how(plan(o, forward)), o)


@settings(max_examples=20, deadline=None)
@given(M=st.integers(129, 200), split=st.sampled_from([1, 2, 4]), **CASES)
@example(M=129, K=1, N=1, G=1, U=1, **HALF, split=1)
@example(M=130, K=65, N=70, G=128, U=3, **FULL, split=2)
def test_prefill(M, K, N, G, U, dtype, gate_bias, up_bias, layout, split) -> None:  # type: ignore[no-untyped-def]
    terms = {"gate_bias": gate_bias, "up_bias": up_bias}
    o = draw(M, N, K, G, U, dtype, **terms, layout=LAYOUTS[layout])
    config = plan(o, forward)
    assert config.kernel == "prefill"
    check_forward(replace(config, blocks={**config.blocks, "BN": 32, "SPLIT": split}), o)


@settings(max_examples=20, deadline=None)
@given(
    M=st.integers(1, 200),
    chunk=st.sampled_from([64, 128]),
    needed=st.lists(st.booleans(), min_size=7, max_size=7),
    **CASES,
)
@example(M=200, K=70, N=80, G=33, U=64, **HALF, chunk=64, needed=[True] * 7)
@example(M=70, K=70, N=80, G=16, U=1, **FULL, chunk=64, needed=[False] * 5 + [True] * 2)
@example(M=70, K=70, N=80, G=2, U=30, **FULL, chunk=64, needed=[False] * 3 + [True] + [False] * 3)
def test_backward(M, K, N, G, U, dtype, gate_bias, up_bias, layout, chunk, needed) -> None:  # type: ignore[no-untyped-def]
    terms = {"gate_bias": gate_bias, "up_bias": up_bias}
    o = draw(M, N, K, G, U, dtype, **terms, layout=LAYOUTS[layout])
    needed = [need and t is not None for need, t in zip(needed, o.each(), strict=True)]
    dh = LAYOUTS[layout](draw_linear(M, N, 1, 1, dtype, seed=1).residual)
    found = run_backward(o, dh, needed, CHUNK=chunk)
    assert [g is not None for g in found] == needed
    expected, bounds = gradients(o, dh), backward_bounds(o, dh)
    for name, g in zip(NAMES, found, strict=True):
        if g is not None:
            assert g.dtype == dtype
            assert_within(g, expected[name], bounds[name], f"gradient in {name}")


@pytest.mark.parametrize("M", [20, 140])
def test_float16_holds_intermediates_beyond_its_range(M: int) -> None:
    o = draw(M, 40, 50, 30, 20, torch.float16)
    o.x *= 300
    for right, left, scale in ((o.gate_right, o.gate_left, 300), (o.up_right, o.up_left, 600)):
        right *= scale
        left *= 2.0**-14
    t = kept(o)
    largest = torch.finfo(torch.float16).max
    assert t[:, :30].abs().max() > largest
    assert t[:, 30:].abs().max() > largest
    check_forward(apart(plan(o, forward)), o)
    dh = draw_linear(M, 40, 1, 1, torch.float16, seed=1).residual
    assert dh is not None
    dh *= 2.0**-10  # so that most gradients in the lefts, which grow with t, are in range
    expected, bounds = gradients(o, dh), backward_bounds(o, dh)
    for name, g in zip(NAMES, run_backward(o, dh, [True] * 7), strict=True):
        assert g is not None
        safe = expected[name].abs() + bounds[name] < largest
        assert safe.double().mean() > 0.5, name
        assert_within(g[safe], expected[name][safe], bounds[name][safe], name)


@pytest.mark.slow
@pytest.mark.parametrize("M", [3, 130])
def test_offsets_beyond_31_bits(M: int) -> None:
    """Rows of x that lie more than 2^31 elements apart from the first; 4 GiB are mapped."""
    o = draw(M, 20, 40, 16, 9, torch.float16)
    check_forward(apart(plan(o, forward)), replace(o, x=far_apart(o.x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("M", [20, 140])
def test_close_in_norm(M: int, dtype: torch.dtype) -> None:
    """Frobenius-relative: the bounds above hold in the worst case, and would miss a slope that is
    off by a thousandth."""
    limit = 2e-6 if dtype is torch.float32 else 2e-3
    o = draw(M, 60, 50, 20, 30, dtype)
    calls, y, _ = fused.forward_calls(apart(plan(o, forward)), o.x, o.gate, o.up)
    run(calls)
    expected = exact(o)
    assert float((y.double() - expected).norm() / expected.norm()) < limit
    dh = draw(M, 60, 60, 1, 1, dtype, seed=5).x
    found = run_backward(o, dh, [True] * 7)
    for (name, right), g in zip(gradients(o, dh).items(), found, strict=True):
        assert g is not None
        assert float((g.double() - right).norm() / right.norm()) < limit, name
