"""What lies in the files of a folder, and what is said where that is not what its config.json tells
of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tensorlrf.compression.checkpoint.pretrained.quantization import QUANTIZATION
from tensorlrf.compression.checkpoint.source import TENSORS
from tensorlrf.errors import FileFormatError, UnsupportedError
from tensorlrf.files.safetensors import opened

Shape = tuple[int, ...]


class Held(NamedTuple):
    """A tensor that lies in a file, perhaps in that of ours."""

    shape: Shape
    of_ours: bool


def tensors_of(files: Sequence[str]) -> dict[str, Held]:
    """What lies in the files, by their headers. Raises FileError, FileFormatError."""
    found: dict[str, Held] = {}
    for path in files:
        if not path.endswith(".safetensors"):
            raise UnsupportedError(
                f"path={path!r} is no file of safetensors, as those of factored layers are"
            )
        if not os.path.isfile(path):
            raise FileFormatError(
                f"path={os.path.dirname(path)!r}: the shard {os.path.basename(path)!r} is missing; "
                "get the folder anew"
            )
        with opened(Path(path)) as file:
            ours = Path(path).name == TENSORS
            found |= {name: Held(info.shape, ours) for name, info in file.tensors.items()}
    return found


def missing(where: str, name: str) -> FileFormatError:
    """A tensor of a factored layer is in none of the files."""
    return FileFormatError(
        f"path={where!r}: the tensor {name!r} of a factored layer is missing; get the folder anew"
    )


def of_other_size(where: str, name: str, shape: Shape, told: Shape) -> FileFormatError:
    """A tensor of a factored layer is there, of another shape."""
    return FileFormatError(
        f"path={where!r}: {name!r} is {shape} in its file, and {told} by the ranks in "
        f"{QUANTIZATION}; get the folder anew"
    )


def of_no_layer(where: str, name: str) -> FileFormatError:
    """A tensor without elements is there, as beside factors, and no layer that has them."""
    return FileFormatError(
        f"path={where!r}: {name!r} stands there for factors, and {QUANTIZATION} of config.json "
        "tells of none; get the folder anew"
    )
