"""Our files: safetensors with a header of our own in its metadata, sealed by checksums.

The header is JSON with the format version, the version of tensorlrf that wrote it, what each
tensor is with the checksum of its bytes, whatever more the kind of file has to say, and a checksum
of all that.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tensorlrf.errors import FileFormatError
from tensorlrf.files.replace import replacing
from tensorlrf.files.safetensors import (
    DTYPES,
    METADATA,
    TORCH_DTYPES,
    SafeFile,
    bytes_of,
    write,
)
from tensorlrf.files.shards import TensorFile
from tensorlrf.files.strict import JsonNode


@dataclass(frozen=True)
class Stored:
    """A tensor of the file.

    dtype     as safetensors calls it
    order     its dimensions from the outermost to the innermost in memory; None is row by row.
              The file has it row by row in any case.
    checksum  BLAKE2b of its bytes in the file, 16 bytes in hex
    """

    dtype: str
    shape: tuple[int, ...]
    checksum: str
    order: tuple[int, ...] | None = None

    @property
    def n_bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * TORCH_DTYPES[self.dtype].itemsize

    @classmethod
    def of(cls, tensor: Tensor, order: tuple[int, ...] | None = None) -> Stored:
        """What the file says of a `plain` tensor."""
        return cls(DTYPES[tensor.dtype], tuple(tensor.shape), checksum_of(bytes_of(tensor)), order)

    @classmethod
    def read(cls, at: JsonNode) -> Stored:
        """Inverse of `to_json`."""
        at.keys_are(["dtype", "shape", "checksum"], ["order"])
        shape = at["shape"].wholes()
        order = at["order"].wholes() if "order" in at.mapping() else None
        if order is not None and sorted(order) != list(range(len(shape))):
            at["order"].wrong(f"a permutation of {len(shape)} dimensions")
        return cls(at["dtype"].text(), shape, at["checksum"].text(), order)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {k: v for k, v in vars(self).items() if k != "order" or v is not None}


def checksum_of(data: Any) -> str:
    """BLAKE2b of bytes or a buffer, 16 bytes in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def canonical(values: Any) -> bytes:
    """JSON values as bytes in one way only."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def storable_key(name: str) -> str:
    """A name for a tensor in the file that is its own where that may be."""
    return f"{METADATA}." if name == METADATA else name


def made_by() -> str:
    """The version of tensorlrf."""
    # Of the package itself, which stands above this floor; it is whole before anything is saved.
    version: str = sys.modules[__name__.partition(".")[0]].__version__
    return version


def seal(values: Mapping[str, Any]) -> str:
    """The header as text. `values` has the keys version, tensorlrf and tensors at least."""
    return json.dumps({"checksum": checksum_of(canonical(values)), **values}, allow_nan=False)


def unseal(file: SafeFile, key: str, newest: int, oldest: int = 1) -> JsonNode:
    """The header that `seal` made and the metadata has as `key`, once it is what it was.

    Raises FileFormatError where a bit of it is another, or its version is not oldest to newest.
    """
    text, path = file.metadata[key], file.path
    root = JsonNode.of_text(text, path)
    try:
        version = root["version"].whole(oldest)
        if version > newest:
            raise FileFormatError(
                f"path={path!r} has format version {version}; this tensorlrf reads up to "
                f"{newest}, a newer one will read it"
            )
        claimed = root["checksum"].text()
        values = {k: v for k, v in root.mapping().items() if k != "checksum"}
        # A bit may change the spelling alone, as of 1e-07 to 1E-07.
        verbatim = file.verbatim and json.dumps(root.mapping()) == text
        if claimed != checksum_of(canonical(values)) or not verbatim:
            raise FileFormatError(
                f"path={path!r} has a damaged header: its checksum does not fit; get the file anew"
            )
    except RecursionError:
        raise FileFormatError(f"path={path!r} has a damaged header: it is nested deeply") from None
    return root


def checked(file: TensorFile, stored: Mapping[str, Stored]) -> Callable[[str], Tensor]:
    """From the name of a tensor to its values, whose checksum is looked at.

    Raises FileFormatError where the file has other tensors than the header says, and so does the
    function where a tensor is damaged.
    """
    path = file.path
    for name in sorted(set(file.tensors) ^ set(stored)):
        state = "is not in the header" if name in file.tensors else "is missing"
        raise FileFormatError(f"path={path!r}: the tensor {name!r} {state}; get the file anew")
    for name, said in stored.items():
        held = file.tensors[name]
        if (held.shape, held.dtype) != (said.shape, said.dtype):
            raise FileFormatError(
                f"path={path!r}: the tensor {name!r} is {held.shape} of dtype {held.dtype}, the "
                f"header says {said.shape} of dtype {said.dtype}; get the file anew"
            )
        if held.dtype not in DTYPES.values():
            raise FileFormatError(f"path={path!r}: the tensor {name!r} has the dtype {held.dtype}")

    def read(name: str) -> Tensor:
        value = file.tensor(name)
        if checksum_of(bytes_of(value)) != stored[name].checksum:
            raise FileFormatError(
                f"path={path!r}: the tensor {name!r} is damaged, its checksum does not fit; "
                "get the file anew"
            )
        return value

    return read


def write_sealed(
    path: str | os.PathLike[str],
    key: str,
    text: str,
    tensors: Mapping[str, Tensor],
    *,
    overwrite: bool,
) -> None:
    """Write a sealed header and `plain` tensors, all or nothing. Raises FileError."""
    with replacing(path, overwrite=overwrite) as part:
        write(part, tensors, {key: text})
