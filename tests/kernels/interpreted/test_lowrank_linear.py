"""The kernels of lowrank_linear in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.launches import LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear import fused
from tensorlrf_kernels.lowrank_linear.launch import backward, forward
from tests.kernels.drawn.lowrank import (
    LAYOUTS,
    Operands,
    assert_within,
    backward_bounds,
    draw,
    exact,
    far_apart,
    forward_bound,
    gradients,
)
from tests.kernels.interpreted.running import CHIP, DTYPES, alone, apart, run

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]

SIZES = st.integers(1, 80)
CASES = {
    "K": st.integers(1, 150),
    "N": SIZES,
    "R": st.integers(1, 70),
    "dtype": st.sampled_from(DTYPES),
    "terms": st.booleans(),
    "activation": st.sampled_from([None, *ACTIVATIONS]),
    "layout": st.sampled_from(sorted(LAYOUTS)),
}


def plan(o: Operands, choose: Callable[[Problem, object], LaunchConfig | None]) -> LaunchConfig:
    config = choose(fused.problem_of(o.x, o.right, o.left), CHIP)
    assert config is not None
    return config


def check_forward(config: LaunchConfig, o: Operands, activation: str | None) -> None:
    calls, y, t = fused.forward_calls(
        config, o.x, o.right, o.left, o.bias, o.residual, activation, keep=True
    )
    assert t is not None
    t.fill_(math.nan)
    run(calls)
    assert_within(y, exact(o, activation), forward_bound(o, activation), "y")
    kept = Operands(o.x, o.right, torch.eye(o.right.shape[0], dtype=o.x.dtype))
    assert_within(t, exact(kept, None), forward_bound(kept, None), "t")


@settings(max_examples=25, deadline=None)
@given(M=st.integers(1, 40), how=st.sampled_from([alone, apart]), **CASES)
@example(
    M=1, K=1, N=1, R=1, dtype=torch.float16, terms=True, activation="gelu", layout="rows", how=alone
)
@example(
    M=33, K=129, N=65, R=300, dtype=torch.float16, terms=True, activation=None,
    layout="columns", how=apart,
)  # fmt: skip
def test_decode(M, K, N, R, dtype, terms, activation, layout, how) -> None:  # type: ignore[no-untyped-def]
    o = draw(M, N, K, R, dtype, terms=terms, layout=LAYOUTS[layout])
    check_forward(how(plan(o, forward)), o, activation)


@settings(max_examples=25, deadline=None)
@given(M=st.integers(129, 200), split=st.sampled_from([1, 2, 4]), **CASES)
@example(
    M=129, K=1, N=1, R=1, dtype=torch.float16, terms=True, activation="silu", layout="rows", split=1
)
@example(
    M=130, K=65, N=70, R=256, dtype=torch.float32, terms=True, activation=None, layout="gaps",
    split=2,
)  # fmt: skip
def test_prefill(M, K, N, R, dtype, terms, activation, layout, split) -> None:  # type: ignore[no-untyped-def]
    o = draw(M, N, K, R, dtype, terms=terms, layout=LAYOUTS[layout])
    config = plan(o, forward)
    assert config.kernel == "prefill"
    check_forward(
        replace(config, blocks={**config.blocks, "BN": 32, "SPLIT": split}), o, activation
    )


@settings(max_examples=25, deadline=None)
@given(
    M=st.integers(1, 200),
    chunk=st.sampled_from([64, 128]),
    needed=st.lists(st.booleans(), min_size=5, max_size=5),
    **CASES,
)
@example(
    M=200, K=70, N=80, R=33, dtype=torch.float16, terms=True, activation="gelu",
    layout="columns", chunk=64, needed=[True] * 5,
)  # fmt: skip
@example(
    M=70, K=70, N=80, R=16, dtype=torch.float32, terms=True, activation=None, layout="rows",
    chunk=64, needed=[False, False, False, True, True],
)  # fmt: skip
def test_backward(M, K, N, R, dtype, terms, activation, layout, chunk, needed) -> None:  # type: ignore[no-untyped-def]
    o = draw(M, N, K, R, dtype, terms=terms, layout=LAYOUTS[layout])
    needed = [need and t is not None for need, t in zip(needed, o.each(), strict=True)]
    dy = LAYOUTS[layout](draw(M, N, 1, 1, dtype, seed=1).residual)
    config = plan(o, backward)
    config = replace(config, blocks={**config.blocks, "CHUNK": chunk})
    t = (o.x.double() @ o.right.double().T).to(fused.kept_dtype(dtype))
    calls, made = fused.backward_calls(
        config, config, dy, o.x, t, o.right, o.left, o.bias, o.residual, activation, needed
    )
    if calls:
        run(calls)
    found = fused.collect(made, dy, needed)
    names = ("x", "right", "left", "bias", "residual")
    assert [g is not None for g in found] == needed
    expected, bounds = gradients(o, dy, activation), backward_bounds(o, dy, activation)
    for name, g in zip(names, found, strict=True):
        if g is not None:
            assert g.dtype == dtype
            assert_within(g, expected[name], bounds[name], f"gradient in {name}")


# Frobenius-relative, as the benchmarks demand it. The bounds above hold in the worst case, and
# would miss a slope that is off by a thousandth.
IN_NORM = {torch.float32: 2e-6, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("M", [20, 140])
def test_close_in_norm(M: int, activation: str | None, dtype: torch.dtype) -> None:
    o = draw(M, 60, 50, 20, dtype)
    calls, y, t = fused.forward_calls(
        apart(plan(o, forward)), o.x, o.right, o.left, o.bias, o.residual, activation, keep=True
    )
    run(calls)
    expected = exact(o, activation)
    assert float((y.double() - expected).norm() / expected.norm()) < IN_NORM[dtype]
    if activation == "relu":
        return  # its slope jumps: an entry on the other side of zero is off by all of itself
    dy = draw(M, 60, 1, 1, dtype, seed=1).residual
    assert dy is not None
    config, needed = plan(o, backward), [True] * 5
    calls, made = fused.backward_calls(
        config, config, dy, o.x, t, o.right, o.left, o.bias, o.residual, activation, needed
    )
    run(calls)
    for (name, right), g in zip(
        gradients(o, dy, activation).items(), fused.collect(made, dy, needed), strict=True
    ):
        assert g is not None
        assert float((g.double() - right).norm() / right.norm()) < IN_NORM[dtype], name


@pytest.mark.parametrize("M", [20, 140])
def test_float16_holds_an_intermediate_beyond_its_range(M: int) -> None:
    o = draw(M, 40, 50, 30, torch.float16)
    o.x *= 300
    o.right *= 300
    o.left *= 2.0**-14
    t = o.x.double() @ o.right.double().T
    assert t.abs().max() > torch.finfo(torch.float16).max
    check_forward(apart(plan(o, forward)), o, "silu")
    dy = draw(M, 40, 1, 1, torch.float16, seed=1).residual
    assert dy is not None
    config, needed = plan(o, backward), [True] * 5
    calls, made = fused.backward_calls(
        config, config, dy, o.x, t.float(), o.right, o.left, o.bias, o.residual, "silu", needed
    )
    run(calls)
    expected = gradients(o, dy, "silu")
    for name, g in zip(expected, fused.collect(made, dy, needed), strict=True):
        assert g is not None
        overflows = expected[name].abs() > 0.99 * torch.finfo(torch.float16).max
        assert bool((g.isfinite() | overflows).all()), name


def test_rows_of_zeros_give_the_bias() -> None:
    o = draw(140, 40, 50, 30, torch.float16)
    calls, y, _ = fused.forward_calls(
        plan(o, forward), torch.zeros_like(o.x), o.right, o.left, o.bias
    )
    run(calls)
    assert o.bias is not None
    torch.testing.assert_close(y, o.bias.expand_as(y), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("M", [3, 130])
def test_offsets_beyond_31_bits(M: int) -> None:
    """Rows of x that lie more than 2^31 elements apart from the first; 4 GiB are mapped."""
    o = draw(M, 20, 40, 16, torch.float16)
    x = far_apart(o.x)
    check_forward(apart(plan(o, forward)), replace(o, x=x), "gelu")
    if M == 3:
        across = x.as_strided((M, 40), (1, (2 * x.stride(0) + 40 - M) // 39)).copy_(o.x)
        check_forward(apart(plan(o, forward)), replace(o, x=across), "gelu")
