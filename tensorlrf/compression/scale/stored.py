"""The tensors of a checkpoint by the headers of its files: one file, or shards with an index."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tensorlrf.compression.checkpoint.by_name import check_name
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.compression.checkpoint.source import check_inside, weights_of
from tensorlrf.errors import FileFormatError, MissingFileError
from tensorlrf.files.safetensors import TORCH_DTYPES, SafeFile, TensorInfo, bytes_of, opened

CHUNK = 1 << 24
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: the file, and what its header says."""

    file: Path
    info: TensorInfo


class Derived(Protocol):
    """A tensor of a model that is made of others, its members, or is a part of one."""

    @property
    def info(self) -> TensorInfo: ...

    @property
    def members(self) -> tuple[str, ...]: ...

    def read(self, stored: StoredTensors) -> Tensor: ...

    def pieces(self, stored: StoredTensors) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class StoredTensors:
    """What is in a checkpoint, of which no tensor has been read.

    path     as given
    files    of which it consists
    places   name -> where that tensor lies, in the order of the files
    derived  name -> what else is known by a name, though it lies in no file as it is
    """

    path: Path
    files: tuple[Path, ...]
    places: Mapping[str, Place]
    derived: Mapping[str, Derived] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> StoredTensors:
        """Raises FileError where there is nothing, and FileFormatError where a file is damaged,
        missing, compressed already, or has a tensor that another one has."""
        if not path.exists():
            raise MissingFileError(f"{path} is not there; give a .safetensors file or a folder")
        if path.is_dir():
            check_inside(path)
            files = weights_of(path)
        elif path.suffix == ".safetensors":
            files = [path]
        else:
            raise FileFormatError(
                f"{path} is no .safetensors file; others may hold code and are not opened: write "
                "one with safetensors.torch.save_file(model.state_dict(), ...)"
            )
        places: dict[str, Place] = {}
        for file in files:
            with opened(file) as one:
                if KEY in one.metadata:
                    raise FileFormatError(
                        f"{file} is compressed already; give the dense checkpoint"
                    )
                for name, info in _in_order(one):
                    check_name(file, name)
                    if name in places:
                        raise FileFormatError(
                            f"{file} has a tensor {name!r}, and so has {places[name].file.name}; "
                            "get the folder anew"
                        )
                    if info.dtype not in TORCH_DTYPES:
                        raise FileFormatError(
                            f"{file}: the tensor {name!r} has the dtype {info.dtype}; those that "
                            f"can be read are {', '.join(TORCH_DTYPES)}"
                        )
                    places[name] = Place(file, info)
        if not places:
            raise FileFormatError(f"{path} holds no tensors")
        _check_index(path, places)
        return cls(path, tuple(files), places)

    @property
    def n_bytes(self) -> int:
        """Of all tensors."""
        return sum(place.info.end - place.info.begin for place in self.places.values())

    def with_derived(self, derived: Mapping[str, Derived]) -> StoredTensors:
        """The same with more that is known by a name."""
        return replace(self, derived={**self.derived, **derived})

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and size of a tensor."""
        return self.derived[name].info if name in self.derived else self.places[name].info

    def members(self, name: str) -> tuple[str, ...]:
        """The tensors of the files that it is made of: itself, unless it is derived."""
        return self.derived[name].members if name in self.derived else (name,)

    def blank(self, name: str) -> Tensor:
        """A tensor of its shape and dtype on the meta device."""
        info = self.info(name)
        return torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype], device="meta")

    def blanks(self) -> dict[str, Tensor]:
        """Name -> such a tensor, of those in the files."""
        return {name: self.blank(name) for name in self.places}

    def read(self, name: str) -> Tensor:
        """A copy of the values on the CPU."""
        if name in self.derived:
            return self.derived[name].read(self)
        with opened(self.places[name].file) as file:
            return file.tensor(name)

    def numbers(self, name: str, first: int, count: int) -> Tensor:
        """A row of so many of its numbers, as they follow one another row by row."""
        found: Any = self.derived.get(name)
        if found is not None:
            made: Tensor = found.numbers(self, first, count)
            return made
        with opened(self.places[name].file) as file:
            return file.row(name, first, count)

    def chunks(self, name: str, size: int) -> Iterator[memoryview]:
        """The bytes of a tensor, so many at a time."""
        if name in self.derived:
            for piece in self.derived[name].pieces(self):
                held = bytes_of(piece)
                yield from (held[k : k + size] for k in range(0, len(held), size))
            return
        with opened(self.places[name].file) as file:
            yield from file.chunks(name, size)

    def checksum(self, name: str) -> str:
        """Of the bytes of a tensor."""
        digest = hashlib.blake2b(digest_size=16)
        for chunk in self.chunks(name, CHUNK):
            digest.update(chunk)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Of the headers and sizes of the files: another checkpoint has another one."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            about = os.stat(file)
            digest.update(json.dumps([file.name, about.st_size, about.st_mtime_ns]).encode())
        for name, place in self.places.items():
            told = [name, place.file.name, *vars(place.info).values()]
            digest.update(json.dumps(told).encode())
        return digest.hexdigest()


def _in_order(file: SafeFile) -> list[tuple[str, TensorInfo]]:
    """As the tensors lie in it."""
    return sorted(file.tensors.items(), key=lambda item: (item[1].begin, item[0]))


def _check_index(path: Path, places: Mapping[str, Place]) -> None:
    """Raise FileFormatError where the index of shards and their headers say different things."""
    index = path / "model.safetensors.index.json"
    if not path.is_dir() or not index.is_file() or (path / "model.safetensors").is_file():
        return
    told = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for name in sorted(set(told) ^ set(places)):
        where = f"in {places[name].file.name}" if name in places else "in no shard"
        said = f"names for it {told[name]!r}" if name in told else "does not name it"
        raise FileFormatError(
            f"{index}: the tensor {name!r} is {where}, and the index {said}; get the folder anew"
        )
    for name, shard in told.items():
        if places[name].file.name != shard:
            raise FileFormatError(
                f"{index}: the tensor {name!r} is in {places[name].file.name}, and the index says "
                f"in {shard!r}; get the folder anew"
            )
