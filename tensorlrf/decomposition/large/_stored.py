"""What a divided tensor is read from: arrays, mapped files, slices of files, tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition._input import check_dtype
from tensorlrf.errors import (
    ArgumentError,
    FileError,
    FileFormatError,
    MissingFileError,
    ShapeError,
)
from tensorlrf.factors.arrays import as_dense

SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What `get_dtype` of a slice says."""


@dataclass(frozen=True)
class Stored:
    """A tensor somewhere, of which some of a mode can be had at a time.

    value   what is sliced
    shape   of it
    dtype   as torch has it
    device  where pieces come to
    order   its modes, the one whose steps in memory are longest first
    copies  whether a piece takes memory of its own as it is read
    """

    value: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    order: tuple[int, ...]
    copies: bool

    def piece(self, mode: int, start: int, stop: int) -> Tensor:
        """Those of `mode` from `start` up to `stop`, the others whole."""
        index = (slice(None),) * mode + (slice(start, stop),)
        value = self.value[index]
        if isinstance(value, Tensor):
            found = value.detach()
        else:
            found = torch.from_numpy(_shared(np.asarray(value)))
        wanted = (*self.shape[:mode], stop - start, *self.shape[mode + 1 :])
        if tuple(found.shape) != wanted:
            raise ShapeError(
                f"tensor says it has the shape {self.shape}, but its part from {start} to {stop} "
                f"along mode {mode} has {tuple(found.shape)}"
            )
        return found


def stored(value: Any, name: str = "tensor") -> Stored:
    """`value` as something that is read in pieces: a path of a .npy file, an array, mapped or not,
    a slice of a safetensors file, or what has `shape`, `dtype` and slicing.

    Raises ArgumentError for anything else, and for dtypes that are not in floating point;
    ShapeError for less than two modes; MissingFileError, FileError and
    FileFormatError of a path.
    """
    if isinstance(value, (str, os.PathLike)):
        value = _mapped(Path(value))
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentError(f"{name} is a masked array; fill it first, as with .filled(0)")
    if isinstance(value, Tensor):
        found = _of_tensor(as_dense(value, name).detach())
    elif isinstance(value, np.ndarray):
        found = _of_array(value, name)
    elif hasattr(value, "get_shape") and hasattr(value, "get_dtype"):
        found = _of_slice(value, name)
    else:
        found = _of_anything(value, name)
    check_dtype(found.dtype, name)
    if len(found.shape) < 2:
        raise ShapeError(f"{name} has shape {found.shape}; at least 2 modes are needed")
    return found


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    if path.suffix == ".safetensors":
        raise ArgumentError(
            f"tensor={str(path)!r} holds several tensors; pass one of them, as "
            "safe_open(path, 'pt').get_slice(name) has it"
        )
    if not path.is_file():  # a pipe would be waited for
        raise MissingFileError(f"tensor={str(path)!r}: there is no such file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise FileError(f"tensor={str(path)!r} cannot be read: {error.strerror}") from None
    except Exception as error:  # of many kinds: numpy takes the header for a line of Python
        raise FileFormatError(f"tensor={str(path)!r} is no whole .npy file: {error}") from None
    if not isinstance(array, np.ndarray):
        raise FileFormatError(f"tensor={str(path)!r} is no .npy file but an archive; unpack it")
    return array


def _of_tensor(tensor: Tensor) -> Stored:
    order = by_strides(tensor.stride())
    return Stored(tensor, tuple(tensor.shape), tensor.dtype, tensor.device, order, copies=False)


def _of_array(array: np.ndarray[Any, Any], name: str) -> Stored:
    dtype = _torch_dtype(array.dtype, name)
    whole = array.dtype.isnative and min(array.strides, default=1) >= 0
    host = torch.device("cpu")
    return Stored(array, array.shape, dtype, host, by_strides(array.strides), copies=not whole)


def _of_slice(value: Any, name: str) -> Stored:
    shape, word = tuple(value.get_shape()), str(value.get_dtype())
    if word not in SAFETENSORS:
        raise ArgumentError(
            f"{name} is a slice of dtype {word}; a decomposition needs {', '.join(SAFETENSORS)}"
        )
    return Stored(
        value, shape, SAFETENSORS[word], torch.device("cpu"), tuple(range(len(shape))), copies=True
    )


def _of_anything(value: Any, name: str) -> Stored:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if not isinstance(shape, Sequence) or dtype is None or not hasattr(value, "__getitem__"):
        raise ArgumentError(
            f"{name} is a {type(value).__name__}; pass the path of a .npy file, an array, a slice "
            "of a safetensors file, a DTensor, or what has shape, dtype and slicing"
        )
    kind = dtype if isinstance(dtype, torch.dtype) else _torch_dtype(np.dtype(dtype), name)
    sizes = tuple(int(n) for n in shape)
    return Stored(value, sizes, kind, torch.device("cpu"), tuple(range(len(sizes))), copies=True)


def by_strides(strides: Sequence[int]) -> tuple[int, ...]:
    """Modes in the order of their steps in memory, the longest first."""
    return tuple(sorted(range(len(strides)), key=lambda k: (-abs(strides[k]), k)))


def _torch_dtype(dtype: np.dtype[Any], name: str) -> torch.dtype:
    native = dtype.newbyteorder("=")
    if native.kind not in "biufc" or native.itemsize > 8 * (1 + (native.kind == "c")):
        raise ArgumentError(
            f"{name} is an array of dtype {dtype}, which torch does not have; cast it first, as "
            "with .astype('float64')"
        )
    return torch.from_numpy(np.empty(0, native)).dtype


class _Writable:
    """The memory of an array that may only be read, as one that torch takes without a word; nobody
    writes to it here."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array  # which keeps the memory
        told = dict(array.__array_interface__)
        told["data"] = (told["data"][0], False)
        self.__array_interface__ = told


def _shared(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same numbers where torch can have them, without a copy if that can be."""
    if not array.dtype.isnative or min(array.strides, default=1) < 0:
        return np.array(array, dtype=array.dtype.newbyteorder("="))
    if array.flags.writeable:
        return array
    if array.size == 0:  # which has no memory to share
        return array.copy()
    return np.asarray(_Writable(array))
