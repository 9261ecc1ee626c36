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


def check_gram(gram: Any, n: int, like: Tensor) -> Tensor:
    """`gram` as a checked symmetric (n, n) float64 matrix on the device of `like`.

    Raises ShapeError where it is not (n, n), ArgumentError where it is not finite, on another
    device, not symmetric or has a negative diagonal.
    """
    matrix = as_tensor(gram, "gram")
    if tuple(matrix.shape) != (n, n):
        raise ShapeError(
            f"gram has shape {tuple(matrix.shape)}; the weight as a matrix has {n} columns, so the "
            f"second moments X X^T / N of its inputs are ({n}, {n})"
        )
    if matrix.device != like.device:
        raise ArgumentError(
            f"gram is on {matrix.device} but the weight is on {like.device}; move it with .to()"
        )
    matrix = matrix.detach().to(torch.float64)
    # Two products with a vector of signs, which no pattern of G is likely to be orthogonal to,
    # tell symmetry from its absence; G - G^T itself would read a large matrix across its rows.
    signs = torch.ones(n, dtype=torch.float64, device=matrix.device)
    signs[torch.arange(n, device=matrix.device) * 7919 % 104729 % 3 == 0] = -1.0
    forward, backward = matrix @ signs, matrix.T @ signs
    scale = float(matrix.diagonal().abs().max())
    skew = float((forward - backward).abs().max())
    if skew > 1e-3 * scale * n**0.5:
        raise ArgumentError(
            f"gram is not symmetric (its rows and columns differ by {skew:.3g} in a product, with "
            f"{scale:.3g} the largest entry of its diagonal); pass X @ X.T / N"
        )
    if float(matrix.diagonal().min()) < -1e-6 * scale:
        raise ArgumentError(
            "gram has a negative entry on its diagonal; second moments X X^T / N cannot have one"
        )
    return matrix if skew <= 1e-13 * scale * n**0.5 else (matrix + matrix.T) / 2


def input_metric(gram: Any, mean: Any, n: int, like: Tensor) -> Tensor:
    """`gram` as checked by `check_gram`, about `mean` (n,) where that is given.

    Raises ShapeError or ArgumentError for a mean of another length or device, or one that the
    second moments contradict: G - mean mean^T has no negative diagonal.
    """
    matrix = check_gram(gram, n, like)
    if mean is None:
        return matrix
    mu = as_tensor(mean, "mean", min_order=1)
    if tuple(mu.shape) != (n,):
        raise ShapeError(f"mean has shape {tuple(mu.shape)}; the mean input is ({n},)")
    if mu.device != like.device:
        raise ArgumentError(
            f"mean is on {mu.device} but the weight is on {like.device}; move it with .to()"
        )
    mu = mu.detach().to(torch.float64)
    variances = matrix.diagonal() - mu.square()
    if float(variances.min()) < -1e-6 * float(matrix.diagonal().abs().max()):
        raise ArgumentError(
            "mean contradicts gram: a variance G_ii - mean_i^2 is negative; give both over the "
            "same inputs"
        )
    eps = max(
        float((torch.finfo if isinstance(given, Tensor) else np.finfo)(given.dtype).eps)
        for given in (gram, mean)
    )
    return about_mean(matrix, mu, eps)


def about_mean(gram: Tensor, mean: Tensor, eps: float) -> Tensor:
    """G - mean mean^T, (n, n), where inputs that do not vary have no variance: what is left of it
    when values of relative rounding `eps` cancel has either sign."""
    centred = gram - torch.outer(mean, mean)
    constant = centred.diagonal() <= 16 * eps * gram.diagonal()
    centred[constant] = 0.0
    centred[:, constant] = 0.0
    return centred


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
