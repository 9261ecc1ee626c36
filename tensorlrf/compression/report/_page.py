"""A report as a page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from tensorlrf.compression._words import bytes_words, error_words, rank_words, short
from tensorlrf.compression.page.document import Page, Section
from tensorlrf.compression.page.environment import environment_section
from tensorlrf.compression.page.heat_map import heat_map
from tensorlrf.compression.page.loading import loading_section
from tensorlrf.compression.page.markup import Markup, element
from tensorlrf.compression.page.parts import (
    Figure,
    bullets,
    figures,
    note,
    paragraph,
)
from tensorlrf.compression.page.tables import LONG, NAME, NUMBER, WORDS, Cell, Number, table
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.compression.report._rows import LayerReport
from tensorlrf.compression.report._told import (
    Told,
    fit_words,
    flops_words,
    told_title,
    totals_lines,
)
from tensorlrf.errors import ArgumentError
from tensorlrf.files.arguments import PathLike

COLUMNS = (
    ("Layer", NAME),
    ("Kind", WORDS),
    ("Format", WORDS),
    ("Rank", NUMBER),
    ("Before", NUMBER),
    ("After", NUMBER),
    ("Kept", NUMBER),
    ("FLOPs", NUMBER),
    ("Weight error", NUMBER),
    ("Output error", NUMBER),
    ("Path", WORDS),
    ("Fit", LONG),
)

STAYED = (("Layer", NAME), ("Kind", WORDS), ("Parameters", NUMBER), ("Why it stayed", LONG))


@runtime_checkable
class FrontierLike(Protocol):
    """What is read of a `Frontier`; see there."""

    @property
    def sensitivity(self) -> Sensitivity: ...
    def _sections(self) -> tuple[Section, ...]: ...


@dataclass(frozen=True)
class Beside:
    """Sections that are told beside a report: of a frontier, and of what each layer can lose."""

    frontier: tuple[Section, ...] = ()
    sensitivity: tuple[Section, ...] = ()


def beside(
    names: Collection[str], frontier: FrontierLike | None, sensitivity: Sensitivity | None
) -> Beside:
    """Of a model whose modules have these names. Raises ArgumentError for those of another."""
    found = Beside()
    if frontier is not None:
        if not isinstance(frontier, FrontierLike):
            raise ArgumentError(
                f"frontier is a {type(frontier).__name__}; pass what tensorlrf.frontier returned"
            )
        found = Beside(frontier._sections())
        sensitivity = frontier.sensitivity if sensitivity is None else sensitivity
    if sensitivity is not None:
        if not isinstance(sensitivity, Sensitivity):
            raise ArgumentError(
                f"sensitivity is a {type(sensitivity).__name__}; pass what tensorlrf.sensitivity "
                "returned"
            )
        known = [row.name for row in sensitivity.layers]
        if known and not set(known) & set(names):
            raise ArgumentError(
                f"sensitivity and frontier are of another model: they tell of {known[0]!r}, which "
                "the report does not have; pass those of the model that was compressed"
            )
        found = replace(found, sensitivity=sensitivity._sections())
    return found


def report_page(
    report: Told,
    more: Beside,
    saved: PathLike | None,
    title: str | None,
    date: str | None,
) -> Page:
    """All of it, with what there is more."""
    sections = [
        Section("summary", "What was won and what was lost", (_figures(report), _said(report)))
    ]
    sections += more.frontier
    if report.refinement is not None:
        sections += report.refinement._sections()
    sections += _lost(report)
    sections += _layers(report)
    sections += more.sensitivity
    how = (paragraph(_sentence(told_title(report))), bullets(totals_lines(report)))
    sections.append(Section("course", "How it came about", how))
    sections += [loading_section(saved), environment_section(report.environment, date)]
    return Page(title or "Compression report", _lead(report), sections)


def _lead(report: Told) -> str:
    factored = sum(row.factored for row in report.layers)
    return (
        f"{factored:,} of {len(report.layers):,} modules run on factors now; the model keeps "
        f"{report.model.share:.1%} of its parameters."
    )


def _figures(report: Told) -> Markup:
    whole = report.model
    kept = whole.bytes_after / whole.bytes_before if whole.bytes_before else 1.0
    shown = [
        Figure(
            "Parameters kept",
            f"{whole.share:.1%}",
            f"{short(whole.params_before)} to {short(whole.params_after)}",
            whole.share,
        ),
        Figure(
            "Bytes kept",
            f"{kept:.1%}",
            f"{bytes_words(whole.bytes_before)} to {bytes_words(whole.bytes_after)}",
            kept,
        ),
    ]
    if report.flops is not None and report.flops[0]:
        before, after = report.flops
        told = f"{short(before)} to {short(after)}, factored layers on the first batch"
        shown.append(Figure("FLOPs left", f"{after / before:.1%}", told, after / before))
    if report.latency is not None and report.latency.compressed > 0:
        dense, small = report.latency.dense, report.latency.compressed
        told = f"{dense * 1e3:.3g} ms to {small * 1e3:.3g} ms a pass"
        shown.append(Figure("Speed", f"{dense / small:.2f}x", told))
    if report.model_error is not None:
        span = report.model_error_interval
        told = "relative, on inputs held out" + (
            "" if span is None else f"; {span[0]:.3g} to {span[1]:.3g} with 95% confidence"
        )
        shown.append(Figure("Error of the outputs", f"{report.model_error:.3g}", told))
    if report.quality is not None:
        found = report.quality
        told = f"{found.dense:.4g} dense, a {found.judged.drop} of {found.drop:.3g}"
        told += f", at most {found.bound:.3g}" if found.examples or found.noise else ""
        called = found.judged.name
        shown.append(Figure(called[0].upper() + called[1:], f"{found.compressed:.4g}", told))
    return figures(shown)


def _said(report: Told) -> Markup:
    """The same in sentences, with what figures do not tell."""
    said: list[str] = []
    if report.model_error is None and report.quality is None:
        said.append(
            "The outputs of the two models were not compared: no inputs were held out, and there "
            "was no metric. "
        )
    if report.quality is not None:
        said += [f"{line[0].upper()}{line[1:]}. " for line in report.quality.judged.lines()]
    factored = [row for row in report.layers if row.factored]
    known = [(row.output_error, row) for row in factored if row.output_error is not None]
    weighed = [(row.weight_error, row) for row in factored if row.weight_error is not None]
    if known or weighed:
        error, worst = max(known or weighed, key=lambda pair: pair[0])
        where = "on inputs held out" if worst.held_out else "on the inputs of the fit"
        what = f"its outputs are off by {error_words(error)} of their size, {where}. "
        if not known:
            what = f"its weight is off by {error_words(error)} of its size. "
        name = element("code", {}, worst.name) if worst.name else "the model itself"
        said += ["Of the factored layers ", name, f" lost most: {what}"]
    stay = [row for row in report.layers if not row.factored]
    if stay:
        numbers = sum(row.params_after for row in stay)
        said.append(
            f"{len(stay):,} modules stayed as they were, with {short(numbers)} parameters; the "
            "reason is beside each."
        )
    return paragraph(*said)


def _lost(report: Told) -> list[Section]:
    """A map of the errors, where two layers or more have one."""
    of_outputs = any(row.output_error is not None for row in report.layers if row.factored)
    values = {}
    for row in report.layers:
        error = row.output_error if of_outputs else row.weight_error
        if row.factored and error is not None:
            values[row.name or "(model)"] = error
    if len(values) < 2:
        return []
    what = "outputs" if of_outputs else "weight"
    told = (
        f"Relative error of the {what} of each factored layer; the table of layers has the numbers."
    )
    caption = (
        f"Relative error of the {what}: a row for each block, a column for each kind of layer."
    )
    return [
        Section("errors", "What each layer lost", (heat_map("error-map", caption, told, values),))
    ]


def _layers(report: Told) -> list[Section]:
    factored = [row for row in report.layers if row.factored]
    stay = [row for row in report.layers if not row.factored]
    sections = []
    if factored:
        columns, rows = _known(COLUMNS, [_cells(row) for row in factored])
        caption = "Parameters of the weight before and after; errors are relative."
        told = table("layers-table", caption, columns, rows, searched="layers")
        sections.append(Section("layers", "The factored layers", (note(_fits(factored)), told)))
    if stay:
        told = table(
            "stayed-table",
            "Every other module that owns parameters.",
            STAYED,
            ([r.name or "(model)", r.kind, _count(r.params_after), r.reason] for r in stay),
            searched="modules",
        )
        sections.append(Section("stayed", "Why the others stayed", (told,)))
    return sections


def _fits(rows: Sequence[LayerReport]) -> str:
    """On what the errors are."""
    known = [row for row in rows if row.output_error is not None]
    if not known:
        return "Errors are of weights: there was no calibration to tell those of outputs."
    if all(row.held_out for row in known):
        return "Errors of outputs are on inputs held out."
    return "Errors of outputs with (fit) are on the inputs of the fit, others on inputs held out."


def _known(
    columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Cell]]
) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Without the columns of which nothing is known."""
    shown = [[cell if isinstance(cell, str) else cell.shown for cell in row] for row in rows]
    kept = [k for k in range(len(columns)) if any(row[k] != "-" for row in shown)]
    return [columns[k] for k in kept], [[row[k] for k in kept] for row in rows]


def _cells(row: LayerReport) -> list[Cell]:
    fitted = "" if row.output_error is None or row.held_out else " (fit)"
    return [
        row.name or "(model)",
        row.kind,
        str(row.format),
        Number(None, rank_words(row.rank)),
        _count(row.params_before),
        _count(row.params_after),
        Number(row.share, f"{row.share:.1%}", bar=True),
        Number(row.flops_after, flops_words(row)),
        Number(row.weight_error, error_words(row.weight_error)),
        Number(row.output_error, error_words(row.output_error) + fitted),
        row.path or "-",
        ", ".join(fit_words(row)) or "plain",
    ]


def _count(number: int) -> Number:
    return Number(number, f"{number:,}")


def _sentence(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."
