"""The safetensors format, written and read with plain calls of the system.

A file is eight bytes that hold a length, JSON of that length, and the bytes of the tensors one
after another. Nothing is mapped into memory: what is read is a copy, so that a file which is cut
or written over later changes no tensor that came from it, and ends no process. The library
safetensors is what the tests compare with, and not used here: it maps what it opens, and tells
neither where a tensor lies, to read it, nor what else a header says, such as a name twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tensorlrf.errors import (
    ArgumentError,
    FileError,
    FileFormatError,
    MissingFileError,
    UnsupportedError,
)
from tensorlrf.files.strict import JsonNode
from tensorlrf.files.system import BINARY, write_all

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""torch's dtype -> the name that safetensors has for it."""

TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}

METADATA = "__metadata__"
"""The one name that safetensors keeps for itself."""

LONGEST_HEADER = 100_000_000
"""Bytes; readers of the format refuse longer ones."""


def check_storable(name: str, tensor: Tensor) -> None:
    """Raise UnsupportedError where a file cannot hold the tensor."""
    if is_lazy(tensor):
        raise UnsupportedError(
            f"{name} is lazy and has no values yet: run the model once on an input, then save it"
        )
    if tensor.is_meta:
        raise UnsupportedError(f"{name} is on the meta device and has no values to save")
    plain = tensor.layout == torch.strided and not is_traceable_wrapper_subclass(tensor)
    if not plain or tensor.dtype not in DTYPES:
        raise UnsupportedError(
            f"{name} is a {type(tensor).__name__} of dtype {tensor.dtype} and layout "
            f"{tensor.layout}; files hold plain tensors of {', '.join(DTYPES.values())}"
        )


def plain(tensor: Tensor) -> Tensor:
    """The values as files hold them: row by row, on the CPU."""
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


