"""Checks that the ops share. They look at shapes, dtypes and devices, never at values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors import Factors
from tensorlrf.factors.arrays import why_not_dense


def check_tensor(value: Any, name: str) -> None:
    """value is a dense tensor."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{name} is a {type(value).__name__}; pass a torch.Tensor")
    if (unfit := why_not_dense(value)) is not None:
        raise ArgumentError(f"{name} {unfit}")


def check_input(x: Tensor, factors: Factors) -> None:
    """x is a dense tensor of the dtype and on the device of the factors."""
    check_tensor(x, "x")
    if x.dtype != factors.dtype:
        raise ArgumentError(
            f"x has dtype {x.dtype}, the factors {factors.dtype}; cast one of them with .to()"
        )
    if x.device != factors.device:
        raise ArgumentError(
            f"x is on {x.device}, the factors on {factors.device}; move one of them with .to()"
        )


def check_bias(bias: Tensor | None, size: int, factors: Factors) -> None:
    """bias is None or (size,), of the dtype and on the device of the factors."""
    if bias is None:
        return
    check_tensor(bias, "bias")
    if tuple(bias.shape) != (size,):
        raise ShapeError(f"bias has shape {tuple(bias.shape)}; it must be ({size},), one an output")
    if bias.dtype != factors.dtype or bias.device != factors.device:
        raise ArgumentError(
            f"bias is {bias.dtype} on {bias.device}, the factors {factors.dtype} on "
            f"{factors.device}; bring them together with .to()"
        )


def check_path(path: str, paths: tuple[str, ...]) -> None:
    """path is one of those that the format has."""
    if path not in paths:
        raise unknown("path", path, paths)


def padding_row(padding_idx: int | None, rows: int) -> int | None:
    """`padding_idx` counted from the start. Raises ArgumentError where it is no row."""
    if padding_idx is None:
        return None
    whole = isinstance(padding_idx, int) and not isinstance(padding_idx, bool)
    if not whole or not -rows <= padding_idx < rows:
        raise ArgumentError(
            f"padding_idx={padding_idx!r} must be None or a row of the table, from {-rows} to "
            f"{rows - 1}"
        )
    return padding_idx % rows


def check_defaults(why: str, **options: tuple[Any, Any]) -> None:
    """Raise ArgumentError, with the reason, for an option that is given where there is none: each
    is (value, default)."""
    for name, (value, default) in options.items():
        if value != default:
            raise ArgumentError(f"{name}={value!r}: {why}")


def check_is_conv(factors: Factors, **options: tuple[Any, Any]) -> None:
    """Raise ArgumentError for an option of convolutions, (value, default), where the factors stand
    for the matrix of a linear layer."""
    if len(factors.shape) == 2:
        shape = " x ".join(map(str, factors.shape))
        why = (
            f"factors stand for a matrix {shape}, whose layer is linear and has none; leave it out"
        )
        check_defaults(why, **options)
