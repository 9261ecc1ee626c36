"""`tensorlrf decompose`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from tensorlrf import io
from tensorlrf.cli._arrays import read_tensor
from tensorlrf.cli._options import Debug, Force, Json, Seed, Target
from tensorlrf.cli._outcome import guard, show
from tensorlrf.cli._targets import check_file
from tensorlrf.decomposition import Fit
from tensorlrf.decomposition.methods import find, installed, names, registered
from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError, RankError, printable


def words_of_methods() -> str:
    """For the help: those that are there, and those of installed packages, which are not loaded."""
    return f"{', '.join((*names('tensor'), *installed()))}."


def decompose(
    tensor: Annotated[Path, typer.Argument(metavar="TENSOR", help="A .npy or a .safetensors.")],
    target: Target,
    method: Annotated[
        str, typer.Option("--method", metavar="WORD", help=words_of_methods())
    ] = "svd",
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            metavar="R",
            help="32; 8,8,3 for tucker; .25, the share of the numbers to keep; same; or auto.",
        ),
    ] = None,
    error: Annotated[
        float | None, typer.Option("--error", help="Relative error to stay within, for --rank.")
    ] = None,
    modes: Annotated[
        str | None,
        typer.Option(
            "--modes",
            metavar="K,L",
            help="Modes that get a factor, for tucker; their order, for tt.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Which tensor of a .safetensors.")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """One tensor to factors; tensorlrf.io.load_factors reads them.

    \b
    Examples:
      tensorlrf decompose kernel.npy --method cp --rank 32 -o factors.safetensors
      tensorlrf decompose net.safetensors --name conv1.weight --method tucker --modes 0,1 \\
                --error .05 -o factors.safetensors
    """
    with guard(debug, target):
        check_file(target, tensor, force)
        given = read_tensor(tensor, name)
        start = time.perf_counter()
        fit = _fit(given, method, _rank(rank), error, _modes(modes), seed)
        seconds = time.perf_counter() - start
        io.save_factors(fit.factors, target, overwrite=force)
        show(_Summary.of(fit, given, target, seconds), as_json)


@dataclass(frozen=True)
class _Summary:
    """What became of the tensor. `error` is relative, of the factors as stored."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    rank: int | tuple[int, ...]
    params_before: int
    params_after: int
    error: float
    converged: bool
    reason: str
    seconds: float

    @classmethod
    def of(cls, fit: Fit[Any], tensor: Tensor, path: Path, seconds: float) -> _Summary:
        f = fit.factors
        return cls(
            str(path), tuple(tensor.shape), str(f.dtype).removeprefix("torch."), f.format, f.rank,
            tensor.numel(), f.n_params, fit.error, fit.converged, fit.reason, seconds,
        )  # fmt: skip

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        rank = ", ".join(map(str, self.rank)) if isinstance(self.rank, tuple) else self.rank
        share = self.params_after / self.params_before
        rows = {
            "tensor": f"{' x '.join(map(str, self.shape))}, {self.dtype}",
            "format": f"{self.format}, rank {rank}",
            "parameters": f"{self.params_before:,} to {self.params_after:,} ({share:.1%})",
            "relative error": f"{self.error:.4g}",
            "stopped": self.reason,
            "seconds": f"{self.seconds:.3g}",
            "file": printable(self.path),
        }
        return "\n".join(f"{key:<16}{value}" for key, value in rows.items())


def _fit(
    tensor: Tensor,
    method: str,
    rank: Rank | None,
    error: float | None,
    modes: tuple[int, ...] | None,
    seed: int,
) -> Fit[Any]:
    found = find(method, "tensor")
    if modes is not None and not found.with_modes:
        those = ", ".join(name for name in names("tensor") if registered(name).with_modes)
        raise ArgumentError(f"--modes is for --method {those}; {method} has no such option")
    options: dict[str, Any] = {"random_state": seed} if found.draws else {}
    if found.with_modes:
        options["modes"] = modes
    return found.fit(tensor, rank, error=error, **options)


def _rank(text: str | None) -> Rank | None:
    """ "32", "8,8", ".25", "same" or "auto" as what the functions take."""
    if text is None or text in ("same", "auto"):
        return text  # type: ignore[return-value]
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(","))
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise RankError(
            f"--rank {text} must be a number such as 32, several such as 8,8, a share such as .25, "
            "same, or auto"
        ) from None


def _modes(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"--modes {text} must be numbers such as 0,1") from None
