"""What reads bytes that others may have made, as one kind of value."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from tensorlrf.compression.checkpoint.named_tensors import named_tensors
from tensorlrf.errors import TensorlrfError
from tensorlrf.factors import Factors

LINK, AWAY, FOLDER, PIPE = "link", "link away", "folder", "pipe"
"""What may lie where a file should: a link to itself or to `MINE`, an empty folder, a pipe."""

MINE = "mine.txt"
"""A file beside everything, that nobody is to touch."""

WHEN = 1_700_000_000
"""Seconds; files are of one time, by which a run knows its source."""

Files = Mapping[str, bytes | str]
"""Relative path -> content, or one of the words above."""


class Wrong(AssertionError):
    """What was read is not what the file says, or something was touched that is only read."""


@dataclass(frozen=True)
class Reader:
    """A reader of foreign bytes.

    make      fills an empty folder with what it reads
    read      of such a folder: all that it says, as text. May write into the folder. Raises Wrong
    sealed    whether checksums cover what it reads: damage is refused, or changes nothing
    foreign   globs of the files that get damaged
    key       of the sealed header in the metadata of these files, where they have one
    errors    that it may raise
    after     looks at the folder when `read` has refused it. Raises Wrong
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], str]
    sealed: bool = False
    foreign: tuple[str, ...] = ("*",)
    key: str | None = None
    errors: tuple[type[Exception], ...] = (TensorlrfError,)
    after: Callable[[Path], None] = lambda _: None

    def is_foreign(self, name: str) -> bool:
        """The file is one that gets damaged."""
        return any(fnmatchcase(name, glob) for glob in self.foreign)


def files_of(folder: Path) -> dict[str, bytes | str]:
    """All files of a folder, hidden ones too."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def write(files: Files, folder: Path) -> None:
    """Make the folder what `files_of` said of it, and nothing else."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
            os.utime(path, (WHEN, WHEN))
        elif content == LINK:
            path.symlink_to(path.name)
        elif content == AWAY:
            path.symlink_to(folder / MINE)
        elif content == FOLDER:
            path.mkdir()
        else:
            os.mkfifo(path)


# ---- what was read, as text --------------------------------------------------------------------


def digest(parts: Iterator[bytes | str]) -> str:
    """Of all parts, one after the other."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()


def bytes_in(t: Tensor) -> bytes:
    """Dtype, shape and values."""
    import torch

    flat = t.detach().contiguous().reshape(-1).view(torch.uint8)
    return f"{t.dtype} {tuple(t.shape)} ".encode() + flat.numpy().tobytes()


def of_factors(named: Mapping[str, Factors]) -> str:
    """Names, formats, sizes and values."""

    def parts() -> Iterator[bytes | str]:
        for name, factors in named.items():
            yield from (name, repr(factors), str(factors.meta()))
            for part, tensor in factors.tensors().items():
                yield from (part, bytes_in(tensor))

    return digest(parts())


def of_model(model: nn.Module) -> str:
    """Types, recipes, measured tables, and all tensors."""

    def parts() -> Iterator[bytes | str]:
        for name, module in model.named_modules():
            recipe, measured = getattr(module, "recipe", None), getattr(module, "measured", None)
            yield from (name, type(module).__name__, str(recipe), str(measured))
        for place in named_tensors(model):
            yield from (place.name, place.role, bytes_in(place.tensor))

    return digest(parts())


def of_files(folder: Path) -> str:
    """Names and contents of a folder."""
    return digest(part for item in files_of(folder).items() for part in item)
