"""Tensors of a model that lie in no file as they are: made of several, or parts of another one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.compression.checkpoint.renamed import Conversion
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import UnsupportedError
from tensorlrf.files.safetensors import DTYPES, TORCH_DTYPES, TensorInfo


@dataclass(frozen=True)
class Joined:
    """One that transformers makes of several, as the experts of a mixture.

    name  of the parameter
    info  its dtype and shape
    by    how it is made
    """

    name: str
    info: TensorInfo
    by: Conversion

    @property
    def members(self) -> tuple[str, ...]:
        """Names in the files."""
        return self.by.names

    def read(self, stored: StoredTensors) -> Tensor:
        """All of it."""
        return self.by.made(stored.read)[self.name].contiguous()

    def pieces(self, stored: StoredTensors) -> Iterator[Tensor]:
        """What follows one another in it, row by row."""
        if self.by.parts == 1:
            yield self.read(stored)
            return
        for k in range(self.by.parts):
            yield self.by.made(stored.read, k)[self.name].contiguous()

    def numbers(self, stored: StoredTensors, first: int, count: int) -> Tensor:
        """So many of its numbers, row by row, as one row; no more is read than has to be."""
        size = math.prod(self.info.shape) // self.by.parts
        part = first // size
        if self.by.parts > 1 and (first + count - 1) // size == part:
            made = self.by.made(stored.read, part)[self.name]
            return made.reshape(-1)[first - part * size :][:count]
        return self.read(stored).reshape(-1)[first:][:count]


@dataclass(frozen=True)
class Part:
    """A matrix that lies within another tensor, which has several.

    of      that one: in the files, or derived itself
    info    dtype and shape of the matrix
    stride, offset  of it there, in numbers
    """

    of: str
    info: TensorInfo
    stride: tuple[int, ...]
    offset: int
    members: tuple[str, ...]

    def read(self, stored: StoredTensors) -> Tensor:
        """All of it, of its own."""
        sizes = zip(self.info.shape, self.stride, strict=True)
        count = 1 + sum((n - 1) * step for n, step in sizes)
        row = stored.numbers(self.of, self.offset, count)
        return row.as_strided(self.info.shape, self.stride).clone(
            memory_format=torch.contiguous_format
        )

    def pieces(self, stored: StoredTensors) -> Iterator[Tensor]:
        """The one that there is."""
        yield self.read(stored)


def joined_by(conversion: Conversion, stored: StoredTensors) -> list[Joined]:
    """What it makes. Raises UnsupportedError where it does not go by shapes alone."""
    dtypes = {stored.places[name].info.dtype for name in conversion.names}
    if len(dtypes) > 1:
        raise UnsupportedError(
            f"transformers makes {conversion.name} of tensors of the dtypes {sorted(dtypes)}"
        )
    try:
        made = conversion.made(stored.blank)
    except Exception as error:  # of many kinds, by rules that are not ours
        raise UnsupportedError(
            f"{conversion.name} cannot be made of {', '.join(conversion.names[:3])}, ...: "
            f"{error or type(error).__name__}"
        ) from error
    return [Joined(name, _info(t), conversion) for name, t in made.items()]


def part_of(whole: str, own: Tensor, stored: StoredTensors) -> Part:
    """That which a tensor on meta is, in whose memory it lies."""
    dtype = TORCH_DTYPES[stored.info(whole).dtype]
    members = stored.members(whole)
    return Part(whole, _info(own.to(dtype)), own.stride(), int(own.storage_offset()), members)


def _info(t: Tensor) -> TensorInfo:
    return TensorInfo(DTYPES[t.dtype], tuple(t.shape), 0, t.numel() * t.element_size())
