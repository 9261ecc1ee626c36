"""Making the lines of a report, of what was found, planned and done."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tensorlrf.compression._survey import Surveyed, kind_of, own_numbers
from tensorlrf.compression.calibration._trace import Trace
from tensorlrf.compression.fit._factor import Factored
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.report._report import LayerReport, Totals
from tensorlrf.factors import Factors
from tensorlrf.factors.kinds import format_of
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import Positions, conv_cost, linear_cost
from tensorlrf.ops.geometry import resolve_padding


def row(
    found: Surveyed,
    plan: LayerPlan,
    done: Factored | None,
    new: nn.Module | None,
    trace: Trace | None,
    without_bias: bool,
) -> LayerReport:
    """The line of the report for a module: factored, or as it was; and whether that was
    `without_bias`."""
    params, size = own_numbers(found.module)
    kind = kind_of(found.module)
    if plan.eligible:
        weight = found.module.weight
        assert isinstance(weight, Tensor)
        params, size = weight.numel(), weight.numel() * weight.element_size()
    if done is None:
        return LayerReport(
            found.name, found.places, kind, plan.eligible, None, None, plan.reason,
            params, params, size, size,
        )  # fmt: skip
    assert isinstance(new, FactoredLayer)
    flops, path = _execution(found, done.factors, new, trace)
    held = done.held_error is not None
    return LayerReport(
        name=found.name,
        places=found.places,
        kind=kind,
        eligible=True,
        format=format_of(new.factors),
        rank=new.factors.rank,
        reason="",
        params_before=params,
        params_after=done.factors.n_params,
        bytes_before=size,
        bytes_after=done.factors.n_bytes,
        flops_before=None if flops is None else flops[0],
        flops_after=None if flops is None else flops[1],
        weight_error=done.weight_error,
        output_error=done.held_error if held else done.fit_error,
        held_out=held,
        samples=done.samples,
        data_aware=done.data_aware,
        bias="" if done.shift is None else "added" if without_bias else "corrected",
        path=path,
        shrinkage=done.shrinkage,
    )


def _execution(
    found: Surveyed, factors: Factors, new: Any, trace: Trace | None
) -> tuple[tuple[int, int] | None, str]:
    """((FLOPs before, after), path) on the inputs of the trace; without them the paths alone."""
    inputs = [] if trace is None else trace.inputs.get(found.name, [])
    if not inputs:
        return None, ", ".join(new.path_table.paths)
    before = after = 0
    paths: dict[str, None] = {}
    for shape in inputs:
        if len(factors.shape) == 2:
            rows = math.prod(shape[:-1])
            path = new.path_table.lookup(rows)
            dense = linear_cost(factors, "dense", rows, rebuild=False)
            cost = linear_cost(factors, path, rows)
        else:
            axes = len(new.kernel_size)
            batch, size = shape[0] if len(shape) == axes + 2 else 1, shape[-axes:]
            positions = _positions(batch, size, new)
            path = new.path_table.lookup(positions.output)
            dense = conv_cost(factors, "dense", positions, rebuild=False)
            cost = conv_cost(factors, path, positions)
        before, after = before + dense.flops, after + cost.flops
        paths[path] = None
    return (before, after), ", ".join(paths)


def _positions(batch: int, size: tuple[int, ...], layer: Any) -> Positions:
    """Where a convolution is evaluated. What is not padded by zeros, alike on both sides, is padded
    before: then all of the larger input is met."""
    zeros = resolve_padding(layer.padding, layer.kernel_size, layer.stride, layer.dilation)
    padding: Any = layer.padding
    if layer.padding_mode != "zeros" or any(zeros.excess):
        size = tuple(n + more for n, more in zip(size, zeros.total, strict=True))
        padding = 0
    return Positions.of((batch, *size), layer.kernel_size, layer.stride, padding, layer.dilation)


def totals(before: nn.Module, after: nn.Module) -> Totals:
    """Parameters and bytes of two models."""
    params, size = _numbers(before)
    params_after, size_after = _numbers(after)
    return Totals(params, params_after, size, size_after)


def _numbers(model: nn.Module) -> tuple[int, int]:
    own = [p for p in model.parameters() if not is_lazy(p)]
    return sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)
