"""An open model file: its header, and its tensors by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from tensorlrf import io
from tensorlrf.compression.checkpoint.header import KEY, Header, parse
from tensorlrf.errors import FileFormatError
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.safetensors import opened
from tensorlrf.files.sealed import checked
from tensorlrf.files.shards import together


@dataclass(frozen=True)
class Reading:
    """An open model file.

    tensor  from the name of a tensor to its values on the CPU, row by row; raises FileFormatError
            where their checksum differs
    path    for errors
    """

    header: Header
    tensor: Callable[[str], Tensor]
    path: str


@contextmanager
def reading(path: PathLike) -> Iterator[Reading]:
    """Open a model file; its header is checked, and that it has the tensors which that names.

    Raises FileError where there is no file, FileFormatError where it is not as it should be.
    """
    with opened(as_path(path)) as file:
        if KEY not in file.metadata:
            hint = "write one with tensorlrf.save"
            if io.KEY in file.metadata:
                hint = "it holds factors, which tensorlrf.io.load_factors reads"
            raise FileFormatError(f"path={file.path!r} is no model file of tensorlrf; {hint}")
        header = parse(file)
        with together(file, header.shards) as whole:
            yield Reading(header, checked(whole, header.tensors), os.fspath(path))
