"""`tensorlrf compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from tensorlrf.cli._huggingface import quiet, read_tokenizer
from tensorlrf.cli._options import BatchSize, Debug, Json, Log, Threads, Tokens
from tensorlrf.cli._outcome import guard, show
from tensorlrf.cli._texts import batches_of, read_texts
from tensorlrf.cli.measure._models import check_runs, read_any, read_both, read_inputs
from tensorlrf.compression import Plan, Report
from tensorlrf.compression import compare as compare_models
from tensorlrf.compression.metrics.windows import BATCH, TOKENS
from tensorlrf.errors import ArgumentError, FileError, FileFormatError


def compare(
    a: Annotated[
        Path,
        typer.Argument(
            metavar="A", help="A model folder, a file of ours, or the JSON of a report or a plan."
        ),
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text to compare outputs on, again for more: documents between blank lines "
            "or, without these, one a line. For two folders.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Or a .safetensors of inputs, by their names."),
    ] = None,
    tokens: Tokens = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    log: Log = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How two models differ: layers and ranks side by side, weights, and on inputs the outputs.

    Of files the factored layers alone are known, of reports and plans no weights.

    \b
    Examples:
      tensorlrf compare minilm/ minilm-small/ --text held_out.txt
      tensorlrf compare small.safetensors smaller.safetensors
      tensorlrf compare plan.json other.json
    """
    with guard(debug, None, log, "compare", threads):
        if text and data is not None:
            raise ArgumentError("--text and --data are both inputs; give one of them")
        for option, given in (("--tokens", tokens), ("--batch-size", batch_size)):
            if given is not None and not text:
                raise ArgumentError(f"{option} needs --text, from which the inputs come")
        if text or data is not None:
            check_runs(a)
            check_runs(b)
        texts = read_texts(text) if text else None
        batches: Any = None if data is None else [read_inputs(data)]
        one, other = _both(a, b)
        if texts is not None:
            with quiet():
                batches, _ = batches_of(
                    texts, read_tokenizer(a), one,
                    tokens=TOKENS if tokens is None else tokens,
                    batch_size=BATCH if batch_size is None else batch_size,
                    max_batches=None, seed=0,
                )  # fmt: skip
        show(compare_models(one, other, batches), as_json)


def _both(a: Path, b: Path) -> tuple[Any, Any]:
    if a.is_dir() and b.is_dir():
        return read_both(a, b)
    return _one(a), _one(b)


def _one(path: Path) -> nn.Module | Path | Report | Plan:
    if path.is_dir():
        return read_any(path)
    if not path.exists():
        raise FileError(f"{path} is not there; give a folder, a .safetensors or a .json")
    if path.suffix != ".json":
        return path
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is no text: {error}") from None
    try:
        return Report.from_json(text)
    except FileFormatError as error:
        first = error
    try:
        return Plan.from_json(text)
    except FileFormatError as error:
        raise FileFormatError(f"{path} is neither: {first}; {error}") from None
