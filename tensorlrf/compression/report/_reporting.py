"""Making the lines of a report, of what was found, planned and done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tensorlrf.compression._survey import Surveyed, kind_of, own_numbers
from tensorlrf.compression._work import Work, work
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._trace import Trace
from tensorlrf.compression.fit._factored import Factored
from tensorlrf.compression.plan._plan import LayerPlan
from tensorlrf.compression.report._rows import LayerReport, Totals
from tensorlrf.factors.kinds import format_of
from tensorlrf.nn import FactoredLayer, Plain
from tensorlrf.nn.convolutions.baked import is_baked
from tensorlrf.ops import PathTable


def row(
    found: Surveyed,
    plan: LayerPlan,
    done: Factored | None,
    new: nn.Module | None,
    trace: Trace | None,
    without_bias: bool,
    tied: Mapping[str, nn.Module] = MappingProxyType({}),
    basis: str = "",
) -> LayerReport:
    """The line of the report for a module: factored, or as it was; and whether that was
    `without_bias`. What is `tied` to it runs on the same factors; the right one is perhaps that of
    the layer `basis`, where it counts."""
    params, size = own_numbers(found.module, found.table)
    baked = done is not None and is_baked(found.module)
    kind = kind_of(found.module) + ", its weight baked in" * baked
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
    flops, path = _execution(found, new, trace, tied)
    held = done.held_error is not None
    lent = list(done.factors.tensors().values())[-1]
    return LayerReport(
        name=found.name,
        places=found.places,
        kind=kind,
        eligible=True,
        format=format_of(new.factors),
        rank=new.factors.rank,
        reason="",
        params_before=params,
        params_after=done.factors.n_params - (lent.numel() if basis else 0),
        bytes_before=size,
        bytes_after=done.factors.n_bytes - (lent.nbytes if basis else 0),
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
        metric=_metric(found, done),
        moments=done.moments,
        basis=basis,
        gates=done.gates,
    )


def _metric(found: Surveyed, done: Factored) -> str | None:
    if not done.data_aware:
        return None
    return "outputs" if not done.weighted else "both" if found.tied else "loss"


def _execution(
    found: Surveyed, new: Any, trace: Trace | None, tied: Mapping[str, nn.Module]
) -> tuple[tuple[int, int] | None, str]:
    """((FLOPs before, after), path) on the inputs of the trace; without them the paths alone. What
    runs on the same factors counts as well."""
    inputs = [] if trace is None else trace.inputs.get(found.name, [])
    table: PathTable = new.path_table
    if not inputs:
        return None, ", ".join(table.paths)
    done = work(DenseLayer.of(found.module).plain, new.factors, inputs, table.lookup)
    dense, factored = done.dense, done.factored
    for name, layer in tied.items():
        more = _work_of(layer, [] if trace is None else trace.inputs.get(name, []))
        dense, factored = dense + more.dense, factored + more.factored
    return (dense, factored), ", ".join(done.paths)


def _work_of(layer: Any, inputs: Sequence[tuple[int, ...]]) -> Work:
    """Of a factored layer."""
    return work(Plain(layer.kind.__name__), layer.factors, inputs, layer.path_table.lookup)


def totals(before: nn.Module, after: nn.Module) -> Totals:
    """Parameters and bytes of two models."""
    params, size = _numbers(before)
    params_after, size_after = _numbers(after)
    return Totals(params, params_after, size, size_after)


def _numbers(model: nn.Module) -> tuple[int, int]:
    """Of parameters, and of the codes and places of factors, which are buffers; each once."""
    own = [p for p in model.parameters() if not is_lazy(p)]
    params, size = sum(p.numel() for p in own), sum(p.nbytes for p in own)
    seen: set[int] = set()
    for module in model.modules():
        if not isinstance(module, FactoredLayer):
            continue
        factors = module.factors
        held = list(factors.tensors().values())
        codes = [t for t in held if not t.is_floating_point()]
        if not codes or codes[0].data_ptr() in seen:  # tied layers hold the same ones
            continue
        seen.add(codes[0].data_ptr())
        # Not their numel: four bits are two codes in a byte.
        params += factors.n_params - sum(t.numel() for t in held if t.is_floating_point())
        size += sum(t.nbytes for t in codes)
    return params, size
