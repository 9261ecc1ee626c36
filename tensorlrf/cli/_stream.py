"""`compress --stream`: a checkpoint a layer at a time, without its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from tensorlrf.cli._huggingface import read_tokenizer
from tensorlrf.cli._outcome import show, tell_written, warn, write_page
from tensorlrf.cli._ranks import Started
from tensorlrf.cli._targets import page_beside
from tensorlrf.cli._texts import batches_of, read_texts
from tensorlrf.cli._wanted import read_value
from tensorlrf.compression import Plan, compress_checkpoint, forecast_checkpoint
from tensorlrf.compression.metrics.windows import BATCH, TOKENS
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.planned import checkpoint_plan
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.decomposition.large.freed import map_large
from tensorlrf.errors import ArgumentError, UnsupportedError, printable


@dataclass(frozen=True)
class StreamFit:
    """The texts to fit to, and what was given for the options of these names; None for what was
    not."""

    text: list[Path]
    target: str | None
    holdout: float | None
    memory_limit: int | None
    tokens: int | None
    batch_size: int | None
    max_batches: int | None

    def check(self, *, dry_run: bool) -> None:
        """Raise ArgumentError for options that need others, or that have no meaning."""
        given = {
            "--target": self.target, "--holdout": self.holdout,
            "--memory-limit": self.memory_limit, "--tokens": self.tokens,
            "--batch-size": self.batch_size, "--max-batches": self.max_batches,
        }  # fmt: skip
        for option, value in given.items():
            if value is not None and not self.text:
                raise ArgumentError(f"{option} needs --text, from which the inputs come")
        if dry_run and self.text:
            raise ArgumentError("--dry-run is of runs by weights; leave out --text")

    def arguments(self, source: Path, seed: int, started: Started) -> dict[str, Any]:
        """For `compress_checkpoint`, with the batches of this rank; none without texts. Raises
        TensorlrfError."""
        if not self.text:
            return {}
        texts = read_texts(self.text)
        known = Architecture.of(StoredTensors.of(source), apart=True)
        if not known.exact:
            why = "; ".join(known.notes) or "it has no config.json"
            raise UnsupportedError(
                f"--text is for folders whose model transformers can build; {source} is none: {why}"
            )
        batches, _ = batches_of(
            texts,
            read_tokenizer(source),
            known.model,
            tokens=TOKENS if self.tokens is None else self.tokens,
            batch_size=BATCH if self.batch_size is None else self.batch_size,
            max_batches=self.max_batches,
            seed=seed,
        )
        made: dict[str, Any] = {
            "calibration": started.own(batches), "memory_limit": self.memory_limit
        }  # fmt: skip
        made |= {} if self.target is None else {"inputs": self.target}
        return made | ({} if self.holdout is None else {"holdout": self.holdout})


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
    device: str | None,
    threads: int | None,
    force: bool,
    restart: bool,
    as_json: bool,
    started: Started,
    html: Path | None = None,
    no_html: bool = False,
) -> None:
    """Carry it out, or show the plan, or what it would take.

    arguments  keep_params, error, method and skip
    others     option -> what was given for it, of those that have no meaning here
    fit        what layers are fitted to
    started    the ranks that do so
    html       a page of it, in the place of the one beside a folder
    no_html    none of them

    Raises ArgumentError for these.
    """
    for option, given in others.items():
        if given not in (None, False, [], ()):
            raise ArgumentError(
                f"{option} is not for --stream, which has a layer or a block in memory at a time"
            )
    fit.check(dry_run=dry_run)
    if (plan_only or dry_run) and not started.prints:
        return
    if plan_only:
        known = Architecture.of(StoredTensors.of(source), apart=bool(fit.text))
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
            source, target, **arguments, plan=given_plan, random_state=seed, threads=threads
        )
        show(forecast, as_json)
        return
    if target is None:
        raise ArgumentError("-o is missing: say where to write, or give --plan-only or --dry-run")
    if fit.text:
        map_large()
    report = compress_checkpoint(
        source, target, **arguments, **fit.arguments(source, seed, started), plan=given_plan,
        moments=moments, random_state=seed, device=device, threads=threads, overwrite=force,
        restart=restart,
    )  # fmt: skip
    if not started.prints:
        return
    page = page_beside(html, target, no_html)
    write_page(page, report, source, "compressed")
    show(report, as_json)
    if not as_json:
        if report.already:
            typer.echo(f"{printable(str(target))} is left as it is")
        else:
            tell_written(target, page)
