"""What a user hands in as a tensor, as a dense tensor or as an error that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError

PLACES = torch.int32
"""The dtype of indices among factors."""

A = TypeVar("A", Tensor, np.ndarray[Any, Any])
"""Arrays of torch or of numpy, where they are worked on by what both have."""

SPARSE_LAYOUTS = (
    torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc,
)  # fmt: skip
"""Those of torch; not all that is not strided is sparse."""


def as_dense(value: Any, name: str) -> Tensor:
    """`value` (a torch tensor or a numpy array) as a dense tensor; arrays are shared, not copied,
    unless torch cannot have their memory.

    Raises ArgumentError for other types, for masked entries, and for tensors that are sparse,
    nested, quantized or on the meta device.
    """
    if isinstance(value, np.ndarray):
        value = _of_array(value, name)
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"{name} is a {type(value).__name__}; pass a torch.Tensor or a numpy array"
        )
    if (unfit := why_not_dense(value)) is not None:
        raise ArgumentError(f"{name} {unfit}")
    if value.is_meta:
        raise ArgumentError(
            f"{name} is on the meta device, where tensors have no values; load them first, as with "
            "to_empty(device='cpu') and load_state_dict"
        )
    return value


def why_not_dense(tensor: Tensor) -> str | None:
    """What keeps a tensor from being dense, and the remedy."""
    if tensor.is_nested:
        return "is a nested tensor, of several shapes; pass one tensor"
    if tensor.layout != torch.strided:
        return f"has the layout {tensor.layout}; pass .to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype}); pass .dequantize()"
    return None


def check_together(tensors: Mapping[str, Tensor], owner: str) -> None:
    """Check that all tensors of one factors object are float, of one dtype, on one device.

    Parameters
    ----------
    tensors : Mapping
        Name -> tensor.
    owner : str
        What an error begins with, the name of the format.

    Raises
    ------
    ArgumentError
        That names the tensor which is not, and the remedy.

    Examples
    --------
    >>> from tensorlrf.factors.arrays import check_together
    >>> check_together({"a": torch.ones(2), "b": torch.ones(3).double()}, "Mine")
    Traceback (most recent call last):
    tensorlrf.errors.ArgumentError: Mine: b is torch.float64 on cpu but a is torch.float32 on ...
    """
    first_name, first = next(iter(tensors.items()))
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise ArgumentError(f"{owner}: {name} is a {type(t).__name__}; pass a torch.Tensor")
        if (unfit := why_not_dense(t)) is not None:
            raise ArgumentError(f"{owner}: {name} {unfit}")
        if not t.is_floating_point():
            raise ArgumentError(
                f"{owner}: {name} has dtype {t.dtype}; factors are floating point, cast it first"
            )
        if t.dtype != first.dtype or t.device != first.device:
            raise ArgumentError(
                f"{owner}: {name} is {t.dtype} on {t.device} but {first_name} is {first.dtype} on "
                f"{first.device}; bring them together with .to()"
            )


def _of_array(array: np.ndarray[Any, Any], name: str) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ArgumentError(
                f"{name} has {int(np.ma.getmaskarray(array).sum())} masked entries; fill them, as "
                "with .filled(0), and give those that are known as mask=~array.mask where the "
                "decomposition takes it (svd, cp, tucker and tt)"
            )
        array = np.asarray(np.ma.getdata(array))
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8 * (
        1 + (array.dtype.kind == "c")
    ):
        raise ArgumentError(
            f"{name} is an array of dtype {array.dtype}, which torch does not have; cast it first, "
            "as with .astype('float64')"
        )
    shared = array.flags.writeable and array.dtype.isnative and min(array.strides, default=1) >= 0
    if not shared:
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)
