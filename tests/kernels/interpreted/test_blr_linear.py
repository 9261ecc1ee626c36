"""The kernels of blr_linear in Triton's interpreter, against float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf_kernels._activation import ACTIVATIONS
from tensorlrf_kernels.blr_linear import fused
from tensorlrf_kernels.blr_linear.launch import backward, forward
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, launch
from tests.kernels.drawn.blr import (
    NAMES,
    BlockOperands,
    Blocks,
    backward_bounds,
    draw_blast,
    draw_monarch,
    draw_tiling,
    exact,
    forward_bound,
    gradients,
    grid,
    tree,
)
from tests.kernels.drawn.lowrank import LAYOUTS, assert_within, far_apart
from tests.kernels.interpreted.running import CHIP, DTYPES, alone, apart

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("ieee_float32")]

CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=3)
RANKS = st.lists(st.one_of(st.none(), st.integers(0, 18)), min_size=9, max_size=9)
MADE = {"shrink": ("t",), "mix": ("u",), "panels": ("parts",), "decode": ("t", "y")}


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Blocks, tuple[int, int]]:
    """A ragged grid, an even one, whose tables say that numbers are multiples, or a tree."""
    kind = draw(st.sampled_from(["ragged", "even", "tree"]))
    if kind == "tree":
        m, n = draw(st.integers(1, 80)), draw(st.integers(1, 80))
        return tree(m, n, draw(st.integers(0, 3)), draw(st.integers(0, 20))), (m, n)
    if kind == "even":
        p, q, rank = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 32))
        rows, columns = [draw(st.sampled_from([16, 32]))] * p, [draw(st.sampled_from([16, 48]))] * q
        return grid(rows, columns, lambda i, j: rank), (sum(rows), sum(columns))
    rows, columns, ranks = draw(CUTS), draw(CUTS), draw(RANKS)
    return grid(rows, columns, lambda i, j: ranks[3 * i + j]), (sum(rows), sum(columns))


@st.composite
def operands(draw: st.DrawFn, rows: st.SearchStrategy[int]) -> BlockOperands:
    M, bias = draw(rows), draw(st.booleans())
    kind = draw(st.sampled_from(["tiling", "tiling", "monarch", "blast"]))
    if kind == "tiling":
        made = draw_tiling(M, *draw(tilings()), bias=bias)
    else:
        counts = draw(st.tuples(st.integers(1, 20), st.integers(1, 5)))
        shape = draw(st.tuples(st.integers(1, 90), st.integers(1, 60)))
        make = draw_monarch if kind == "monarch" else draw_blast
        made = make(M, counts, draw(st.integers(1, 9)), shape, bias=bias)
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    dtype = draw(st.sampled_from(DTYPES))
    made = made.map(lambda t: t.to(dtype))
    return replace(made, x=layout(made.x))


def plan(o: BlockOperands, direction: str = "forward", **blocks: int) -> LaunchConfig:
    """The launch for a matrix that is large enough; a chunk of rows is a tile, so that there are
    several."""
    problem = Problem(len(o.x), 4096, 4096, o.form.rank, o.x.dtype)
    config = (forward if direction == "forward" else backward)(problem, CHIP)
    assert config is not None
    if not config.cooperative:
        config = replace(config, blocks={**config.blocks, "BM": 64, "BR": 32, "BN": 32, **blocks})
    return config


def run(calls: Sequence[Call], keep: Sequence[Tensor] = ()) -> None:
    """Launch with NaN in everything that is yet to be written, but for what is to `keep`."""
    kept = {t.data_ptr() for t in keep}
    for call in calls:
        for name in MADE.get(call.config.kernel, ("y",)):
            if call.args[name].data_ptr() not in kept:
                call.args[name].fill_(math.nan)
    # The interpreter computes with numpy, which warns where IEEE arithmetic has an answer.
    with np.errstate(invalid="ignore", over="ignore"):
        if calls:
            launch(calls)
    for call in calls:
        if "counters" in call.args:
            assert not call.args["counters"].any()


def check_forward(config: LaunchConfig, o: BlockOperands, activation: str | None) -> None:
    calls, y = fused.forward_calls(config, o.form, o.x, o.panels, o.bias, activation)
    y.fill_(math.nan)
    run(calls)
    assert_within(y, exact(o, activation), forward_bound(o, activation), "y")


MIXED = [(0, 0, 20, 40, 17), (0, 40, 30, 10, None), (20, 0, 50, 20, 0), (20, 20, 50, 20, 20),
         (30, 40, 40, 10, 3)]  # fmt: skip
"""No two strips end together."""


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    o=operands(st.integers(1, 40)),
    activation=st.sampled_from([None, *ACTIVATIONS]),
    how=st.sampled_from([alone, apart]),
)
@example(o=draw_tiling(33, MIXED, (70, 50)).map(torch.Tensor.half), activation="gelu", how=alone)
def test_few_rows(o, activation, how) -> None:  # type: ignore[no-untyped-def]  # hypothesis's
    check_forward(how(plan(o)), o, activation)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(o=operands(st.integers(129, 150)), activation=st.sampled_from([None, *ACTIVATIONS]))
@example(o=draw_tiling(150, MIXED, (70, 50)).map(torch.Tensor.half), activation="gelu")
@example(o=draw_monarch(140, (20, 3), 2, (75, 50)).map(torch.Tensor.half), activation="silu")
@example(o=draw_blast(140, (5, 3), 70, (77, 50)).map(torch.Tensor.half), activation="silu")
def test_many_rows(o, activation) -> None:  # type: ignore[no-untyped-def]  # hypothesis's
    check_forward(plan(o), o, activation)


def test_chunks_of_rows_share_one_intermediate() -> None:
    o = draw_tiling(300, MIXED, (70, 50)).map(torch.Tensor.float)
    config = plan(o)
    slots = o.form.left.slots
    # A MiB holds 64 rows of so wide an intermediate; here it is as narrow as it comes.
    chunked = replace(config, blocks={**config.blocks, "MIB": 300 * slots * 4 / 2**20 / 4})
    calls, y = fused.forward_calls(chunked, o.form, o.x, o.panels, o.bias)
    assert len(calls) > 4
    assert len({call.args["t"].data_ptr() for call in calls}) == 1
    y.fill_(math.nan)
    with np.errstate(invalid="ignore"):
        launch(calls)
    assert_within(y, exact(o, None), forward_bound(o, None), "y")


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    o=operands(st.integers(1, 80)),
    activation=st.sampled_from([None, *ACTIVATIONS]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    needed=st.lists(st.booleans(), min_size=5, max_size=5),
)
@example(
    o=draw_tiling(150, MIXED, (70, 50)).map(torch.Tensor.half), activation="gelu",
    layout="rows", needed=[True] * 5,
)  # fmt: skip
@example(
    o=draw_monarch(200, (20, 3), 2, (75, 50)).map(torch.Tensor.float), activation=None,
    layout="gaps", needed=[True] * 5,
)  # fmt: skip
@example(
    o=draw_blast(150, (5, 3), 20, (77, 50)).map(torch.Tensor.half), activation="silu",
    layout="columns", needed=[True] * 5,
)  # fmt: skip
def test_backward(o, activation, layout, needed) -> None:  # type: ignore[no-untyped-def]  # hypothesis's
    check_backward(o, activation, layout, needed)


def check_backward(
    o: BlockOperands, activation: str | None, layout: str, needed: Sequence[bool]
) -> None:
    needed = [need and t is not None for need, t in zip(needed, o.tensors, strict=True)]
    dy = LAYOUTS[layout](torch.randn(len(o.x), o.form.shape[0], dtype=torch.float64).to(o.x.dtype))
    config = plan(o, "backward", BC=32, BP=32)
    calls, made = fused.backward_calls(
        config, o.form, dy, o.x, o.panels, o.bias, activation, needed
    )
    # Zeros stay where no panel comes to, of padded forms.
    run(calls, [] if o.text.startswith("blr") else list(made.parts.values()))
    found = fused.collect(o.form, made, o.panels, needed)
    assert [g is not None for g in found] == needed
    expected, bounds = gradients(o, dy, activation), backward_bounds(o, dy, activation)
    for name, g in zip(NAMES, found, strict=True):
        if g is not None:
            assert g.dtype == o.x.dtype
            assert_within(g, expected[name], bounds[name], f"gradient in {name}")


# Frobenius-relative, as the benchmarks demand it: the bounds above hold in the worst case, and
# would miss a small panel that is left out.
IN_NORM = {torch.float32: 2e-6, torch.float16: 1e-3}


@pytest.mark.parametrize(("M", "dtype"), [(20, torch.float32), (40, torch.float16)], ids=str)
def test_close_in_norm(M: int, dtype: torch.dtype) -> None:
    for o in (
        draw_tiling(M, MIXED, (70, 50)),
        draw_monarch(M, (20, 3), 2, (75, 50)),
        draw_blast(M, (5, 3), 20, (77, 50)),
    ):
        half = o.map(lambda t: t.to(dtype))
        calls, y = fused.forward_calls(apart(plan(half)), half.form, half.x, half.panels, half.bias)
        run(calls)
        expected = exact(half, None)
        assert float((y.double() - expected).norm() / expected.norm()) < IN_NORM[dtype]
        dy = torch.randn(M, o.form.shape[0]).to(dtype)
        needed = [True, True, True, o.third is not None, True]
        calls, made = fused.backward_calls(
            plan(half, "backward"), half.form, dy, half.x, half.panels, half.bias, None, needed
        )
        run(calls, list(made.parts.values()))
        grads = gradients(half, dy, None)
        found = fused.collect(half.form, made, half.panels, needed)
        for name, g in zip(NAMES, found, strict=True):
            if g is not None:
                off = (g.double() - grads[name]).norm() / grads[name].norm()
                assert float(off) < IN_NORM[dtype], name


@pytest.mark.parametrize("M", [20, 140])
def test_float16_holds_an_intermediate_beyond_its_range(M: int) -> None:
    for o in (draw_tiling(M, MIXED, (70, 50)), draw_blast(M, (5, 3), 20, (77, 50))):
        o.x *= 300
        o.right *= 300
        o.left *= 2.0**-14
        half = o.map(torch.Tensor.half)
        # The first panel of each.
        right = half.right[: 17 * 20].view(17, 20) if o.text.startswith("blr") else half.right[0]
        inner = half.x[:, : right.shape[1]].double() @ right.double().T
        assert inner.abs().max() > torch.finfo(torch.float16).max
        check_forward(apart(plan(half)), half, "silu")


def test_nothing_is_left_of_blocks_without_rank() -> None:
    o = draw_tiling(140, [(0, 0, 40, 50, 0)], (40, 50)).map(torch.Tensor.half)
    calls, y = fused.forward_calls(plan(o), o.form, o.x, o.panels, o.bias)
    run(calls)
    assert o.bias is not None
    torch.testing.assert_close(y, o.bias.expand_as(y), rtol=0, atol=0)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    o=operands(st.integers(1, 200)),
    activation=st.sampled_from([None, *ACTIVATIONS]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    needed=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_many_more(o, activation, layout, needed) -> None:  # type: ignore[no-untyped-def]  # hypothesis's
    check_forward(apart(plan(o)), o, activation)
    check_backward(o, activation, layout, needed)


@pytest.mark.slow
def test_offsets_beyond_31_bits() -> None:
    """Rows of x that lie more than 2^31 elements apart from the first; 4 GiB are mapped."""
    for M in (3, 130):
        o = draw_tiling(M, MIXED, (70, 50)).map(torch.Tensor.half)
        check_forward(apart(plan(o)), replace(o, x=far_apart(o.x)), "gelu")
