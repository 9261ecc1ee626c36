"""Transposed convolutions told by `time_paths` and `explain`: what is timed is the layer, by every
path, and costs are those of what runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tensorlrf import ops
from tensorlrf.errors import ArgumentError
from tensorlrf.ops import _timing
from tensorlrf.ops.explain import explain, main
from tests.draws import seeded
from tests.nn.samples import inputs_first
from tests.ops.samples import CONV_FORMATS, random_factors, random_grouped
from tests.ops.test_conv_transpose import TORCH, geometries

LAYERS = [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2)]
"""Axes and groups."""


def timed_calls(*args: Any, **options: Any) -> dict[str, Callable[[], Tensor]]:
    """What `time_paths` would have run."""
    found: dict[str, Callable[[], Tensor]] = {}

    def keep(calls: Mapping[str, Callable[[], Tensor]], **_: Any) -> ops.Timings:
        found.update(calls)
        return ops.Timings(dict.fromkeys(calls, (1.0,)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_timing, "time_calls", keep)
        ops.time_paths(*args, **options)
    return found


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize(("axes", "groups"), LAYERS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data(), format=st.sampled_from(CONV_FORMATS))
def test_what_is_timed_is_the_layer_and_costs_what_is_counted(
    axes: int, groups: int, rebuild: bool, data: st.DataObject, format: str
) -> None:
    kernel = [data.draw(st.integers(1, 3)) for _ in range(axes)]
    factors = random_grouped(format, (groups * 4, 3, *kernel), groups, rank=2)
    options = data.draw(geometries(axes))
    size = (5, 4, 3)[:axes]
    x, bias = seeded(2, groups * 3, *size, seed=1), seeded(groups * 4, seed=2)
    if data.draw(st.booleans()):
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    dense = inputs_first(factors.to_dense(), groups)
    try:
        want = TORCH[axes](x, dense, bias, groups=groups, **options)
    except RuntimeError:  # nothing is left of it
        return
    if not want.numel():
        return
    calls = timed_calls(factors, x, bias, **options, transposed=True, rebuild=rebuild)
    assert tuple(calls) == ops.conv_paths(factors, transposed=True)
    where = ops.Positions.of_transposed((2, *size), tuple(kernel), **options)
    for path, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            y = call()
        # Sums of at most a hundred numbers near one, in float64.
        torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
        cost = ops.conv_cost(factors, path, where, rebuild=rebuild, transposed=True)
        assert cost.flops == counter.get_total_flops()


@pytest.mark.parametrize(("axes", "groups"), LAYERS)
def test_all_of_its_paths_are_timed(axes: int, groups: int) -> None:
    factors = random_grouped("cp", (4 * groups, 3, *(2, 3, 2)[:axes]), groups)
    x = seeded(1, 3 * groups, *(4, 3, 2)[:axes])
    timings = ops.time_paths(factors, x, stride=2, output_padding=1, transposed=True, seconds=1e-4)
    assert tuple(timings.samples) == ops.conv_paths(factors, transposed=True)
    assert all(t > 0 for samples in timings.samples.values() for t in samples)


@pytest.mark.parametrize("format", CONV_FORMATS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_it_is_explained_by_the_costs_of_the_layer(format: str, axes: int) -> None:
    """Where kernels do not overlap, rows tell the input: every position of it writes a kernel."""
    kernel = (2,) * axes
    factors = random_factors(format, (8, 6, *kernel), dtype=torch.float32)
    where = ops.Positions.of_transposed((4, *(3, 5, 2)[:axes]), kernel, stride=2)
    told = explain(factors, [where.output], stride=2, transposed=True)
    profile = ops.profile_of("cpu")
    for path, seconds in told.seconds[where.output].items():
        cost = ops.conv_cost(factors, path, where, transposed=True)
        assert seconds == profile.seconds(cost, torch.float32)
        assert told.floor[where.output] <= seconds
    assert tuple(told.seconds[where.output]) == ops.conv_paths(factors, transposed=True)
    table = ops.PathTable.from_cost(factors, stride=(2,) * axes, transposed=True)
    rows = [1, 64, 4096]
    chosen = explain(factors, rows, stride=2, transposed=True).chosen
    assert chosen == {n: table.lookup(n) for n in rows}


def test_a_stride_is_part_of_what_is_explained() -> None:
    factors = random_factors("lowrank", (8, 6, 3, 3), dtype=torch.float32)
    plain, strided = (explain(factors, [64], stride=s).seconds[64]["chain"] for s in (1, 2))
    assert plain == explain(factors, [64]).seconds[64]["chain"] < strided  # which reads more
    up = explain(factors, [64], stride=(2, 2), transposed=True)
    assert up.seconds[64]["chain"] < plain  # and this less
    assert "transposed, stride (2, 2)" in str(up)
    assert "transposed" not in str(explain(factors, [64]))


def test_the_command_explains_it(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["64x32x4x4", "--rank", "8", "--transposed", "--stride", "2", "--device"]
    assert main([*own, "cpu", "--rows", "64"]) == 0
    assert "transposed, stride (2, 2)" in capsys.readouterr().out
    assert main([*own, "H200"]) == 0
    assert "fused" not in capsys.readouterr().out  # there is no kernel for it


def test_options_that_fit_no_layer_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    matrix, kernel = random_factors("lowrank", (8, 4)), random_factors("lowrank", (8, 4, 3, 3))
    x, image = seeded(5, 4), seeded(1, 4, 6, 6)
    with pytest.raises(ArgumentError, match="transposed=True: factors stand for a matrix 8 x 4"):
        ops.time_paths(matrix, x, transposed=True)
    with pytest.raises(ArgumentError, match="stride=2: factors stand for a matrix"):
        ops.time_paths(matrix, x, stride=2)
    with pytest.raises(ArgumentError, match="output_padding=1: transposed convolutions alone"):
        ops.time_paths(kernel, image, output_padding=1)
    with pytest.raises(ArgumentError, match="output_padding=1 must be below the stride"):
        ops.time_paths(kernel, image, output_padding=1, transposed=True)
    with pytest.raises(ArgumentError, match="padding='same'"):
        ops.time_paths(kernel, image, padding="same", transposed=True)
    with pytest.raises(ArgumentError, match="transposed=True: factors stand for a matrix"):
        explain(matrix, transposed=True)
    with pytest.raises(ArgumentError, match="stride=0"):
        explain(kernel, stride=0, transposed=True)
    assert main(["8x4", "--rank", "2", "--stride", "2"]) == 2
    assert "stride=2: factors stand for a matrix" in capsys.readouterr().err
