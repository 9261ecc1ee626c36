"""`tensorlrf bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
)
from tensorlrf.compression import bench as bench_model
from tensorlrf.compression.metrics.windows import TOKENS
from tensorlrf.errors import ArgumentError

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
        if data is not None and (tokens is not None or batch_size):
            drawn = "--tokens" if tokens is not None else "--batch-size"
            raise ArgumentError(
                f"{drawn} is of drawn inputs, and --data has its own; leave out one"
            )
        for option, value, least in (
            *(("--batch-size", one, 1) for one in batch_size or ()),
            ("--tokens", TOKENS if tokens is None else tokens, 1),
        ):
            if value < least:
                raise ArgumentError(f"{option} {value} must be at least {least}")
        inputs = None if data is None else read_inputs(data)
        other = None
        if against is None:
            model = read_any(folder)
        else:
            check_runs(against)
            model, other = read_both(folder, against)
        examples: list[dict[str, Any]] = (
            [
                drawn_inputs(model, rows, TOKENS if tokens is None else tokens, seed)
                for rows in batch_size or BATCHES
            ]
            if inputs is None
            else [inputs]
        )
        with quiet():
            found = bench_model(
                model, examples, against=other, new_tokens=new_tokens, seconds=seconds
            )
        show(found, as_json)
