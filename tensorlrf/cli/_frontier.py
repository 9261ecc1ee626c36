"""`tensorlrf frontier`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tensorlrf.cli._evaluate import metric_for, read_evaluate
from tensorlrf.cli._job import Options, folder_job
from tensorlrf.cli._options import (
    BatchSize,
    Debug,
    Evaluate,
    Groups,
    Html,
    Include,
    Journal,
    Json,
    Log,
    Seed,
    Skip,
    Threads,
    Tokens,
)
from tensorlrf.cli._outcome import guard, show, write_page
from tensorlrf.cli._targets import check_page
from tensorlrf.compression import frontier as make_frontier
from tensorlrf.compression.plan.allocation import AUTO
from tensorlrf.errors import ArgumentError


def frontier(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A folder with a model of transformers.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text to look at the layers with, again for more: documents between blank "
            "lines or, without these, one a line.",
        ),
    ] = None,
    evaluate: Evaluate = None,
    shares: Annotated[
        str | None,
        typer.Option(
            "--shares", metavar="NUMBERS", help="Of the weights to keep, as in .9,.6,.4 [from .9]."
        ),
    ] = None,
    example: Annotated[
        bool,
        typer.Option(
            "--example",
            help="Time layers and whole models here, on the first batch of the text.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="A picture to draw, such as frontier.png."),
    ] = None,
    html: Html = None,
    allocation: Annotated[
        str,
        typer.Option(
            "--allocation",
            metavar="WORD",
            help="How a share is shared out over layers: auto (default), fisher, measured, energy, "
            "uniform.",
        ),
    ] = AUTO,
    skip: Skip = None,
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
    log: Log = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a model of every size is worth, before anything is compressed.

    Plans for many shares from one look at the layers, what each is predicted to lose, what the
    model loses on text held out with all its layers cut, and, with --evaluate, what a metric says,
    and with --example how long it takes here; the model in 8 and 4 bits beside.
    Writes nothing but the picture and the page, and with --journal what was measured: after a kill
    the same command goes on from there.

    \b
    Examples:
      tensorlrf frontier minilm/ --text news.txt --plot frontier.png --html frontier.html
      tensorlrf frontier minilm/ --text news.txt --evaluate metrics:f1 --shares .8,.6,.4 --example
      tensorlrf frontier smollm/ --text news.txt --evaluate perplexity:held_out.txt
    """
    with guard(debug, None, log, "frontier", threads):
        check_page(html)
        if source.exists() and not source.is_dir():
            raise ArgumentError(
                f"{source} is a file, and a frontier runs the model; give a folder with a model of "
                "transformers"
            )
        if not text and source.exists():
            raise ArgumentError("--text is missing: a frontier looks at inputs")
        options = Options(
            source, None, True, False, text or [], None, False, tokens, batch_size, max_batches,
            None, seed, groups=groups,
        )  # fmt: skip
        options.check()
        wanted: dict[str, Any] = {} if shares is None else {"shares": _numbers(shares)}
        evaluation = read_evaluate(evaluate)
        job = folder_job(options)
        metric = metric_for(
            evaluation, job.model, source, job.batches, text or [], tokens, batch_size
        )
        found = make_frontier(
            job.model,
            job.batches,
            evaluate=metric,
            example=job.batches[0] if example and job.batches else None,
            skip=None if not skip else [glob for glob in skip if glob],
            include=include or [],
            allocation=allocation,
            groups=job.groups,
            journal=journal,
            random_state=seed,
            **wanted,
        )
        if plot is not None:
            found.plot(plot)
        write_page(html, found, source, "at every size")
        show(found, as_json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"--shares {text} must be numbers, as in .9,.6,.4") from None
