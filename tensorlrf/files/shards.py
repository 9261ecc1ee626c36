"""A safetensors file whose tensors lie in others beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tensorlrf.errors import FileFormatError, shown
from tensorlrf.files.safetensors import SafeFile, TensorInfo, opened

PLAIN = re.compile(r"[^/\\\0:]+\.safetensors")
"""Names of files of safetensors in the folder at hand."""


class TensorFile(Protocol):
    """What has tensors by name: a file, or several that are one."""

    path: str

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def tensor(self, name: str) -> Tensor: ...


class Shards:
    """Open files that are one.

    path     of the one that names the others
    tensors  name -> what lies in one of them
    """

    def __init__(self, path: str, files: Mapping[str, SafeFile], where: Mapping[str, str]) -> None:
        self.path, self._files, self._where = path, files, where
        self.tensors: Mapping[str, TensorInfo] = {
            name: files[shard].tensors[name] for name, shard in where.items()
        }

    def tensor(self, name: str) -> Tensor:
        """A copy of the values on the CPU, row by row. Raises FileFormatError, KeyError."""
        return self._files[self._where[name]].tensor(name)


@contextmanager
def together(file: SafeFile, where: Mapping[str, str]) -> Iterator[TensorFile]:
    """The file, or where tensors lie elsewhere all of them; tensor -> name of a file beside it.

    Raises FileFormatError where one is missing, does not hold what it should, or holds more, but
    for tensors without elements.
    """
    if not where:
        yield file
        return
    with ExitStack() as stack:
        files: dict[str, SafeFile] = {}
        for name, shard in where.items():
            if shard not in files:
                beside = Path(os.fspath(file.path)).parent / shard
                if not PLAIN.fullmatch(shard) or not beside.is_file():
                    raise FileFormatError(
                        f"path={file.path!r} names {shown(shard)}, which is no file of safetensors "
                        "beside it; get the folder anew"
                    )
                files[shard] = stack.enter_context(opened(beside))
            if name not in files[shard].tensors:
                raise FileFormatError(
                    f"path={file.path!r}: the tensor {name!r} is missing in {shard!r}; get the "
                    "folder anew"
                )
        own = os.path.basename(file.path)
        every = {own: file, **files}
        extra = [
            name
            for shard, one in every.items()
            for name, info in one.tensors.items()
            if where.get(name) != shard and info.begin != info.end
        ]
        if extra:
            raise FileFormatError(
                f"path={file.path!r}: its files hold {len(extra)} tensors more than it names, "
                f"{extra[0]!r} the first; get the folder anew"
            )
        yield Shards(file.path, files, where)
