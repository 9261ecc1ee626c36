"""`compress --stream`: a checkpoint a layer at a time, without its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from tensorlrf.cli._outcome import show
from tensorlrf.cli._wanted import read_value
from tensorlrf.compression import Plan, compress_checkpoint
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
    plan: Path | None,
    plan_only: bool,
    seed: int,
    force: bool,
    restart: bool,
    as_json: bool,
) -> None:
    """Carry it out, or show the plan.

    arguments  keep_params, error, method and skip
    others     option -> what was given for it, of those that have no meaning here

    Raises ArgumentError for these.
    """
    for option, given in others.items():
        if given not in (None, False, [], ()):
            raise ArgumentError(
                f"{option} is not for --stream, which goes by the weights alone, a layer at a time"
            )
    if plan_only:
        known = Architecture.of(StoredTensors.of(source))
        show(checkpoint_plan(known, **arguments), as_json)
        return
    if target is None:
        raise ArgumentError("-o is missing: say where to write, or give --plan-only")
    given_plan = None if plan is None else read_value(Plan, "--plan", plan)
    report = compress_checkpoint(
        source, target, **arguments, plan=given_plan, random_state=seed, overwrite=force,
        restart=restart,
    )  # fmt: skip
    show(report, as_json)
    if not as_json:
        typer.echo(f"written to {printable(str(target))}")
