"""Checks and casts that every decomposition begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors.arrays import as_dense

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
    tensor = as_dense(value, name)
    if not tensor.is_floating_point():
        remedy = "take its real and imaginary parts apart" if tensor.is_complex() else "cast it"
        raise ArgumentError(
            f"{name} has dtype {tensor.dtype}; a decomposition needs floating point, {remedy} first"
        )
    if tensor.dtype not in FLOATS:
        raise ArgumentError(
            f"{name} has dtype {tensor.dtype}, which torch does not compute with; cast it to "
            "float16 or wider first"
        )
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
    _check_room(tensor, largest, name)
    return tensor, largest


def _check_room(tensor: Tensor, largest: float, name: str) -> None:
    """Raise ArgumentError where entries or their norm are at the end of what the dtype holds.

    Entries of an approximation may be larger than any of the tensor, though not than its norm; and
    a norm in float64 has nothing wider to be computed in. float16 is exempt: its factors share out
    what one of them could not hold, and a weight of its largest numbers is no accident of scale.
    """
    end = torch.finfo(tensor.dtype).max
    room = 0.5 if tensor.dtype == torch.float64 else 4.0
    if tensor.dtype == torch.float16 or largest * max(4, math.sqrt(tensor.numel()) / room) <= end:
        return
    share = float(torch.linalg.vector_norm(tensor.detach() / largest, dtype=torch.float64))
    if max(4, share / room) * (largest / end) > 1:
        raise ArgumentError(
            f"{name} has entries up to {largest:.3g} and a norm {share:.3g} times that, too near "
            f"{end:.3g}, the largest number of {tensor.dtype}; divide it by a power of two first"
        )


def check_sequence(value: Any, name: str, such_as: str) -> None:
    """Raise ArgumentError unless `value` is a list, a tuple or the like."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ArgumentError(f"{name}={value!r} must be a sequence, such as {such_as}")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, all else is raised to float32: LAPACK has neither bfloat16 nor float16."""
    return torch.float64 if dtype == torch.float64 else torch.float32
