"""`tensorlrf refine`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from tensorlrf.cli._huggingface import quiet, write_model
from tensorlrf.cli._job import Options, folder_job
from tensorlrf.cli._options import (
    BatchSize,
    Debug,
    Force,
    Groups,
    HtmlBeside,
    Journal,
    Json,
    Log,
    NoHtml,
    Seed,
    Target,
    Threads,
    Tokens,
)
from tensorlrf.cli._outcome import INTERRUPTED, guard, show, tell_written, write_page
from tensorlrf.cli._targets import check_folder, check_page, page_beside
from tensorlrf.compression import load
from tensorlrf.compression import refine as refine_model
from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.errors import ArgumentError, FileError


def refine(
    small: Annotated[Path, typer.Argument(metavar="SMALL", help="A folder that `compress` wrote.")],
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder that it was made of.")],
    target: Target,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text to train on, again for more: documents between blank lines or, "
            "without these, one a line.",
        ),
    ] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="The budget.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Or this: steps of the optimiser.")
    ] = None,
    phases: Annotated[
        str | None,
        typer.Option("--phases", metavar="WORDS", help="Of local,block,global only these [all]."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss",
            metavar="WORD",
            help="How far outputs are from those of MODEL: auto (default), kl, cosine or relative.",
        ),
    ] = None,
    look_ahead: Annotated[
        bool, typer.Option("--look-ahead", help="Judge blocks by the outputs of the model too.")
    ] = False,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Rate, relative to the scale of each tensor.")
    ] = None,
    holdout: Annotated[
        float | None, typer.Option("--holdout", help="Share of the batches to judge by [.1].")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option("--accumulate", help="Batches for one step [1].")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Run blocks again on the way back.")
    ] = False,
    lora: Annotated[
        int | None, typer.Option("--lora", help="Train changes of this rank in place of factors.")
    ] = None,
    journal: Journal = None,
    groups: Groups = None,
    tokens: Tokens = None,
    batch_size: BatchSize = None,
    max_batches: Annotated[
        int | None, typer.Option("--max-batches", help="Batches to train on, at most [all].")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="The held-out loss over seconds, as a picture."
        ),
    ] = None,
    html: HtmlBeside = None,
    no_html: NoHtml = False,
    seed: Seed = 0,
    threads: Threads = None,
    force: Force = False,
    log: Log = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A compressed model, trained to follow the one that it was made of.

    It is judged on text held out, and what is written is never worse than it was. Ctrl-C writes the
    best so far (exit code 130); with --journal the same command goes on from there.

    \b
    Examples:
      tensorlrf refine minilm-small/ minilm/ -o better/ --seconds 600 --text news.txt --loss cosine
      tensorlrf refine small/ model/ -o better/ --steps 200 --text news.txt --journal course/
    """
    with guard(debug, target, log, "refine", threads):
        check_page(html, none=no_html)
        _check(small, model, text)
        options = Options(
            model, None, True, force, text or [], None, False, tokens, batch_size, max_batches,
            None, seed, groups=groups,
        )  # fmt: skip
        options.check()
        for folder in (small, model):
            check_folder(target, folder, force)
        with quiet():
            given = load(small)
        job = folder_job(options if _is_float32(given) else replace(options, dtype="keep"))
        words = {
            "phases": None if phases is None else phases.split(","), "loss": loss, "lr": lr,
            "holdout": holdout, "accumulate": accumulate, "lora": lora, "journal": journal,
        }  # fmt: skip
        chosen: dict[str, Any] = {key: value for key, value in words.items() if value is not None}
        better, report = refine_model(
            given,
            job.model,
            job.batches,
            seconds=seconds,
            steps=steps,
            look_ahead=look_ahead,
            checkpointing=checkpointing,
            groups=job.groups,
            random_state=seed,
            **chosen,
        )
        write_model(better, small, target, force)
        if plot is not None:
            report.plot(plot)
        page = page_beside(html, target, no_html)
        write_page(page, report, small, "refined")
        show(report, as_json)
        if not as_json:
            tell_written(target, page)
    if report.reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _check(small: Path, model: Path, text: list[Path] | None) -> None:
    """Raise for what is no folder, or has no inputs."""
    for path, what in ((small, "that `tensorlrf compress` wrote"), (model, "with the dense model")):
        if path.exists() and not path.is_dir():
            raise ArgumentError(
                f"{path} is a file, and refinement runs the models; give a folder {what}"
            )
    if not small.exists():
        raise FileError(f"{small} is not there; give a folder that `tensorlrf compress` wrote")
    if not (small / TENSORS).is_file():
        raise FileError(f"{small} has no {TENSORS}; give a folder that `tensorlrf compress` wrote")
    if not text and model.exists():
        raise ArgumentError("--text is missing: refinement trains on inputs")


def _is_float32(model: nn.Module) -> bool:
    return all(p.dtype == torch.float32 for p in model.parameters())
