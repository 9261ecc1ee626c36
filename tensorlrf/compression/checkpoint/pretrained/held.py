"""What is said where the tensors of a folder are not those that its config.json tells of."""

from __future__ import annotations

from tensorlrf.compression.checkpoint.pretrained.quantization import QUANTIZATION
from tensorlrf.errors import FileFormatError

Shape = tuple[int, ...]


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
