"""One tensor out of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, FileError, FileFormatError
from tensorlrf.files.safetensors import opened

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_tensor(path: Path, name: str | None) -> Tensor:
    """The array of a .npy, or the tensor `name` of a .safetensors; the one it has where it is one.

    Arrays in any byte order and layout, float16 to float64, bfloat16. Raises FileError where there
    is no file, FileFormatError where it is damaged or of another kind, ArgumentError for a name or
    dtype that cannot be.
    """
    if path.suffix not in (".npy", ".safetensors"):
        raise FileFormatError(
            f"{path} is neither .npy nor .safetensors; save the tensor as one of these"
        )
    if not path.is_file():
        raise FileError(f"{path} is not a file; give a .npy or a .safetensors")
    return _npy(path, name) if path.suffix == ".npy" else _safetensors(path, name)


def _npy(path: Path, name: str | None) -> Tensor:
    import numpy as np

    if name is not None:
        raise ArgumentError(f"--name {name}: a .npy holds one array without a name; leave it out")
    try:
        array: Any = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of many kinds: numpy takes the header for a line of Python
        raise FileFormatError(
            f"{path} is damaged, or no .npy of numbers ({error}); write it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise FileFormatError(f"{path} is an archive of arrays; save the one with numpy.save")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise _wrong_dtype(path, str(array.dtype))
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _safetensors(path: Path, name: str | None) -> Tensor:
    with opened(path) as file:
        names = sorted(file.tensors)
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            told = "holds several tensors" if name is None else f"has no tensor {name!r}"
            raise ArgumentError(f"{path} {told}; give --name with one of {some(names)}")
        tensor = file.tensor(name)
    if tensor.dtype not in FLOATS:
        raise _wrong_dtype(path, str(tensor.dtype).removeprefix("torch."))
    return tensor


def some(names: list[str], most: int = 20) -> str:
    """The first of many names."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _wrong_dtype(path: Path, dtype: str) -> ArgumentError:
    return ArgumentError(
        f"{path} has dtype {dtype}; a decomposition needs float16, bfloat16, float32 or float64: "
        "cast it first"
    )
