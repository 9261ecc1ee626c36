"""`tensorlrf spectra`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from tensorlrf.cli._checkpoint import read_checkpoint
from tensorlrf.cli._options import Debug, Force, Json, Log, Threads
from tensorlrf.cli._outcome import guard, show
from tensorlrf.cli._targets import check_json
from tensorlrf.cli.measure._models import read_any
from tensorlrf.compression import spectra as find_spectra
from tensorlrf.compression.spectral.words import MEASURES
from tensorlrf.errors import ArgumentError, FileError, printable, unknown
from tensorlrf.files.replace import replacing


def spectra(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A model folder, compressed or dense, or a dense .safetensors."
        ),
    ],
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON of the table.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="A heat map to draw, such as layers.png."),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            "--measure", metavar="WORD", help=f"What --plot shows: {', '.join(MEASURES)}."
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip", metavar="GLOB", help="Layers that are not looked at, again for more."
        ),
    ] = None,
    threads: Threads = None,
    force: Force = False,
    log: Log = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Nuclear norm, stable and effective rank, and entropy of each weight of a model, and of all.

    Nothing runs, and no text is needed; heads and embeddings are looked at as well.

    \b
    Examples:
      tensorlrf spectra minilm/ --plot layers.png --measure stable_rank
      tensorlrf spectra net.safetensors -o spectra.json
    """
    with guard(debug, target, log, "spectra", threads):
        _check(source, plot, measure)
        if target is not None:
            check_json(target, force)
        found = find_spectra(_model(source), skip=[glob for glob in skip or () if glob])
        if plot is not None:
            found.plot(plot, measure or MEASURES[0])
        if target is not None:
            with replacing(target, overwrite=force) as part:
                part.write_text(found.to_json() + "\n", encoding="utf-8")
        show(found, as_json)
        if target is not None and not as_json:
            typer.echo(f"written to {printable(str(target))}")


def _check(source: Path, plot: Path | None, measure: str | None) -> None:
    """Raise for what can be told before anything is read."""
    if not source.exists():
        raise FileError(f"{source} is not there; give a .safetensors file or a folder")
    if measure is not None and plot is None:
        raise ArgumentError(f"--measure {measure} is of a picture; give --plot, or leave it out")
    if measure is not None and measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)


def _model(source: Path) -> nn.Module:
    """Of a file the layers that its tensors seem to be of."""
    return read_any(source) if source.is_dir() else read_checkpoint(source).layers.model
