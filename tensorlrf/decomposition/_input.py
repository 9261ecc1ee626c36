"""Checks and casts that every decomposition begins with."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors.arrays import as_dense
from tensorlrf.factors.kinds import is_sparse

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def as_tensor(value: Any, name: str = "tensor", *, min_order: int = 2) -> Tensor:
    """`value` as a checked tensor: see `as_tensor_and_largest`."""
    return as_tensor_and_largest(value, name, min_order=min_order)[0]


def as_tensor_and_largest(
    value: Any, name: str = "tensor", *, min_order: int = 2
) -> tuple[Tensor, float]:
    """`value` (a torch tensor or a numpy array) as a checked floating-point tensor, and max|x|.

    Numpy arrays are shared, not copied, unless torch cannot have their memory. Raises ArgumentError
    for other types, what is not dense or has no values, integer, boolean and complex dtypes, NaN,
    Inf and empty tensors, and ShapeError below `min_order` modes.
    """
    _refuse_divided(value, name)
    if is_sparse(value):
        raise ArgumentError(
            f"{name} is sparse, which {SERVE_SPARSE} take as it is; for others pass .to_dense()"
        )
    try:
        tensor = as_dense(value, name)
    except MemoryError:
        raise ArgumentError(f"{name} has no room in memory; {_ELSEWHERE}") from None
    check_dtype(tensor.dtype, name)
    if tensor.ndim < min_order:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)}; at least {min_order} modes are needed"
        )
    if tensor.numel() == 0:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}, which holds no element")
    # max|x| is NaN or Inf exactly when some element is, and needs no mask of the tensor's size.
    values = tensor.detach() if tensor.requires_grad else tensor
    low, high = map(float, values.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        kind = "NaN" if math.isnan(low) or math.isnan(high) else "Inf"
        raise ArgumentError(
            f"{name} contains {kind}; clean it first (torch.nan_to_num) or find where it came from"
        )
    largest = max(abs(low), abs(high))

    def ratio() -> float:
        return float(torch.linalg.vector_norm(tensor.detach() / largest, dtype=torch.float64))

    check_room(tensor.dtype, tensor.numel(), largest, ratio, name)
    return tensor, largest


SERVE_SPARSE = "cp, tucker and svd"

_ELSEWHERE = "tensorlrf.large has cp, tucker, tt and svd that read it in slabs (memory_limit=)"


def _refuse_divided(value: Any, name: str) -> None:
    """Raise ArgumentError, with what serves it, for what lies in a file or with several ranks."""
    if type(value).__name__ == "DTensor":
        raise ArgumentError(
            f"{name} is a DTensor, of which each rank has a part; tensorlrf.large has cp, tucker, "
            "tt and svd for it, or pass its full_tensor()"
        )
    if isinstance(value, (Tensor, np.ndarray, np.generic)) or is_sparse(value):
        return
    sliced = hasattr(value, "get_shape") or (hasattr(value, "shape") and hasattr(value, "dtype"))
    if sliced or isinstance(value, (str, os.PathLike)):
        raise ArgumentError(
            f"{name} is a {type(value).__name__}; pass a torch.Tensor or a numpy array; of a file "
            f"{_ELSEWHERE}"
        )


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Raise ArgumentError for what is not of floating point, or nothing that torch computes
    with."""
    if not dtype.is_floating_point:
        remedy = "take its real and imaginary parts apart" if dtype.is_complex else "cast it"
        raise ArgumentError(
            f"{name} has dtype {dtype}; a decomposition needs floating point, {remedy} first"
        )
    if dtype not in FLOATS:
        raise ArgumentError(
            f"{name} has dtype {dtype}, which torch does not compute with; cast it to "
            "float16 or wider first"
        )


def check_room(
    dtype: torch.dtype, count: int, largest: float, ratio: Callable[[], float], name: str
) -> None:
    """Raise ArgumentError where entries or their norm are at the end of what the dtype holds.

    `count` entries, of which `largest` is the largest; `ratio` gives their norm over that.

    Entries of an approximation may be larger than any of the tensor, though not than its norm; and
    a norm in float64 has nothing wider to be computed in. float16 is exempt: its factors share out
    what one of them could not hold, and a weight of its largest numbers is no accident of scale.
    """
    end = torch.finfo(dtype).max
    room = 0.5 if dtype == torch.float64 else 4.0
    if dtype == torch.float16 or largest * max(4, math.sqrt(count) / room) <= end:
        return
    share = ratio()
    if max(4, share / room) * (largest / end) > 1:
        raise ArgumentError(
            f"{name} has entries up to {largest:.3g} and a norm {share:.3g} times that, too near "
            f"{end:.3g}, the largest number of {dtype}; divide it by a power of two first"
        )


def check_sequence(value: Any, name: str, such_as: str) -> None:
    """Raise ArgumentError unless `value` is a list, a tuple or the like."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ArgumentError(f"{name}={value!r} must be a sequence, such as {such_as}")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, all else is raised to float32: LAPACK has neither bfloat16 nor float16."""
    return torch.float64 if dtype == torch.float64 else torch.float32
