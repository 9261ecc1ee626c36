"""Checks and casts that every decomposition begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def as_tensor(value: Any, name: str = "tensor", *, min_order: int = 2) -> Tensor:
    """`value` (a torch tensor or a numpy array) as a checked floating-point tensor.

    Numpy arrays are shared, not copied, unless torch cannot have their memory. Raises ArgumentError
    for other types, integer, boolean and complex dtypes, NaN, Inf and empty tensors, and ShapeError
    below `min_order` modes.
    """
    if isinstance(value, np.ndarray):
        shared = (
            value.flags.writeable and value.dtype.isnative and min(value.strides, default=1) >= 0
        )
        value = torch.from_numpy(
            value if shared else np.array(value, dtype=value.dtype.newbyteorder("="))
        )
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"{name} is a {type(value).__name__}; pass a torch.Tensor or a numpy array"
        )
    if not value.is_floating_point():
        remedy = "take its real and imaginary parts apart" if value.is_complex() else "cast it"
        raise ArgumentError(
            f"{name} has dtype {value.dtype}; a decomposition needs floating point, {remedy} first"
        )
    if value.dtype not in FLOATS:
        raise ArgumentError(
            f"{name} has dtype {value.dtype}, which torch does not compute with; cast it to "
            "float16 or wider first"
        )
    if value.ndim < min_order:
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)}; at least {min_order} modes are needed"
        )
    if value.numel() == 0:
        raise ShapeError(f"{name} has shape {tuple(value.shape)}, which holds no element")
    # max|x| is NaN or Inf exactly when some element is, and needs no mask of the tensor's size.
    low, high = value.detach().aminmax()
    if not (torch.isfinite(low) & torch.isfinite(high)):
        kind = "NaN" if torch.isnan(low) | torch.isnan(high) else "Inf"
        raise ArgumentError(
            f"{name} contains {kind}; clean it first (torch.nan_to_num) or find where it came from"
        )
    return value


def check_sequence(value: Any, name: str, such_as: str) -> None:
    """Raise ArgumentError unless `value` is a list, a tuple or the like."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ArgumentError(f"{name}={value!r} must be a sequence, such as {such_as}")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, all else is raised to float32: LAPACK has neither bfloat16 nor float16."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def generator(random_state: int | torch.Generator | None, device: torch.device) -> torch.Generator:
    """A generator on `device`; torch's global one is left alone.

    An int seeds a new one, a Generator is used as it is (and advances), None draws a fresh seed.
    Raises ArgumentError for a Generator of another device and for anything else.
    """
    if isinstance(random_state, torch.Generator):
        if random_state.device.type != device.type:
            raise ArgumentError(
                f"random_state is a Generator on {random_state.device} but the tensor is on "
                f"{device}; make it with torch.Generator('{device}')"
            )
        return random_state
    fresh = torch.Generator(device)
    if random_state is None:
        fresh.seed()
    elif isinstance(random_state, int) and not isinstance(random_state, bool):
        fresh.manual_seed(random_state)
    else:
        raise ArgumentError(
            f"random_state={random_state!r} must be an int, a torch.Generator or None"
        )
    return fresh
