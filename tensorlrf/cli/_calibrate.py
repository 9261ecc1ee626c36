"""`tensorlrf calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tensorlrf.cli._job import Options, folder_job
from tensorlrf.cli._options import (
    BatchSize,
    Debug,
    Force,
    Include,
    Json,
    Log,
    Seed,
    Skip,
    Target,
    Threads,
    Tokens,
)
from tensorlrf.cli._outcome import guard, show
from tensorlrf.cli._ranks import process_group
from tensorlrf.cli._targets import check_moments
from tensorlrf.compression import calibrate as sum_up
from tensorlrf.errors import ArgumentError, printable


def calibrate(
    source: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    target: Target,
    text: Annotated[
        list[Path],
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text to run the model on, again for more: documents between blank lines "
            "or, without these, one a line.",
        ),
    ],
    add: Annotated[
        list[Path] | None,
        typer.Option(
            "--add",
            metavar="FILE",
            help="Moments of the same model, of another run or machine, that are added; again for "
            "more.",
        ),
    ] = None,
    skip: Skip = None,
    include: Include = None,
    tokens: Tokens = None,
    batch_size: BatchSize = None,
    max_batches: Annotated[
        int | None, typer.Option("--max-batches", help="Batches to sum up, at most [all].")
    ] = None,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit",
            metavar="BYTES",
            help="That the fit of a layer may take later; moments of a layer that would take more "
            "are sketched [half of what is free].",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="WORD", help="float32 (default), or keep its own."),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Begin anew where a run into TARGET has ended early."),
    ] = False,
    force: Force = False,
    log: Log = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Sum up what the layers of a model are fed, for `compress --moments`.

    A run that ends early goes on where it was when it is called again. Sums of several runs, on
    parts of the text or on several machines, add up with --add. Of processes that torchrun starts
    each takes a part of the batches, and the first writes the sums of all.

    \b
    Examples:
      tensorlrf calibrate minilm/ --text news.txt -o moments.safetensors
      tensorlrf calibrate minilm/ --text more.txt --add moments.safetensors -o both.safetensors
      torchrun --nproc-per-node 4 -m tensorlrf calibrate minilm/ --text news.txt -o all.safetensors
      tensorlrf compress minilm/ -o minilm-small/ --keep-params .6 --moments both.safetensors
      tensorlrf compress llama-70b/ -o small/ --keep-params .5 --stream --moments llama.safetensors
    """
    with guard(debug, target, log, "calibrate", threads), process_group() as started:
        options = Options(
            source, target, True, force, text, None, False, tokens, batch_size, max_batches, dtype,
            seed,
        )  # fmt: skip
        if source.exists() and not source.is_dir():
            raise ArgumentError(f"{source} is no folder with a model of transformers")
        options.check()
        check_moments(target, add or [], force, started.size)
        job = folder_job(options)
        moments = sum_up(
            job.model, started.own(job.batches), target, add=add or [],
            skip=None if not skip else [glob for glob in skip if glob],
            include=include or [], memory_limit=memory_limit, threads=threads, overwrite=force,
            restart=restart,
        )  # fmt: skip
        if not started.prints:
            return
        show(moments, as_json)
        if not as_json:
            typer.echo(f"written to {printable(str(target))}")
