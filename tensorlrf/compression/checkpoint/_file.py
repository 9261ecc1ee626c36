"""Models to files and back: safetensors with a header from which the layers are rebuilt."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.checkpoint._header import KEY, Header, checksum_of, parse
from tensorlrf.compression.checkpoint._rebuild import unpack
from tensorlrf.compression.checkpoint._store import DTYPES, bytes_of, pack, pack_checkpoint
from tensorlrf.errors import ArgumentError, FileError, FileFormatError
from tensorlrf.factors import Factors
from tensorlrf.io import replacing

PathLike = str | os.PathLike[str]


def save(model: nn.Module, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a whole model, its factored layers included, to one file; `load` reads it.

    model      any module. Parameters, buffers (those that are not persistent too), tensors kept as
               plain attributes, what get_extra_state returns where that is JSON, ties between
               tensors; of factored layers also the recipe and the measured path tables. Not kept:
               hooks, and tensors in lists or dicts of a module
    path       a file, by custom with the suffix .safetensors. For a model of transformers also a
               folder, one that exists or a name without suffix: it gets tensorlrf.safetensors,
               config.json and generation_config.json, and loads without a `model`
    overwrite  whether what is there may be replaced

    Written to a temporary name and renamed, so that no half of a file is ever seen. Nothing is
    pickled. Raises FileError where `path` exists or cannot be written, UnsupportedError or
    ArgumentError that names the tensor or module that a file cannot hold.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    from tensorlrf.compression.checkpoint import _folder

    if _folder.is_for(model, path):
        _folder.save(model, Path(path), overwrite=overwrite)
        return
    check_target(path, overwrite)
    write(*pack(model), path)


def load(
    path: PathLike,
    model: nn.Module | None = None,
    *,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The model that `save` wrote.

    path    the file, or a folder with a model of transformers (needs the extra `hf`)
    model   the architecture: the dense model, with any weights or on the meta device
            (`with torch.device("meta"): Net()`), or the compressed model itself. It stays as it is.
            None for a folder only
    device  where the tensors go; by default each where its like in `model` is, from meta to the CPU

    dtypes are those of the file; training flags and requires_grad those of `model`. Buffers that
    are not persistent and tensors in plain attributes are those of `model` where it has values for
    them, in the dtype of the file, else those of the file.

    Raises FileError where there is nothing to read, and FileFormatError that names the tensor or
    module where the file is damaged, from a later version, or made for another architecture.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    target = _device(device)
    if Path(path).is_dir():
        from tensorlrf.compression.checkpoint import _folder

        return _folder.load(Path(path), model, target)
    if model is None:
        raise ArgumentError(
            f"model=None, but path={os.fspath(path)!r} is a file: pass the architecture, for "
            'instance built under `with torch.device("meta"):`'
        )
    with reading(path) as file:
        return unpack(file.header, file.tensor, model, target, os.fspath(path))


def write_checkpoint(
    path: PathLike,
    tensors: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    *,
    plan: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint whose model is not at hand, with factors in place of some weights.

    tensors  name -> tensor, of all others
    factors  name of a weight, "blocks.0.weight" -> its factors
    plan     name of a layer, "blocks.0" -> how its factors were made, as JSON values

    `load(path, model)` finds the layers by these names, and checks names and shapes alone. Raises
    as `save` does.
    """
    check_target(path, overwrite)
    write(*pack_checkpoint(tensors, factors, plan or {}), path)


# ---- files -------------------------------------------------------------------------------------


class Reading:
    """An open model file: its header, and its tensors one by one."""

    def __init__(self, file: Any, header: Header, path: str) -> None:
        self._file, self.header, self._path = file, header, path

    def tensor(self, name: str) -> Tensor:
        """Values on the CPU, row by row. Raises FileFormatError where their checksum differs."""
        value: Tensor = self._file.get_tensor(name).clone()  # the file's own are a map of it
        if checksum_of(bytes_of(value)) != self.header.tensors[name].checksum:
            raise FileFormatError(
                f"path={self._path!r}: the tensor {name!r} is damaged, its checksum does not fit; "
                "get the file anew"
            )
        return value


@contextmanager
def reading(path: PathLike) -> Iterator[Reading]:
    """Open a model file; its header is checked, and that it has the tensors which that names.

    Raises FileError where there is no file, FileFormatError where it is not as it should be.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not Path(path).is_file():
        raise FileError(f"path={name!r} is not a file; give one that tensorlrf.save wrote")
    try:
        with safe_open(name, framework="pt", device="cpu") as file:
            header = _header(name, file.metadata())
            _check_tensors(name, file, header)
            yield Reading(file, header, name)
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileError):
            raise
        if isinstance(error, PermissionError):
            raise FileError(f"path={name!r} cannot be read: {error}") from error
        raise FileFormatError(
            f"path={name!r} is damaged or not a safetensors file ({error}); get the file anew"
        ) from error


def write(tensors: Mapping[str, Tensor], header: Header, path: PathLike) -> None:
    """All or nothing. Raises FileError where the system refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    text = header.to_text()
    try:
        with replacing(path) as temporary:
            save_file(dict(tensors), temporary, metadata={KEY: text})
            # On the disk before the name is: a rename may outlive a loss of power, data may not.
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
    except (SafetensorError, OSError) as error:
        raise cannot_write(path, error) from error


def cannot_write(path: PathLike, error: Exception) -> FileError:
    """The error for a path that the system refuses to write."""
    return FileError(
        f"path={os.fspath(path)!r} cannot be written: {error}; nothing was left there, give a "
        "folder that exists, with room, that you may write to"
    )


def check_target(path: PathLike, overwrite: bool) -> None:
    """Raise FileError where `path` is a folder, or is there and may not be replaced."""
    target = Path(path)
    if target.is_dir():
        raise FileError(
            f"path={os.fspath(path)!r} is a folder; give the name of a file (folders are for "
            "models of transformers)"
        )
    if not overwrite and os.path.lexists(target):
        raise FileError(
            f"path={os.fspath(path)!r} exists; give another name, or overwrite=True to replace it"
        )


def _header(path: str, metadata: Mapping[str, str] | None) -> Header:
    text = (metadata or {}).get(KEY)
    if text is None:
        hint = "write one with tensorlrf.save"
        if "tensorlrf" in (metadata or {}):
            hint = "it holds factors, which tensorlrf.io.load_factors reads"
        raise FileFormatError(f"path={path!r} is no model file of tensorlrf; {hint}")
    return parse(text, path)


def _check_tensors(path: str, file: Any, header: Header) -> None:
    """The file has the tensors that the header names, of these shapes and dtypes, and no more."""
    found = set(file.keys())
    for name in sorted(found ^ set(header.tensors)):
        state = "is not in the header" if name in found else "is missing"
        raise FileFormatError(f"path={path!r}: the tensor {name!r} {state}; get the file anew")
    for name, stored in header.tensors.items():
        held = file.get_slice(name)
        shape, dtype = tuple(held.get_shape()), held.get_dtype()
        if shape != stored.shape or dtype != stored.dtype:
            raise FileFormatError(
                f"path={path!r}: the tensor {name!r} is {shape} of dtype {dtype}, the header says "
                f"{stored.shape} of dtype {stored.dtype}; get the file anew"
            )
        if dtype not in DTYPES.values():
            raise FileFormatError(f"path={path!r}: the tensor {name!r} has the dtype {dtype}")


def _device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).partition("\n")[0]
        raise ArgumentError(f"device={device!r} is not to be had here: {first}") from None
