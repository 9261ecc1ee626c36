"""`tensorlrf inspect`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tensorlrf import io
from tensorlrf.cli._huggingface import quiet
from tensorlrf.cli._options import Debug, Html, Json
from tensorlrf.cli._outcome import Printable, guard, show, write_page
from tensorlrf.cli._targets import check_page
from tensorlrf.compression import FileReport
from tensorlrf.compression import inspect as inspect_model
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.errors import ArgumentError, printable
from tensorlrf.factors import Factors
from tensorlrf.files.safetensors import opened


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file, or a folder with one.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of it and check the tensors too.")
    ] = False,
    html: Html = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a file that `compress`, `decompose` or tensorlrf.save wrote holds.

    \b
    Examples:
      tensorlrf inspect small.safetensors
      tensorlrf inspect minilm-small/ --verify --html small.html
    """
    with guard(debug):
        check_page(html)
        found = _report(path, verify)
        if isinstance(found, FileReport):
            write_page(html, found, path, "as it is stored")
        elif html is not None:
            raise ArgumentError(f"--html is for files with a model; {path} holds factors alone")
        show(found, as_json)


@dataclass(frozen=True)
class _FactorsFile:
    """A file of factors without a model. All of it has been read and checked."""

    path: Path
    factors: dict[str, Factors]
    sealed: bool

    def to_json(self) -> str:
        """As JSON text."""
        rows = [
            {
                "name": name,
                "format": f.format,
                "rank": f.rank,
                "shape": f.shape,
                "dtype": str(f.dtype).removeprefix("torch."),
                "params": f.n_params,
            }
            for name, f in self.factors.items()
        ]
        return json.dumps({"path": str(self.path), "verified": self.sealed, "factors": rows})

    def __str__(self) -> str:
        lines = [
            f"{printable(name)}: {f!r}" if name else repr(f) for name, f in self.factors.items()
        ]
        told = (
            "checksums of the header and of all tensors are right"
            if self.sealed
            else "written before files of factors had checksums: whether a number is another "
            "cannot be told; save them again"
        )
        return "\n".join([f"{printable(str(self.path))}, factors", *lines, told])


def _report(path: Path, verify: bool) -> Printable:
    if path.is_file():
        with opened(path) as file:
            holds_factors = io.KEY in file.metadata and KEY not in file.metadata
        if holds_factors:
            found = io.read(path)
            return _FactorsFile(path, found.factors, found.sealed)
    with quiet() if verify and path.is_dir() else nullcontext():
        return inspect_model(path, verify=verify)
