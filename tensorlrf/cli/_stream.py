"""`compress --stream`: a checkpoint a layer at a time, without its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from tensorlrf.cli._outcome import show, warn
from tensorlrf.cli._stream_fit import StreamFit
from tensorlrf.cli._wanted import read_value
from tensorlrf.compression import Plan, compress_checkpoint, forecast_checkpoint
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.planned import checkpoint_plan
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import ArgumentError, printable


def stream(
    source: Path,
    target: Path | None,
    arguments: Mapping[str, Any],
    *,
    others: Mapping[str, object],
    fit: StreamFit,
    plan: Path | None,
    moments: Path | None,
    plan_only: bool,
    dry_run: bool,
    seed: int,
    force: bool,
    restart: bool,
    as_json: bool,
    prints: bool,
) -> None:
    """Carry it out, or show the plan, or what it would take.

    arguments  keep_params, error, method and skip
    others     option -> what was given for it, of those that have no meaning here
    fit        what layers are fitted to
    prints     whether this process tells what comes of it

    Raises ArgumentError for these.
    """
    for option, given in others.items():
        if given not in (None, False, [], ()):
            raise ArgumentError(
                f"{option} is not for --stream, which has a layer or a block in memory at a time"
            )
    fit.check(dry_run=dry_run)
    if (plan_only or dry_run) and not prints:
        return
    if plan_only:
        known = Architecture.of(StoredTensors.of(source))
        for note in known.notes:
            warn(note)
        show(checkpoint_plan(known, **arguments), as_json)
        return
    given_plan = None if plan is None else read_value(Plan, "--plan", plan)
    if dry_run and moments is not None:
        raise ArgumentError(
            "--moments is not for --dry-run, which counts what the weights alone take"
        )
    if dry_run:
        forecast = forecast_checkpoint(
            source, target, **arguments, plan=given_plan, random_state=seed
        )
        show(forecast, as_json)
        return
    if target is None:
        raise ArgumentError("-o is missing: say where to write, or give --plan-only or --dry-run")
    report = compress_checkpoint(
        source, target, **arguments, **fit.arguments(source, seed), plan=given_plan,
        moments=moments, random_state=seed, overwrite=force, restart=restart,
    )  # fmt: skip
    if not prints:
        return
    show(report, as_json)
    if not as_json:
        if report.already:
            typer.echo(f"{printable(str(target))} is left as it is")
        else:
            typer.echo(f"written to {printable(str(target))}")
