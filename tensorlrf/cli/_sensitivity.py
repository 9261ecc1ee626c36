"""`tensorlrf sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tensorlrf.cli._job import Options, checkpoint_job, folder_job
from tensorlrf.cli._options import (
    BatchSize,
    Debug,
    Force,
    Groups,
    Html,
    Include,
    Journal,
    Json,
    Log,
    Seed,
    Threads,
    Tokens,
)
from tensorlrf.cli._outcome import guard, show, write_page
from tensorlrf.cli._targets import check_json, check_page
from tensorlrf.compression import sensitivity as find_sensitivity
from tensorlrf.compression.plan.allocation import AUTO
from tensorlrf.errors import ArgumentError, printable
from tensorlrf.files.replace import replacing


def sensitivity(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A model folder, or a .safetensors checkpoint."),
    ],
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="JSON for `compress --sensitivity`."),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            metavar="WORD",
            help="How it is found: auto (default), fisher, measured, energy; without --text by the "
            "spectra of the weights.",
        ),
    ] = AUTO,
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="WORD",
            help="What errors of the outputs cost: auto (default), kl, cosine or relative.",
        ),
    ] = AUTO,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text to look at the layers with, again for more: documents between blank "
            "lines or, without these, one a line. Folders only.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="A heat map to draw, such as layers.png."),
    ] = None,
    html: Html = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="GLOB",
            help="Layers that are left out, again for more. By default heads; '' skips none.",
        ),
    ] = None,
    include: Include = None,
    groups: Groups = None,
    tokens: Tokens = None,
    batch_size: BatchSize = None,
    max_batches: Annotated[
        int | None, typer.Option("--max-batches", help="Batches to look at, at most [all].")
    ] = None,
    journal: Journal = None,
    seed: Seed = 0,
    threads: Threads = None,
    force: Force = False,
    log: Log = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What each layer of a model can lose, for every budget at once.

    \b
    Examples:
      tensorlrf sensitivity minilm/ --text news.txt -o layers.json
      tensorlrf compress minilm/ -o minilm-small/ --keep-params .6 --sensitivity layers.json
    """
    with guard(debug, target, log, "sensitivity", threads):
        check_page(html)
        options = Options(
            source, None, True, False, text or [], None, False, tokens, batch_size, max_batches,
            None, seed, groups=groups,
        )  # fmt: skip
        options.check()
        if include and not source.is_dir():
            raise ArgumentError(
                f"--include looks at the whole model, and so is for folders with a model of "
                f"transformers; {source} is a file, of which the weights alone are known"
            )
        if target is not None:
            check_json(target, force)
        job = folder_job(options) if source.is_dir() else checkpoint_job(options)
        found = find_sensitivity(
            job.model,
            job.batches,
            rule=rule,
            loss=loss,
            skip=None if not skip else [glob for glob in skip if glob],
            include=include or [],
            groups=job.groups,
            journal=journal,
            random_state=seed,
        )
        if plot is not None:
            found.plot(plot)
        write_page(html, found, source, "layer by layer")
        if target is not None:
            with replacing(target, overwrite=force) as part:
                part.write_text(found.to_json() + "\n", encoding="utf-8")
        show(found, as_json)
        if target is not None and not as_json:
            typer.echo(f"written to {printable(str(target))}")
