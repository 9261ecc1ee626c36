"""Whether a model has become as small as it was wanted to."""

from __future__ import annotations

from tensorlrf.compression.report._report import Report

FAR = 0.25
"""Embeddings, heads and norms stay in every model, so that it keeps more than its eligible weights
do. That less than this part of what was to go has gone is told in a warning."""


def shortfall(report: Report) -> str:
    """What stays of a model that keeps far more than the share asked for, and why; else empty."""
    wanted, kept = report.keep_params, report.model.share
    if wanted is None or 1 - kept >= FAR * (1 - wanted):
        return ""
    if report.eligible.share > wanted:  # ranks of an edited plan
        return ""
    rows = sorted((r for r in report.layers if not r.factored), key=lambda r: -r.params_after)
    stays = "; ".join(f"{r.name} ({r.kind}, {r.params_after:,}): {r.reason}" for r in rows[:3])
    return (
        f"keep_params={wanted:g} was asked for, but the model keeps {kept:.1%} of its parameters: "
        f"only eligible layers are factored, and they had {_part(report):.1%} of these. What stays "
        f"most: {stays}"
    )


def _part(report: Report) -> float:
    return report.eligible.params_before / report.model.params_before
