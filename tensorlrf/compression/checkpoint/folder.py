"""A folder with a model of transformers or diffusers: its configuration beside its tensors."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorlrf.compression.checkpoint import source
from tensorlrf.compression.checkpoint._reading import reading
from tensorlrf.compression.checkpoint._rebuild import unpack
from tensorlrf.compression.checkpoint._store import pack
from tensorlrf.compression.checkpoint.header import KEY, Header
from tensorlrf.compression.checkpoint.pretrained.card import CARD, is_own, write_card
from tensorlrf.compression.checkpoint.pretrained.marks import DIFFUSERS, library_of
from tensorlrf.compression.checkpoint.pretrained.of_diffusers import weights_of, write_config
from tensorlrf.compression.checkpoint.pretrained.quantization import (
    QUANTIZATION,
    Quantization,
    check_bare,
    guard,
)
from tensorlrf.compression.checkpoint.pretrained.standard import (
    dtype_of,
    fitted,
    lasting_in,
    reading_plain,
    told_in,
)
from tensorlrf.compression.checkpoint.renamed import names_out
from tensorlrf.compression.checkpoint.source import (
    CONFIG,
    DIFFUSERS_WEIGHTS,
    GENERATION,
    PLAIN_WEIGHTS,
)
from tensorlrf.compression.checkpoint.source import TENSORS as TENSORS
from tensorlrf.errors import FileError, FileFormatError
from tensorlrf.files.folder import READY, filling, put_right
from tensorlrf.files.safetensors import write

WEIGHTS, INDEX = PLAIN_WEIGHTS
"""What a state dict has, for transformers and all that reads its folders."""

FILES = (TENSORS, CONFIG, GENERATION, *PLAIN_WEIGHTS, *DIFFUSERS_WEIGHTS)
"""What is ours to write in a folder: beside our own the configurations and what a state dict has,
for all that reads such folders."""


def is_for(model: nn.Module, path: Path) -> bool:
    """Whether the model is one of transformers or diffusers and the path a folder, or to become
    one."""
    if not library_of(model):
        return False
    return hasattr(model, "config") and (os.path.isdir(path) or not path.suffix)


def save(model: Any, path: Path, *, overwrite: bool) -> None:
    """Put the tensors and the configuration into a folder, which is made where it is missing."""
    names = (*FILES, CARD) if is_own(path) else FILES
    with filling(path, names=names, overwrite=overwrite) as folder:
        write_files(model, folder)
        if CARD in names:
            write_card(folder, model)


def write_files(model: Any, folder: Path) -> None:
    """Write the tensors and the configuration, to a folder that nobody sees yet."""
    check_bare(model)
    tensors, header = pack(model)
    lasting = lasting_in(header)
    told = Quantization.of(header)
    names = names_out(model, [*lasting, *told.guards])
    held = {names[name]: tensor for name, tensor in tensors.items() if name in lasting}
    own = {name: tensor for name, tensor in tensors.items() if name not in lasting}
    guards = {names[name]: guard() for name in told.guards}
    weights = weights_of(model)
    header = replace(
        header,
        tensors={names.get(name, name): stored for name, stored in header.tensors.items()},
        slots=tuple(replace(one, tensor=names.get(one.tensor, one.tensor)) for one in header.slots),
        shards={**dict.fromkeys(held, weights), **dict.fromkeys(own, TENSORS)},
    )
    write(folder / weights, {**held, **guards}, {"format": "pt"})
    write(folder / TENSORS, own, {KEY: header.to_text()})
    if library_of(model) == DIFFUSERS:
        write_config(model, told, folder)
        return
    (folder / CONFIG).write_text(_config(model, told), encoding="utf-8")
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
    if (path / TENSORS).is_file():
        with reading(path / TENSORS) as file:
            if model is not None:
                return unpack(file.header, file.tensor, model, device, file.path)
            blank = _blank(path, len(file.header.tensors))
            _check_told(path, file.header)
            loaded: Any = unpack(file.header, file.tensor, blank, device, file.path)
    else:
        loaded = _load_plain(path, model, device)
        if model is not None:
            return loaded  # type: ignore[no-any-return]  # a module
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


def _check_told(path: Path, header: Header) -> None:
    """Raise FileFormatError where the configuration says of the layers what the header does not."""
    told = told_in(path)
    if told is not None and told.to_json() != Quantization.of(header).to_json():
        raise FileFormatError(
            f"path={os.fspath(path)!r}: {QUANTIZATION} of {CONFIG} is not of the layers in "
            f"{TENSORS}; get the folder anew"
        )


def _load_plain(path: Path, model: nn.Module | None, device: torch.device | None) -> nn.Module:
    """That of a folder without a header of ours, which save_pretrained wrote."""
    told = told_in(path)
    if told is None:
        raise FileError(
            f"path={os.fspath(path)!r} is a folder without {TENSORS}, and its {CONFIG} tells of no "
            "factored layers; give one that tensorlrf.save or save_pretrained wrote"
        )
    with reading_plain(path, told) as file:
        blank = model
        if blank is None:
            blank = _blank(path, len(file.header.tensors), dtype_of(file.header))
        header, structured = fitted(file, told, blank)
        return unpack(header, file.tensor, structured, device, file.path)


def _blank(path: Path, tensors: int, dtype: torch.dtype | None = None) -> nn.Module:
    try:
        return source.blank(path, tensors, dtype)
    except FileFormatError as error:
        raise FileFormatError(f"{error}; or pass the architecture as model=") from error


def _config(model: Any, told: Quantization) -> str:
    """config.json as save_pretrained writes it."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    vars(config).pop(QUANTIZATION, None)
    if told.layers:
        setattr(config, QUANTIZATION, told.to_json())
    text: str = config.to_json_string()
    return text
