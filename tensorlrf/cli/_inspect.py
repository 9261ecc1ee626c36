"""`tensorlrf inspect`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tensorlrf import io
from tensorlrf.cli._options import Debug, Json
from tensorlrf.cli._outcome import Printable, guard, show
from tensorlrf.compression import inspect as inspect_model
from tensorlrf.errors import FileFormatError
from tensorlrf.factors import Factors


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file, or a folder with one.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of it and check the tensors too.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a file that `compress`, `decompose` or tensorlrf.save wrote holds.

    \b
    Examples:
      tensorlrf inspect small.safetensors
      tensorlrf inspect minilm-small/ --verify
    """
    with guard(debug):
        show(_report(path, verify), as_json)


@dataclass(frozen=True)
class _FactorsFile:
    """A file of factors without a model."""

    path: Path
    factors: dict[str, Factors]

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
        return json.dumps({"path": str(self.path), "factors": rows})

    def __str__(self) -> str:
        lines = [f"{name}: {f!r}" if name else repr(f) for name, f in self.factors.items()]
        return "\n".join([f"{self.path}, factors", *lines])


def _report(path: Path, verify: bool) -> Printable:
    try:
        return inspect_model(path, verify=verify)
    except FileFormatError:
        factors = _factors(path)
        if factors is None:
            raise
        return _FactorsFile(path, factors)


def _factors(path: Path) -> dict[str, Factors] | None:
    """The factors of a file that holds nothing else; None where it is no such file."""
    if not path.is_file():
        return None
    try:
        return {"": io.load_factors(path)}
    except FileFormatError:
        pass
    try:
        return io.load_factors_dict(path)
    except FileFormatError:
        return None
