"""A folder with a model of transformers: its configuration beside the file of its tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorlrf.compression.checkpoint import source
from tensorlrf.compression.checkpoint._reading import reading
from tensorlrf.compression.checkpoint._rebuild import unpack
from tensorlrf.compression.checkpoint._store import pack
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.compression.checkpoint.source import CONFIG, GENERATION
from tensorlrf.errors import FileError, FileFormatError
from tensorlrf.files.folder import READY, filling, put_right
from tensorlrf.files.safetensors import write

TENSORS = "tensorlrf.safetensors"
FILES = (TENSORS, CONFIG, GENERATION)


def is_for(model: nn.Module, path: Path) -> bool:
    """Whether the model is one of transformers and the path a folder, or to become one."""
    if not any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__):
        return False
    return hasattr(model, "config") and (os.path.isdir(path) or not path.suffix)


def save(model: Any, path: Path, *, overwrite: bool) -> None:
    """Put the tensors and the configuration into a folder, which is made where it is missing."""
    with filling(path, names=FILES, overwrite=overwrite) as folder:
        write_files(model, folder)


def write_files(model: Any, folder: Path) -> None:
    """Write the tensors and the configuration, to a folder that nobody sees yet."""
    tensors, header = pack(model)
    write(folder / TENSORS, tensors, {KEY: header.to_text()})
    (folder / CONFIG).write_text(_config(model), encoding="utf-8")
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        (folder / GENERATION).write_text(generation.to_json_string(), encoding="utf-8")


def load(path: Path, model: nn.Module | None, device: torch.device | None) -> nn.Module:
    """The model of a folder, in eval mode with its generation config."""
    while True:
        put_right(path)
        before = _identity(path / TENSORS)
        try:
            return _load(path, model, device)
        except (FileError, FileFormatError):
            # Unless another was put there meanwhile, of which this may have seen a part.
            if _identity(path / TENSORS) == before and not os.path.lexists(path / READY):
                raise


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from one that replaces it."""
    try:
        found = os.lstat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _load(path: Path, model: nn.Module | None, device: torch.device | None) -> nn.Module:
    name = os.fspath(path)
    source.check_inside(path, FILES)
    if not (path / TENSORS).is_file():
        raise FileError(
            f"path={name!r} is a folder without {TENSORS}; give one that tensorlrf.save wrote"
        )
    with reading(path / TENSORS) as file:
        if model is not None:
            return unpack(file.header, file.tensor, model, device, os.fspath(path / TENSORS))
        try:
            blank = source.blank(path, len(file.header.tensors))
        except FileFormatError as error:
            raise FileFormatError(f"{error}; or pass the architecture as model=") from error
        loaded: Any = unpack(file.header, file.tensor, blank, device, os.fspath(path / TENSORS))
    if (path / GENERATION).is_file():
        from transformers import GenerationConfig

        try:
            loaded.generation_config = GenerationConfig.from_pretrained(name, **source.SAFE)
        except Exception as error:  # of many kinds, for whatever is wrong with it
            raise FileFormatError(
                f"path={name!r}: transformers cannot read {GENERATION}: "
                f"{error or type(error).__name__}"
            ) from error
    whole: nn.Module = loaded.eval()
    return whole


def _config(model: Any) -> str:
    """config.json as save_pretrained writes it."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    text: str = config.to_json_string()
    return text
