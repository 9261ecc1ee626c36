"""The model that a checkpoint is of: as its config.json tells, or as names and shapes do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._survey import Surveyed, survey
from tensorlrf.compression._unpacked import unpacked
from tensorlrf.compression.checkpoint.by_name import FLOATS, NamedLayers, layers_by_name
from tensorlrf.compression.checkpoint.named_tensors import LASTING, NamedTensor, named_tensors
from tensorlrf.compression.checkpoint.renamed import names_in
from tensorlrf.compression.checkpoint.source import CONFIG, blank, config_of
from tensorlrf.compression.scale.derived import joined_by, part_of
from tensorlrf.compression.scale.stored import Derived, StoredTensors
from tensorlrf.errors import ArgumentError, MissingExtraError, TensorlrfError, UnsupportedError
from tensorlrf.files.safetensors import TORCH_DTYPES
from tensorlrf.nn.copies import copy_of
from tensorlrf.nn.packed.unpacked import unpacked_type

ROOM = 1 << 26
"""Bytes that the buffers which a model makes itself may have, or as many as the checkpoint has."""

PACKED = (
    "its matrices lie packed in one tensor, which a run by layers leaves as it is; "
    "tensorlrf.compress takes it apart, with the model in memory"
)


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint is of.

    model     its modules, parameters on meta. Of `exact` ones buffers that are in no file have
              values, where the model has any on the CPU
    exact     whether it is the model itself, not layers that were told by names and shapes
    sources   name of a parameter or persistent buffer, by every place that it has -> its name in
              the files. Tensors that are tied have one for all
    left_out  names in the files of what the model has no use for, or has under another name too
    notes     what a report is to tell of how all this came about
    apart     whether modules that keep several matrices in one tensor have a layer for each. Then
              the packed tensors are among the sources, too
    derived   name -> a tensor among the sources that lies in no file as it is
    """

    model: nn.Module
    exact: bool
    sources: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    named: NamedLayers | None = field(default=None, repr=False)
    apart: bool = False
    derived: Mapping[str, Derived] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, stored: StoredTensors, *, apart: bool = False) -> Architecture:
        """That of config.json where the source is a folder with one, transformers is there, and
        the model has the tensors of the files; else what names and shapes tell, and why, unless
        there is nothing else to go by.

        apart  whether packed modules are to have a layer for each matrix, and tensors may be such
               as transformers puts together while it loads
        """
        if stored.path.is_dir() and (stored.path / CONFIG).is_file():
            try:
                return _exact(stored, stored.path, apart=apart)
            except MissingExtraError:
                pass
            except TensorlrfError as error:
                return _by_name(
                    stored,
                    "layers are told by names and shapes, and tensorlrf.load needs model= with "
                    f"these names: {error}",
                )
        return _by_name(stored)

    @classmethod
    def given(cls, model: nn.Module, stored: StoredTensors, *, apart: bool = False) -> Architecture:
        """That of a model of the user's, perhaps on meta, which stays as it is.

        Raises UnsupportedError where tensors are missing in the files, or are of another shape.
        """
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model is a {type(model).__name__}; give the module of the files")
        found = _matched(model, stored, converts=apart)
        return _architecture(copy_of(model), stored, found, _notes(found.left_out), apart=apart)

    def survey(self) -> list[Surveyed]:
        """Modules with parameters and why those stay that do, as `survey` tells."""
        if self.apart:
            return survey(self.model)
        return [
            one if one.reason or unpacked_type(one.module) is None else replace(one, reason=PACKED)
            for one in survey(self.model)
        ]


def _by_name(stored: StoredTensors, *notes: str) -> Architecture:
    named = layers_by_name(stored.blanks())
    sources = {name: name for name in stored.places}
    return Architecture(named.model, False, sources, notes=notes, named=named)


def _exact(stored: StoredTensors, folder: Path, *, apart: bool) -> Architecture:
    """Raises TensorlrfError where that cannot be, or the files are of another model."""
    config = config_of(folder)
    if "quantization_config" in config:
        raise UnsupportedError(f"{CONFIG} says that weights are quantised")
    count = len(stored.places)
    model = blank(folder, count)
    found = _matched(model, stored, converts=apart)
    notes = _notes(found.left_out)
    try:
        model = _with_buffers(model, stored, lambda: blank(folder, count, _dtype(stored, config)))
    except TensorlrfError as error:
        notes.append(f"buffers that the model makes itself are not in the output: {error}")
    return _architecture(model, stored, found, notes, apart=apart)


def _architecture(
    model: nn.Module, stored: StoredTensors, found: _Matched, notes: list[str], *, apart: bool
) -> Architecture:
    sources, derived = found.sources, found.derived
    if apart:
        model, parts = _taken_apart(model, stored.with_derived(derived), sources)
        sources, derived = sources | {name: name for name in parts}, {**derived, **parts}
    return Architecture(
        model, True, sources, tuple(found.left_out), tuple(notes), apart=apart, derived=derived
    )


