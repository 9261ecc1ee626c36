"""The folder of a model as transformers writes it: without a header of ours; config.json tells of
the factored layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorlrf.compression.checkpoint import source
from tensorlrf.compression.checkpoint._reading import Reading
from tensorlrf.compression.checkpoint.header import Header, Slot
from tensorlrf.compression.checkpoint.named_tensors import LASTING, named_tensors
from tensorlrf.compression.checkpoint.pretrained.held import missing
from tensorlrf.compression.checkpoint.pretrained.quantization import (
    METHOD,
    QUANTIZATION,
    Quantization,
    parsed,
)
from tensorlrf.compression.checkpoint.pretrained.structure import factored_tensors, give_structure
from tensorlrf.compression.checkpoint.renamed import found_in
from tensorlrf.compression.checkpoint.source import CONFIG
from tensorlrf.files.safetensors import TORCH_DTYPES, SafeFile, TensorInfo, opened
from tensorlrf.files.sealed import Stored
from tensorlrf.nn.copies import copy_of


def told_in(folder: Path) -> Quantization | None:
    """What the configuration of a folder says of factored layers; None where there is none such.

    Raises FileFormatError where it is damaged or of another version.
    """
    if not (folder / CONFIG).is_file():
        return None
    values = source.config_of(folder).get(QUANTIZATION)
    if not isinstance(values, dict) or values.get("quant_method") != METHOD:
        return None
    return parsed(values, str(folder / CONFIG))


def lasting_in(header: Header) -> set[str]:
    """The tensors of a file that a state dict has."""
    return {
        slot.tensor
        for slot in header.slots
        if any(role is None or role in LASTING for role in slot.at.values())
    }


@contextmanager
def reading_plain(folder: Path, told: Quantization) -> Iterator[Reading]:
    """Open the files; the header is made of what they and the configuration say, and the names of
    tensors are those of the files. Without checksums.

    Raises FileFormatError where a shard is missing, or a tensor that the configuration tells of.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(opened(path)) for path in source.weights_of(folder)]
        where: dict[str, SafeFile] = {}
        for file in files:
            where |= dict.fromkeys(file.tensors, file)
        held = {name: file.tensors[name] for name, file in where.items()}
        guards = [n for n, one in held.items() if n.endswith("weight") and one.shape == (0,)]
        for name in guards:
            del held[name]
        header = _header(told, held, {name: name for name in held})
        yield Reading(header, lambda name: where[name].tensor(name), str(folder))


def fitted(reading: Reading, told: Quantization, model: nn.Module) -> tuple[Header, nn.Module]:
    """(the header by the names that the model has, the model in the structure of the files).

    Raises FileFormatError, UnsupportedError where the two do not fit.
    """
    held = reading.header.tensors
    tensors: dict[int, Any] = {id(one.tensor): one.tensor for one in named_tensors(model)}
    structured = copy_of(model, tensors)
    give_structure(structured, told, set(held), reading.path)
    names = {old: new for new, old in found_in(structured, held).items()}
    header = replace(_header(told, held, names), resized=())
    there = {name for slot in header.slots for name in slot.at}
    for name, _ in factored_tensors(structured):
        if name not in there:
            raise missing(reading.path, name)
    return header, structured


def dtype_of(header: Header) -> torch.dtype:
    """Of the first tensor of floats."""
    dtypes = (TORCH_DTYPES[one.dtype] for one in header.tensors.values())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _header(
    told: Quantization, held: Mapping[str, TensorInfo | Stored], names: Mapping[str, str]
) -> Header:
    """names  of a tensor in the files -> in the model"""
    also: dict[str, list[str]] = {}
    for name, other in told.tied.items():
        also.setdefault(other, []).append(name)
    slots = [Slot(old, dict.fromkeys([new, *also.get(new, ())])) for old, new in names.items()]
    stored = {old: Stored(held[old].dtype, tuple(held[old].shape), "") for old in names}
    return Header(
        told.made_by,
        None,
        stored,
        tuple(slots),
        told.layers,
        told.plan,
        told.extra_state,
        told.resized,
        told.latents,
    )
