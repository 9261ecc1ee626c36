"""What a user hands in as a sparse tensor, checked; and what is not served of it, by name."""

from __future__ import annotations

import math
from typing import Any

import torch

from tensorlrf.decomposition._input import check_dtype, check_room
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import SparseTensor


def as_sparse(value: Any, name: str = "tensor") -> SparseTensor:
    """`value` (a SparseTensor, or a sparse tensor of torch or scipy) as a checked sparse tensor.

    Raises ArgumentError for other dtypes than floating ones, coordinates that are there twice, NaN
    and Inf, of which the first is named, and ShapeError below two modes.
    """
    tensor = SparseTensor.of(value).detach()
    check_dtype(tensor.dtype, name)
    if len(tensor.shape) < 2:
        raise ShapeError(f"{name} has shape {tensor.shape}; at least 2 modes are needed")
    values = tensor.values
    if not tensor.nnz:
        return tensor
    low, high = map(float, values.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        at = int((~values.isfinite()).to(torch.int8).argmax())
        raise ArgumentError(
            f"{name} contains {float(values[at])} at {tuple(tensor.coordinates[:, at].tolist())}; "
            "clean it first (torch.nan_to_num on its values) or find where it came from"
        )
    largest = max(abs(low), abs(high))

    def ratio() -> float:
        return float(torch.linalg.vector_norm(values / largest, dtype=torch.float64))

    check_room(tensor.dtype, tensor.nnz, largest, ratio, name)
    return tensor


def refuse_options(method: str, **options: tuple[Any, Any]) -> None:
    """Raise UnsupportedError for the first of these options (its value, the default) that is not as
    it is by default."""
    for name, (value, usual) in options.items():
        same = value is usual or (isinstance(value, (int, float, str)) and value == usual)
        if not same:
            shown = (
                f"{name}="
                if usual is None and not isinstance(value, (int, float, str))
                else (f"{name}={value!r}")
            )
            raise UnsupportedError(
                f"{method} of a sparse tensor does not serve {shown}; leave it out, or pass the "
                "tensor's .to_dense() if there is room for it"
            )


def one_int(rank: Any) -> int:
    """A rank that is a count: a share of the parameters of all entries says little of a tensor that
    is stored without its zeros. Raises UnsupportedError for others."""
    if isinstance(rank, (float, str)):
        raise UnsupportedError(
            f"rank={rank!r} counts parameters of a dense tensor; of a sparse one give rank as an "
            "int"
        )
    return rank  # type: ignore[no-any-return]  # what else it is, is checked where it is read