# ---- writing -----------------------------------------------------------------------------------


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `plain` tensors to a file, from its beginning. Raises OSError."""
    about = {name: (DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    text, names = head_of(path, about, metadata)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
    try:
        write_all(file, memoryview(text))
        for name in names:
            write_all(file, bytes_of(tensors[name]))
    finally:
        os.close(file)


def head_of(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """What a file of tensors, name -> (dtype, shape), begins with, and the order in which their
    bytes follow. `path` is for errors."""
    # Wide numbers first: so every tensor begins at a multiple of the size of its numbers.
    names = sorted(tensors, key=lambda name: (-TORCH_DTYPES[tensors[name][0]].itemsize, name))
    head: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for name in names:
        dtype, shape = tensors[name]
        begin, end = end, end + math.prod(shape) * TORCH_DTYPES[dtype].itemsize
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    try:
        text = _spelled(head)
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"the name {error.object[error.start - 9 : error.end + 9]!r} is no Unicode text, which "
            "the names of tensors in a file are; give it another"
        ) from None
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST_HEADER:
        raise UnsupportedError(
            f"path={os.fspath(path)!r}: a header of {len(text):,} bytes is longer than the "
            f"{LONGEST_HEADER:,} that safetensors may have; save parts of it"
        )
    return len(text).to_bytes(8, "little") + text, names


def _spelled(head: Mapping[str, Any]) -> bytes:
    """The header as bytes in the one way that writers have."""
    return json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that lies in a file: bytes begin to end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafeFile:
    """An open safetensors file.

    path      as the user gave it
    metadata  name -> text
    tensors   name -> what lies there; together they are all of the file
    verbatim  whether the header is spelled as `write` and the library safetensors spell it: a
              flipped bit may leave its meaning as it was
    """

    def __init__(self, file: Any, path: str) -> None:
        self._file, self.path = file, path
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(self._read(0, 8).numpy().tobytes(), "little")
        if length > min(LONGEST_HEADER, size - 8):
            raise self.damaged(f"its header is said to have {length} bytes, and it has {size}")
        raw = self._read(8, length).numpy().tobytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(str(error)) from None
        if not text.startswith("{"):
            raise self.damaged("its header is no JSON")
        head = JsonNode.of_text(text, path)
        self.metadata = head[METADATA].each(JsonNode.text) if METADATA in head.mapping() else {}
        self._begin = 8 + length
        self.tensors = {
            name: _tensor_info(head[name]) for name in head.mapping() if name != METADATA
        }
        try:
            self.verbatim = _spelled(head.mapping()) == raw.rstrip(b" ")
        except UnicodeEncodeError as error:
            raise self.damaged(f"a name in it is no Unicode text: {error}") from None
        end = 0
        for name, held in sorted(self.tensors.items(), key=lambda item: item[1].begin):
            if held.begin != end:
                raise self.damaged(f"the bytes of {name!r} do not follow those before")
            end = held.end
        if size != self._begin + end:
            raise self.damaged(f"it has {size} bytes, and its tensors make {self._begin + end}")

    def tensor(self, name: str) -> Tensor:
        """A copy of the values on the CPU, row by row. Raises FileFormatError, KeyError."""
        held = self.tensors[name]
        if held.dtype not in TORCH_DTYPES:
            raise UnsupportedError(
                f"path={self.path!r}: the tensor {name!r} has the dtype {held.dtype}; those that "
                f"can be read are {', '.join(TORCH_DTYPES)}"
            )
        raw = self._read(self._begin + held.begin, held.end - held.begin)
        return raw.view(TORCH_DTYPES[held.dtype]).reshape(held.shape)

    def chunks(self, name: str, size: int) -> Iterator[memoryview]:
        """The bytes of a tensor as they lie there, so many at a time. Raises FileFormatError."""
        held = self.tensors[name]
        for begin in range(held.begin, held.end, size):
            yield self._read(self._begin + begin, min(size, held.end - begin)).numpy().data

    def numbers(self, name: str, places: Sequence[int]) -> Tensor:
        """Some of the numbers of a tensor of a known dtype, by their places row by row. Raises
        FileFormatError."""
        held = self.tensors[name]
        dtype = TORCH_DTYPES[held.dtype]
        begin, size = self._begin + held.begin, dtype.itemsize
        parts = [self._read(begin + size * place, size) for place in places]
        return torch.cat(parts).view(dtype)

    def row(self, name: str, first: int, count: int) -> Tensor:
        """So many numbers of a tensor of a known dtype, as they follow one another from a place on.
        Raises FileFormatError."""
        held = self.tensors[name]
        dtype = TORCH_DTYPES[held.dtype]
        begin = self._begin + held.begin + dtype.itemsize * first
        return self._read(begin, dtype.itemsize * count).view(dtype)

    def damaged(self, why: str) -> FileFormatError:
        """The error for a file that is none."""
        return FileFormatError(
            f"path={self.path!r} is damaged or not a safetensors file ({why}); get the file anew"
        )

    def _read(self, begin: int, size: int) -> Tensor:
        raw = torch.empty(size, dtype=torch.uint8, device="cpu")
        view, done = raw.numpy().data, 0
        self._file.seek(begin)
        while done < size:
            try:
                got = self._file.readinto(view[done:])
            except OSError as error:
                raise FileError(f"path={self.path!r} cannot be read: {error}") from error
            if not got:
                raise self.damaged(f"it ends {size - done} bytes too early")
            done += got
        return raw


@contextmanager
def opened(path: Path) -> Iterator[SafeFile]:
    """Open a safetensors file.

    Raises MissingFileError where there is no file, FileError where the system refuses it, and
    FileFormatError where it is none such.
    """
    name = os.fspath(path)
    if not os.path.isfile(path):  # a pipe would be waited for
        raise MissingFileError(f"path={name!r} is not a file; give one that tensorlrf wrote")
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise FileError(f"path={name!r} cannot be read: {error}") from error
    with file:
        yield SafeFile(file, name)


_BITS = {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Of dtypes that are in the format and not read here."""


def _tensor_info(at: JsonNode) -> TensorInfo:
    at.keys_are(["dtype", "shape", "data_offsets"])
    dtype, shape = at["dtype"].text(), at["shape"].wholes()
    begin, end = at["data_offsets"].wholes() if len(at["data_offsets"].entries()) == 2 else (0, -1)
    bits = TORCH_DTYPES[dtype].itemsize * 8 if dtype in TORCH_DTYPES else _BITS.get(dtype)
    if bits is None:
        at["dtype"].wrong("a dtype of safetensors")
    if math.prod(shape) * bits != (end - begin) * 8:
        at["data_offsets"].wrong(f"those of {shape} numbers of dtype {dtype}")
    return TensorInfo(dtype, shape, begin, end)