def _taken_apart(
    model: nn.Module, stored: StoredTensors, sources: Mapping[str, str]
) -> tuple[nn.Module, dict[str, Derived]]:
    """(the model with a layer for each matrix, the parameters that are new to it), which lie in the
    memory of those that they were parts of."""
    known = {id(one.tensor) for one in named_tensors(model)}
    packed = {
        one.tensor.untyped_storage()._cdata: sources[one.name]
        for one in named_tensors(model)
        if one.role in LASTING
    }
    made = unpacked(model)
    parts: dict[str, Derived] = {}
    for one in named_tensors(made):
        if id(one.tensor) in known or one.role not in LASTING:
            continue
        whole = packed[one.tensor.untyped_storage()._cdata]
        if sources.get(one.name) == whole and stored.info(whole).shape == one.tensor.shape:
            continue  # another object of the same name on the same memory
        if one.name in stored.places or one.name in stored.derived:
            raise UnsupportedError(
                f"the files have a tensor {one.name}, which is a part of another"
            )
        parts[one.name] = part_of(whole, one.tensor.detach(), stored)
    return made, parts


def _notes(left_out: list[str]) -> list[str]:
    if not left_out:
        return []
    some = ", ".join(left_out[:5]) + (", ..." if left_out[5:] else "")
    return [f"{len(left_out):,} tensors that the model does not need are left out: {some}"]


def _dtype(stored: StoredTensors, config: Mapping[str, Any]) -> torch.dtype:
    """In which transformers builds the model: what config.json says, or else the files."""
    told = config.get("dtype", config.get("torch_dtype"))
    dtype = getattr(torch, str(told).removeprefix("torch."), None)
    if dtype in FLOATS:
        return dtype  # type: ignore[no-any-return]  # one of these
    found = (TORCH_DTYPES[place.info.dtype] for place in stored.places.values())
    return next((dtype for dtype in found if dtype in FLOATS), torch.float32)


def _with_buffers(
    model: nn.Module, stored: StoredTensors, build: Callable[[], nn.Module]
) -> nn.Module:
    """The same model with values in what no file has, where there is any such thing."""
    own = [one.tensor for one in named_tensors(model) if one.role not in LASTING]
    size = sum(t.numel() * t.element_size() for t in own)
    if size > max(ROOM, stored.n_bytes):
        raise UnsupportedError(f"they have {size:,} bytes")
    if not own:
        return model
    made = build()
    if [one.name for one in named_tensors(made)] != [one.name for one in named_tensors(model)]:
        raise UnsupportedError("the model is another one when it is built on a device")
    return made


# ---- which tensor of the files is which of the model --------------------------------------------


@dataclass(frozen=True)
class _Matched:
    """sources  name in the model, by each of its places -> name in the files, or of a derived one
    left_out  names in the files that are not needed
    derived   tensors that are made of several
    """

    sources: dict[str, str]
    left_out: list[str]
    derived: dict[str, Derived]


def _matched(model: nn.Module, stored: StoredTensors, *, converts: bool) -> _Matched:
    """converts  whether tensors may be made of several

    Raises UnsupportedError where tensors are missing, of another shape or of a dtype that layers do
    not have, or where those that the model ties differ.
    """
    at: dict[str, list[str]] = {}
    same, makes = names_in(model, stored.places, converts=converts)
    for name, own in same.items():
        at.setdefault(own, []).append(name)
    derived: dict[str, Derived] = {
        one.name: one for rule in makes for one in joined_by(rule, stored)
    }
    stored = stored.with_derived(derived)
    for name in derived:
        at.setdefault(name, []).append(name)
    sources: dict[str, str] = {}
    used: set[str] = set()
    for places in _tied(model):
        files = [name for place in places for name in at.get(place.name, ())]
        if not files:
            raise UnsupportedError(
                f"{places[0].name} of the {type(model).__name__} is in none of the files"
            )
        for name in files:
            _check_fits(places[0], name, stored)
        for name in files[1:]:
            if not _equal(stored, files[0], name):
                raise UnsupportedError(f"{files[0]} and {name} differ, which the model has as one")
        sources |= {place.name: files[0] for place in places}
        used.update(stored.members(files[0]))
    return _Matched(sources, [name for name in stored.places if name not in used], derived)


def _tied(model: nn.Module) -> list[list[NamedTensor]]:
    """Parameters and persistent buffers, each with all its places."""
    held: dict[int, list[NamedTensor]] = {}
    for one in named_tensors(model):
        if one.role in LASTING:
            held.setdefault(id(one.tensor), []).append(one)
    return list(held.values())


def _check_fits(place: NamedTensor, name: str, stored: StoredTensors) -> None:
    info, wanted = stored.info(name), place.tensor
    dtype = TORCH_DTYPES[info.dtype]
    alike = dtype in FLOATS if wanted.is_floating_point() else dtype == wanted.dtype
    if info.shape != tuple(wanted.shape) or not alike:
        raise UnsupportedError(
            f"{name} is {info.shape} of dtype {dtype} in the files, and {place.name} "
            f"{tuple(wanted.shape)} of dtype {wanted.dtype} in the {type(place.module).__name__} "
            "of the model"
        )


def _equal(stored: StoredTensors, one: str, other: str) -> bool:
    """Whether the bytes of two tensors are the same."""
    a, b = stored.info(one), stored.info(other)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return stored.checksum(one) == stored.checksum(other)
