"""The output: tensors in the order of the source, in files of a bounded size, and what they are."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorlrf.files.replace import remove
from tensorlrf.files.safetensors import TORCH_DTYPES, head_of
from tensorlrf.files.sealed import Stored
from tensorlrf.files.system import BINARY, write_all

NO_CHECKSUM = "0" * 32
"""In the place of one that is not known yet, of the same length."""


@dataclass(frozen=True)
class Piece:
    """A tensor of the output.

    name    as a model has it
    chunks  its bytes, part by part
    layer   whose factors it is of; empty for others
    source  the tensor of the source that it is, bit for bit; empty for others
    lasting  whether a state dict has it
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[memoryview]]
    layer: str = ""
    source: str = ""
    lasting: bool = True

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * TORCH_DTYPES[self.dtype].itemsize

    def stored(self, checksum: str = NO_CHECKSUM) -> Stored:
        """What a header says of it."""
        return Stored(self.dtype, self.shape, checksum)


def in_shards(pieces: Sequence[Piece], most: int) -> list[list[Piece]]:
    """In files of at most so many bytes, of one tensor at the least."""
    shards: list[list[Piece]] = []
    size = most
    for piece in pieces:
        if size + piece.n_bytes > most and (size or not shards):
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.n_bytes
    return shards


def write_pieces(
    path: Path, pieces: Sequence[Piece], metadata: Callable[[Mapping[str, str]], Mapping[str, str]]
) -> dict[str, str]:
    """Write tensors to a file, so that it is on the disk; name -> checksum.

    metadata  from the checksums to what the header has beside the tensors; asked for twice, as
              long before the checksums are known as behind

    Raises OSError.
    """
    about = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
    by_name = {piece.name: piece for piece in pieces}
    blank = dict.fromkeys(by_name, NO_CHECKSUM)
    head, order = head_of(path, about, metadata(blank))
    checksums = {}
    remove(path)  # a link would be followed, and a pipe waited for
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
    try:
        write_all(file, memoryview(head))
        for name in order:
            digest = hashlib.blake2b(digest_size=16)
            for chunk in by_name[name].chunks():
                digest.update(chunk)
                write_all(file, chunk)
            checksums[name] = digest.hexdigest()
        known, _ = head_of(path, about, metadata(checksums))
        assert len(known) == len(head)
        os.lseek(file, 0, os.SEEK_SET)
        write_all(file, memoryview(known))
        os.fsync(file)
    finally:
        os.close(file)
    return checksums
