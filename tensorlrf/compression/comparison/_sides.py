"""What is known of the layers of a model, a file, a plan or a report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tensorlrf.compression._survey import kind_of, own_numbers
from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression.checkpoint._inspect import FileReport, inspect
from tensorlrf.compression.comparison._comparison import LayerSide
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.report._report import Report
from tensorlrf.errors import ArgumentError
from tensorlrf.nn import FactoredLayer

DENSE = "dense"


@dataclass(frozen=True)
class Side:
    """layers  by their names, in order
    params, bytes  of all, None where they are not known
    model   None of what is no model
    """

    layers: Mapping[str, LayerSide]
    params: int | None
    bytes: int | None
    model: nn.Module | None = None

    @classmethod
    def of(cls, value: Any, argument: str) -> Side:
        """Raises ArgumentError for what is none, and what `inspect` raises of a path."""
        if isinstance(value, nn.Module):
            return _of_model(own_model(value))
        if isinstance(value, (str, os.PathLike)):
            value = inspect(value)
        if isinstance(value, FileReport):
            return _of_file(value)
        if isinstance(value, Report):
            return _of_report(value)
        if isinstance(value, Plan):
            return _of_plan(value)
        raise ArgumentError(
            f"{argument} is a {type(value).__name__}; pass a model, the path of a file that save "
            "wrote, a Report or a Plan"
        )


def _of_model(model: nn.Module) -> Side:
    layers = {}
    for name, module in model.named_modules():
        params = own_numbers(module)[0]
        if not params:
            continue
        if isinstance(module, FactoredLayer):
            f = module.factors
            side = LayerSide(module.stands_for, f.format, f.rank, tuple(f.shape), params)
        else:
            weight = module._parameters.get("weight")
            shape = () if weight is None else tuple(weight.shape)
            side = LayerSide(kind_of(module), DENSE, None, shape, params)
        layers[name] = side
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    return Side(layers, sum(p.numel() for p in model.parameters()), size, model)


def _of_file(report: FileReport) -> Side:
    """Of which the factored layers alone are told."""
    layers = {
        row.name: LayerSide(
            row.stands_for or "?", row.format, row.rank, row.shape, row.params_after
        )
        for row in report.layers
    }
    return Side(layers, report.params_after, report.size)


def _of_report(report: Report) -> Side:
    layers = {
        row.name: LayerSide(row.kind, row.format or DENSE, row.rank, (), row.params_after)
        for row in report.layers
    }
    return Side(layers, report.model.params_after, report.model.bytes_after)


def _of_plan(plan: Plan) -> Side:
    layers = {
        row.name: LayerSide(
            row.kind, DENSE if row.method is None else row.method.word, _rank(row.rank), row.shape,
            row.params_after,
        )
        for row in plan.layers
    }  # fmt: skip
    params = [row.params_after for row in plan.layers]
    return Side(layers, None if None in params else sum(n or 0 for n in params), None)


def _rank(rank: Any) -> int | tuple[int, ...] | None:
    return rank if isinstance(rank, (int, tuple)) else None
