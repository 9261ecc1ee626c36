"""What was won and what was lost, as a value."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tensorlrf.compression._json import read_dataclass
from tensorlrf.compression._survey import Found, kind_of, own_numbers
from tensorlrf.errors import FileFormatError
from tensorlrf.factors import Factors, Grouped
from tensorlrf.nn import FactoredLayer
from tensorlrf.ops import Positions, linear_cost
from tensorlrf.ops._cost import conv_cost

if TYPE_CHECKING:
    from rich.console import Group

    from tensorlrf.compression._factor import Factored
    from tensorlrf.compression._plan import LayerPlan
    from tensorlrf.compression.calibration._calibrate import Trace

FORMAT_VERSION = 2


@dataclass(frozen=True)
class LayerReport:
    """One module that owns parameters.

    name, places   qualified names: the first one, and all
    kind           its type before
    eligible       whether it could be factored; only such layers count in `keep_params`
    format, rank   of its factors; None where it stays as it is
    reason         why it stays; empty where it is factored
    params_*       of the weight for an eligible layer (the bias stays), else all of its own
    bytes_*        of the same
    flops_*        2 x multiply-adds in one pass over the first calibration batch; None where that
                   did not reach it
    weight_error   relative Frobenius error of the factors as stored
    output_error   relative error of the outputs without bias, root mean square, against the target
                   of the fit: on the inputs held out where there are any, else on those fitted to
    held_out       whether it is on inputs held out
    samples        input rows (for a conv: patches) that the fit is made of
    data_aware     whether the factors were fitted to the inputs
    shrinkage      then, how far the second moments of these were drawn towards their mean
                   eigenvalue, 0 to 1; the less the more samples there are
    bias           "corrected" or "added" where the affine form gave it something; else empty
    path           how it is executed, at the rows of the first calibration batch where known
    """

    name: str
    places: tuple[str, ...]
    kind: str
    eligible: bool
    format: str | None
    rank: int | tuple[int, ...] | None
    reason: str
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    flops_before: int | None = None
    flops_after: int | None = None
    weight_error: float | None = None
    output_error: float | None = None
    held_out: bool = False
    samples: int | None = None
    data_aware: bool = False
    bias: str = ""
    path: str | None = None
    shrinkage: float | None = field(default=None, metadata={"later": True})

    @property
    def factored(self) -> bool:
        return self.format is not None

    @property
    def share(self) -> float:
        """Parameters kept."""
        return self.params_after / self.params_before if self.params_before else 1.0


@dataclass(frozen=True)
class Totals:
    """Sums over layers."""

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int

    @property
    def share(self) -> float:
        """Parameters kept."""
        return self.params_after / self.params_before if self.params_before else 1.0


@dataclass(frozen=True)
class BatchNorms:
    """New statistics of batch normalisations, tried.

    count          how many there are
    kept           whether the new statistics stayed
    error_before   relative error of the model's outputs on the held-out batches with the old ones
    error_after    with the new ones
    """

    count: int
    kept: bool
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Latency:
    """Median seconds of a forward pass on the example, measured in turn."""

    dense: float
    compressed: float


@dataclass(frozen=True)
class Report:
    """The result of `compress` beside the model.

    keep_params, error   the budget that was asked for
    target        as given; None without calibration
    affine        as given
    batches       calibration batches fitted to, 0 without calibration
    held_out      further batches that serve to judge
    layers        every module that owns parameters, once, in the order of the model
    model         the whole model's parameters and their bytes, shared ones counted once
    model_error   relative error of the model's outputs on the held-out batches, root mean square
    batch_norms   what became of batch normalisations, where new statistics were tried
    latency       where an example was given

    Prints itself as a table; `to_markdown()`; `to_json()` and `from_json()`; `plot(path)`.
    """

    keep_params: float | None
    error: float | None
    target: str | None
    affine: bool
    batches: int
    held_out: int
    layers: tuple[LayerReport, ...]
    model: Totals
    model_error: float | None = None
    batch_norms: BatchNorms | None = None
    latency: Latency | None = None

    @property
    def eligible(self) -> Totals:
        """Over the eligible layers' weights, also those that stayed dense for want of a rank."""
        rows = [row for row in self.layers if row.eligible]
        return Totals(
            sum(row.params_before for row in rows),
            sum(row.params_after for row in rows),
            sum(row.bytes_before for row in rows),
            sum(row.bytes_after for row in rows),
        )

    @property
    def flops(self) -> tuple[int, int] | None:
        """(before, after) over the factored layers; None unless all of them are known."""
        rows = [row for row in self.layers if row.factored]
        before = [row.flops_before for row in rows if row.flops_before is not None]
        after = [row.flops_after for row in rows if row.flops_after is not None]
        if not rows or len(before) < len(rows) or len(after) < len(rows):
            return None
        return sum(before), sum(after)

    def layer(self, name: str) -> LayerReport:
        """The row of a layer, by any of its names. Raises KeyError."""
        for row in self.layers:
            if name in row.places:
                return row
        raise KeyError(name)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps({"version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Inverse of `to_json`. Raises FileFormatError for anything else."""
        try:
            values = json.loads(text)
            version = values.pop("version")
            if version != FORMAT_VERSION:
                raise FileFormatError(
                    f"text is a report of format version {version}, this is {FORMAT_VERSION}; "
                    "update tensorlrf"
                )
            return read_dataclass(cls, values, "it")
        except FileFormatError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"text is no report: {type(error).__name__}: {error}") from None

    def to_markdown(self) -> str:
        """As Markdown: the factored layers, the totals, and what stays with its reason."""
        from tensorlrf.compression._render import markdown

        return markdown(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw parameters and errors of every layer to a picture; the suffix says of which kind.

        Raises UnsupportedError where matplotlib is missing, the extra `plot`.
        """
        from tensorlrf.compression._plot import plot_report

        plot_report(self, path)

    def __str__(self) -> str:
        from tensorlrf.compression._render import plain

        return plain(self)

    def __rich__(self) -> Group:
        from tensorlrf.compression._render import rich_view

        return rich_view(self)


def row(
    found: Found,
    plan: LayerPlan,
    done: Factored | None,
    new: nn.Module | None,
    trace: Trace | None,
    lent: bool,
) -> LayerReport:
    """The line of the report for a module: factored, or as it was. `lent`: it had no bias."""
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
        format=_format(new.factors),
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
        bias="" if done.shift is None else "added" if lent else "corrected",
        path=path,
        shrinkage=done.shrinkage,
    )


def _format(factors: Factors) -> str:
    return f"grouped {factors.of}" if isinstance(factors, Grouped) else factors.format


def _execution(
    found: Found, factors: Factors, new: Any, trace: Trace | None
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
            size = (shape[0] if len(shape) == axes + 2 else 1, *shape[-axes:])
            positions = Positions.of(size, new.kernel_size, new.stride, new.padding, new.dilation)
            path = new.path_table.lookup(positions.output)
            dense = conv_cost(factors, "dense", positions, rebuild=False)
            cost = conv_cost(factors, path, positions)
        before, after = before + dense.flops, after + cost.flops
        paths[path] = None
    return (before, after), ", ".join(paths)


def totals(before: nn.Module, after: nn.Module) -> Totals:
    """Parameters and bytes of two models."""
    params, size = _numbers(before)
    params_after, size_after = _numbers(after)
    return Totals(params, params_after, size, size_after)


def _numbers(model: nn.Module) -> tuple[int, int]:
    own = [p for p in model.parameters() if not is_lazy(p)]
    return sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)
