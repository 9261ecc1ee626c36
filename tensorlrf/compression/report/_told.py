"""What a report tells, in words: the lines of its table, and those above and below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression._words import (
    bytes_words,
    error_words,
    rank_words,
    short,
    staying,
)
from tensorlrf.compression.page.environment import Environment
from tensorlrf.compression.plan.allocation import Allotment
from tensorlrf.compression.plan.budget import budget_words, cost_words
from tensorlrf.compression.refinement._refinement import Refinement
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


class Told(Protocol):
    """What is read of a `Report`; see there."""

    @property
    def keep_params(self) -> float | None: ...
    @property
    def keep_latency(self) -> float | None: ...
    @property
    def keep_total(self) -> float | None: ...
    @property
    def target(self) -> str | None: ...
    @property
    def affine(self) -> bool: ...
    @property
    def batches(self) -> int: ...
    @property
    def held_out(self) -> int: ...
    @property
    def layers(self) -> tuple[LayerReport, ...]: ...
    @property
    def model(self) -> Totals: ...
    @property
    def eligible(self) -> Totals: ...
    @property
    def flops(self) -> tuple[int, int] | None: ...
    @property
    def budgets(self) -> Mapping[str, float | None]: ...
    @property
    def model_error(self) -> float | None: ...
    @property
    def model_error_interval(self) -> tuple[float, float] | None: ...
    @property
    def batch_norms(self) -> BatchNorms | None: ...
    @property
    def latency(self) -> Latency | None: ...
    @property
    def allotment(self) -> Allotment: ...
    @property
    def refinement(self) -> Refinement | None: ...
    @property
    def quality(self) -> Quality | None: ...
    @property
    def folded(self) -> FoldedNorms | None: ...
    @property
    def bases(self) -> tuple[SharedBasis, ...]: ...
    @property
    def pools(self) -> tuple[ExpertPool, ...]: ...
    @property
    def from_moments(self) -> bool: ...
    @property
    def environment(self) -> Environment | None: ...


def told_table(report: Told) -> Table:
    """The factored layers, the totals, and what stays."""
    rows = [_cells(row) for row in report.layers if row.factored]
    below = [totals_lines(report), staying(report.layers, "params_before")]
    return Table(told_title(report), HEADER, rows, below)


def told_title(report: Told) -> str:
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
    fitted = "" if row.output_error is None or row.held_out else " (fit)"
    return [
        row.name,
        row.kind,
        ", ".join((str(row.format), *fit_words(row))),
        rank_words(row.rank),
        f"{row.params_before:,} to {row.params_after:,}",
        f"{row.share:.1%}",
        flops_words(row),
        error_words(row.weight_error),
        error_words(row.output_error) + fitted,
        row.path or "-",
    ]


def flops_words(row: LayerReport) -> str:
    """Before and after; a dash where they are not known."""
    if row.flops_before is None or row.flops_after is None:
        return "-"
    return f"{short(row.flops_before)} to {short(row.flops_after)}"


def fit_words(row: LayerReport) -> list[str]:
    """What the factors of a layer were fitted to, where that is more than its weight."""
    parts = []
    if row.data_aware:
        by = row.moments and f" by {row.moments}"
        drawn = f" ({row.shrinkage:.2g} shrunk)" if (row.shrinkage or 0.0) >= 0.005 else ""
        parts.append(("loss-aware" if row.metric == "loss" else "data-aware") + drawn + by)
    if row.bias:
        parts.append(f"bias {row.bias}")
    return parts


def totals_lines(report: Told) -> list[str]:
    """What became of the whole, a line each."""
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
