"""Whether a model has become as small as it was wanted to."""

from __future__ import annotations

from tensorlrf.compression.report._report import Report
from tensorlrf.compression.report._rows import Totals

FAR = 0.25
"""Embeddings, heads and norms stay in every model, so that it keeps more than its eligible weights
do. That less than this part of what was to go has gone is told in a warning."""

NOISE = 0.05
"""Of a time that was measured twice."""


def shortfall(report: Report) -> str:
    """What stays of a model that keeps far more than the share asked for, and why, or how long one
    takes that was to take less; else empty."""
    late = report.latency
    if report.keep_latency is not None and late is not None:
        took = late.compressed / late.dense
        if took > report.keep_latency * (1 + NOISE):
            return (
                f"keep_latency={report.keep_latency:g} was asked for, but the model takes "
                f"{took:.1%} of the given one's time: {late.compressed * 1e3:.3g} ms, and "
                f"{late.dense * 1e3:.3g} ms in turn with it"
            )
    for word, wanted, what in (
        ("keep_params", report.keep_params, "params"),
        ("keep_bytes", report.keep_bytes, "bytes"),
    ):
        if wanted is not None:
            return _shortfall(report, word, wanted, what)
    return ""


def _shortfall(report: Report, word: str, wanted: float, what: str) -> str:
    kept = _kept(report.model, what)
    if 1 - kept >= FAR * (1 - wanted):
        return ""
    if _kept(report.eligible, what) > wanted:  # ranks of an edited plan
        return ""
    rows = [row for row in report.layers if not row.factored]
    rows.sort(key=lambda row: -getattr(row, f"{what}_after"))
    stays = "; ".join(
        f"{r.name} ({r.kind}, {getattr(r, f'{what}_after'):,}): {r.reason}" for r in rows[:3]
    )
    part = getattr(report.eligible, f"{what}_before") / getattr(report.model, f"{what}_before")
    called = "parameters" if what == "params" else what
    return (
        f"{word}={wanted:g} was asked for, but the model keeps {kept:.1%} of its {called}: "
        f"only eligible layers are factored, and they had {part:.1%} of these. What stays "
        f"most: {stays}"
    )


def _kept(totals: Totals, what: str) -> float:
    before: int = getattr(totals, f"{what}_before")
    after: int = getattr(totals, f"{what}_after")
    return after / before if before else 1.0
