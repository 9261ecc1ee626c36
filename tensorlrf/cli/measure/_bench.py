"""`tensorlrf bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tensorlrf.cli._huggingface import quiet
from tensorlrf.cli._options import Debug, Json, Log, Seed, Threads
from tensorlrf.cli._outcome import guard, show
from tensorlrf.cli.measure._models import (
    check_runs,
    drawn_inputs,
    read_any,
    read_both,
    read_inputs,
    to_device,
)
from tensorlrf.compression import bench as bench_model
from tensorlrf.compression.metrics.windows import TOKENS
from tensorlrf.errors import ArgumentError
from tensorlrf.files.arguments import as_device

BATCHES = (1, 8)


def bench(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model folder, compressed or dense.")
    ],
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="DENSE", help="Another, to be timed in turn with it."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="A .safetensors of inputs, by their names [tokens or pixels are drawn].",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help=f"Of a row of drawn tokens [{TOKENS}].")
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option("--batch-size", help="Rows of drawn inputs, again for more [1 and 8]."),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", help="To decode where a model can; 0 for none.")
    ] = 32,
    seconds: Annotated[float, typer.Option("--seconds", help="Of each row, about.")] = 5.0,
    device: Annotated[
        str | None, typer.Option("--device", metavar="WORD", help="Where, such as cuda [cpu].")
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    log: Log = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How long a model takes, how much memory, how many tokens a second; best beside another one.

    Both are timed in turn. Each line has the median of the ratios of pairs with its 95% interval,
    and says that no difference is shown where that covers 1.

    \b
    Examples:
      tensorlrf bench smollm-small/ --against smollm/
      tensorlrf bench minilm-small/ --against minilm/ --tokens 64 --batch-size 1 --batch-size 32
    """
    with guard(debug, None, log, "bench", threads):
        check_runs(folder)
        _check(data, tokens, batch_size)
        place = torch.device("cpu") if device is None else as_device(device)
        inputs = None if data is None else read_inputs(data)
        other = None
        if against is None:
            model = read_any(folder)
        else:
            check_runs(against)
            model, other = read_both(folder, against)
        sizes = batch_size or BATCHES
        examples: list[dict[str, Any]] = [inputs] if inputs is not None else []
        examples = examples or [drawn_inputs(model, rows, tokens, seed) for rows in sizes]
        examples = [to_device(example, place) for example in examples]
        for one in filter(None, (model, other)):
            one.to(place)
        with quiet():
            found = bench_model(
                model, examples, against=other, new_tokens=new_tokens, seconds=seconds
            )
        show(found, as_json)


def _check(data: Path | None, tokens: int | None, batch_size: list[int] | None) -> None:
    """Raise ArgumentError for sizes that cannot be, and for those of inputs that are not drawn."""
    given = [("--tokens", tokens), *(("--batch-size", one) for one in batch_size or ())]
    for option, value in given:
        if value is not None and data is not None:
            raise ArgumentError(
                f"{option} is of drawn inputs, and --data has its own; leave out one"
            )
        if value is not None and value < 1:
            raise ArgumentError(f"{option} {value} must be at least 1")
