"""The factors of one layer in a file of their own, until the shard that they belong to is made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tensorlrf.errors import FileFormatError
from tensorlrf.files.replace import remove
from tensorlrf.files.safetensors import SafeFile, bytes_of, opened, plain, write
from tensorlrf.files.sealed import checksum_of
from tensorlrf.files.system import sync

CHUNK = 1 << 24
"""Bytes that are copied at a time."""

Said = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor -> (dtype, shape)."""


def store(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write tensors, so that they are on the disk; the checksum of each. Raises OSError."""
    held = {name: plain(tensor) for name, tensor in tensors.items()}
    remove(path)  # a link would be followed, and a pipe waited for
    write(path, held, {})
    sync(path)
    return {name: checksum_of(bytes_of(tensor)) for name, tensor in held.items()}


def is_whole(path: Path, checksums: Mapping[str, Any], said: Said | None = None) -> bool:
    """Whether the file has these tensors, each with its checksum and what else is said of it."""
    try:
        with opened(path) as file:
            if said is not None and said != {
                name: (info.dtype, info.shape) for name, info in file.tensors.items()
            }:
                return False
            return set(file.tensors) == set(checksums) and all(
                _checksum(file, name) == wanted for name, wanted in checksums.items()
            )
    except (OSError, FileFormatError):
        return False


def chunks(path: Path, name: str) -> Iterator[memoryview]:
    """The bytes of a tensor of the file."""
    with opened(path) as file:
        yield from file.chunks(name, CHUNK)


def _checksum(file: SafeFile, name: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in file.chunks(name, CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
