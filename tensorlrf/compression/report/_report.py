"""What was won and what was lost, as a value."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._words import (
    bytes_words,
    error_words,
    rank_words,
    short,
    staying,
)
from tensorlrf.compression.plan.allocation import Allotment
from tensorlrf.compression.plan.budget import BUDGETS, budget_words, cost_words
from tensorlrf.compression.refinement._refinement import Refinement
from tensorlrf.compression.report._json import check_version, parsed, read_as, read_dataclass
from tensorlrf.compression.report._memory import MemoryForecast
from tensorlrf.compression.report._plot import plot_layers
from tensorlrf.compression.report._quality import Quality
from tensorlrf.compression.report._rows import (
    BatchNorms,
    ExpertPool,
    FoldedNorms,
    GateChoice,
    Latency,
    LayerReport,
    SharedBasis,
    Totals,
)

if TYPE_CHECKING:
    from rich.console import Group

FORMAT_VERSION = 2

HEADER: Header = (
    ("layer", "left"),
    ("kind", "left"),
    ("format", "left"),
    ("rank", "right"),
    ("parameters", "right"),
    ("kept", "right"),
    ("FLOPs", "right"),
    ("weight error", "right"),
    ("output error", "right"),
    ("path", "left"),
)


@dataclass(frozen=True)
class Report:
    """The result of `compress` beside the model.

    Prints itself as a table; `to_markdown()`; `to_json()` and `from_json()`; `plot(path)`.

    Parameters
    ----------
    keep_params, error : float or None
        The budget that was asked for.
    target : str or None
        As given; None without calibration.
    affine : bool
        As given.
    batches : int
        Calibration batches fitted to, 0 without calibration.
    held_out : int
        Further batches that serve to judge.
    layers : tuple of LayerReport
        Every module that owns parameters, once, in the order of the model.
    model : Totals
        The whole model's parameters and their bytes, shared ones counted once.
    model_error : float or None
        Relative error of the model's outputs on the held-out batches, root mean square.
    batch_norms : BatchNorms or None
        What became of batch normalisations, where new statistics were tried.
    latency : Latency or None
        Where an example was given.
    keep_bytes, keep_flops, keep_latency, keep_total : float or None
        The budget that was asked for, where it is one of these.
    allotment : Allotment
        How the ranks came about, as in the plan.
    metric : str or None
        As given, or as "auto" has chosen; None without calibration.
    memory : MemoryForecast or None
        What calibration was to take of it, told before.
    refinement : Refinement or None
        How the model was refined, with `refine=`. Errors of layers are those before it.
    model_error_interval : tuple of float or None
        The 95% interval of `model_error`, by bootstrap over the samples held out, or over their
        groups where these were told.
    quality : Quality or None
        What a metric of the user's own says, where there is one.
    folded : FoldedNorms or None
        What became of batch normalisations, with `fold_batch_norms=True`.
    bases : tuple of SharedBasis
        Right factors that layers were to have in common, kept or not, with `shared=`.
    pools : tuple of ExpertPool
        Of mixtures of experts, what reached each.
    from_moments : bool
        Whether `batches` are those of moments that were given in their place.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> small, report = tensorlrf.compress(model, method=tensorlrf.SVD(rank=8))
    >>> row = report.layer("0")
    >>> row.format, row.rank, row.params_after
    ('lowrank', 8, 1024)
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
    keep_bytes: float | None = field(default=None, metadata={"later": True})
    keep_flops: float | None = field(default=None, metadata={"later": True})
    keep_latency: float | None = field(default=None, metadata={"later": True})
    keep_total: float | None = field(default=None, metadata={"later": True})
    allotment: Allotment = field(default_factory=Allotment, metadata={"later": True})
    metric: str | None = field(default=None, metadata={"later": True})
    memory: MemoryForecast | None = field(default=None, metadata={"later": True})
    refinement: Refinement | None = field(default=None, metadata={"later": True})
    model_error_interval: tuple[float, float] | None = field(default=None, metadata={"later": True})
    quality: Quality | None = field(default=None, metadata={"later": True})
    folded: FoldedNorms | None = field(default=None, metadata={"later": True})
    bases: tuple[SharedBasis, ...] = field(default=(), metadata={"later": True})
    pools: tuple[ExpertPool, ...] = field(default=(), metadata={"later": True})
    from_moments: bool = field(default=False, metadata={"later": True})

    @property
    def budgets(self) -> dict[str, float | None]:
        """What was asked for, by the arguments of `compress`."""
        return {word: getattr(self, word) for word in BUDGETS}

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
        with read_as("report"):
            values = parsed(text)
            check_version(values.pop("version"), FORMAT_VERSION, "report")
            made = read_dataclass(cls, values, "it")
            made._table()
        return made

    def to_markdown(self) -> str:
        """As Markdown: the factored layers, the totals, and what stays with its reason."""
        return self._table().to_markdown()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw parameters and errors of every layer to a picture.

        Parameters
        ----------
        path : str or path
            Its suffix says of which kind.

        Raises
        ------
        UnsupportedError
            Where matplotlib is missing, the extra `plot`.
        """
        rows = [row for row in self.layers if row.factored]
        plot_layers(
            path,
            [row.name for row in rows],
            [row.params_before for row in rows],
            [row.params_after for row in rows],
            [row.weight_error for row in rows],
            [row.output_error for row in rows],
        )

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        """The factored layers, the totals, and what stays."""
        rows = [_cells(row) for row in self.layers if row.factored]
        below = [_totals(self), staying(self.layers, "params_before")]
        return Table(_title(self), HEADER, rows, below)


def _title(report: Report) -> str:
    """The budget, what the whole model keeps, and what the fit is made of."""
    data = "no calibration"
    if report.batches:
        held = f" and {report.held_out} held out" if report.held_out else ""
        affine = ", affine" if report.affine else ""
        what = "batches in given moments" if report.from_moments else "calibration batches"
        data = f"{report.batches} {what}{held}, target {report.target}{affine}"
    kept = f"the whole model keeps {report.model.share:.1%}"
    kept = f"{kept}, its eligible weights {report.eligible.share:.1%}"
    return f"{budget_words(report.budgets)} ({kept}), {data}"


def _cells(row: LayerReport) -> list[str]:
    flops = "-"
    if row.flops_before is not None and row.flops_after is not None:
        flops = f"{short(row.flops_before)} to {short(row.flops_after)}"
    fitted = "" if row.output_error is None or row.held_out else " (fit)"
    return [
        row.name,
        row.kind,
        _format(row),
        rank_words(row.rank),
        f"{row.params_before:,} to {row.params_after:,}",
        f"{row.share:.1%}",
        flops,
        error_words(row.weight_error),
        error_words(row.output_error) + fitted,
        row.path or "-",
    ]


def _format(row: LayerReport) -> str:
    parts = [str(row.format)]
    if row.data_aware:
        by = row.moments and f" by {row.moments}"
        drawn = f" ({row.shrinkage:.2g} shrunk)" if (row.shrinkage or 0.0) >= 0.005 else ""
        parts.append(("loss-aware" if row.metric == "loss" else "data-aware") + drawn + by)
    if row.bias:
        parts.append(f"bias {row.bias}")
    return ", ".join(parts)


def _totals(report: Report) -> list[str]:
    budget = ""
    if report.keep_params is not None:
        budget = f", asked for at most {report.keep_params:.1%}"
    whole = ""
    if report.keep_total is not None:
        whole = f", asked for at most {report.keep_total:.1%}"
    lines = [
        "eligible weights: " + _change(report.eligible, budget),
        "whole model: " + _change(report.model, whole),
        *cost_words(report.budgets, report.allotment.dense_cost, report.allotment.cost),
        *report.allotment.words,
    ]
    if (flops := report.flops) is not None:
        before, after = flops
        share = f" ({after / before:.1%})" if before else ""
        lines.append(
            f"factored layers: {short(before)} to {short(after)} FLOPs{share} on the first "
            "calibration batch"
        )
    if report.model_error is not None:
        span = report.model_error_interval
        within = "" if span is None else f" [{span[0]:.3g}, {span[1]:.3g}]"
        lines.append(
            f"model outputs: relative error {report.model_error:.3g}{within} on held-out batches"
        )
    if report.refinement is not None:
        lines.append(report.refinement.title)
    if report.folded is not None:
        lines += report.folded.words
    lines += map(_basis, report.bases)
    lines += [f"inputs of {one.layers}: {one}" for one in report.pools if one.few]
    lines += [_gates(row.name, row.gates) for row in report.layers if row.gates is not None]
    norms = report.batch_norms
    if norms is not None:
        verb = "kept" if norms.kept else "tried and dropped"
        lines.append(
            f"batch normalisation: new statistics of {norms.count} {verb}, held-out error "
            f"{norms.error_before:.3g} before and {norms.error_after:.3g} after"
        )
    if report.quality is not None:
        lines += report.quality.lines()
    added = [row.name for row in report.layers if row.bias == "added"]
    if added:
        lines.append(f"biases added to layers that had none: {', '.join(added)}")
    if report.latency is not None:
        dense, small = report.latency.dense, report.latency.compressed
        keep = report.keep_latency
        asked = "" if keep is None else f", {small / dense:.1%} of at most {keep:.1%} asked for"
        lines.append(
            f"latency on the example: {dense * 1e3:.3g} ms dense, {small * 1e3:.3g} ms compressed, "
            f"{dense / small:.2f}x{asked}"
        )
    return lines


def _basis(basis: SharedBasis) -> str:
    verb = "kept" if basis.kept else "tried and dropped"
    on = "on inputs held out" if basis.held_out else "in the fit"
    return (
        f"one right factor of rank {basis.rank} {verb} for {', '.join(basis.layers)}: error "
        f"{basis.error:.3g} {on}, {basis.error_apart:.3g} by themselves at ranks "
        f"{', '.join(map(str, basis.ranks))}"
    )


def _gates(name: str, choice: GateChoice) -> str:
    where = " (on inputs held out)" if choice.held_out else ""
    return f"gates of {name} {choice}{where}"


def _change(totals: Totals, budget: str) -> str:
    return (
        f"{totals.params_before:,} to {totals.params_after:,} parameters ({totals.share:.1%}"
        f"{budget}), {bytes_words(totals.bytes_before)} to {bytes_words(totals.bytes_after)}"
    )
