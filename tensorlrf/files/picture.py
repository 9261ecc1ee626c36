"""A picture, drawn by matplotlib, as a file that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.files.replace import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def picture(
    path: str | os.PathLike[str], size: tuple[float, float], *, of: str
) -> Iterator[Figure]:
    """An empty figure to draw on, which is then written to `path`; the suffix says of which kind.

    size  inches, wide and high
    of    who draws, for the error without matplotlib: "report.plot"

    Raises UnsupportedError where matplotlib is missing, ArgumentError for a suffix that it does
    not write, FileError where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(f"{of} needs matplotlib: pip install 'tensorlrf[plot]'") from error
    suffix = Path(path).suffix.lstrip(".")
    if not suffix:
        raise ArgumentError(f"path={os.fspath(path)!r} needs a suffix, such as .png or .svg")
    figure = Figure(figsize=size, layout="constrained")
    yield figure
    try:
        with replacing(path, overwrite=True) as temporary:
            figure.savefig(temporary, format=suffix, dpi=130)
    except ValueError as error:
        raise ArgumentError(f"path={os.fspath(path)!r}: {error}") from None
