"""What is in a model file, from its header alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorlrf.compression._render import as_text
from tensorlrf.compression.checkpoint import folder
from tensorlrf.compression.checkpoint._architecture import digest
from tensorlrf.compression.checkpoint._layers import blank_factors, numbers_in
from tensorlrf.compression.checkpoint._page import file_page
from tensorlrf.compression.checkpoint._reading import reading
from tensorlrf.compression.checkpoint.header import FORMAT_VERSION, Header, LayerEntry
from tensorlrf.compression.checkpoint.named_tensors import LASTING
from tensorlrf.compression.checkpoint.source import CONFIG
from tensorlrf.compression.page.document import Page, Paged
from tensorlrf.errors import MissingExtraError, UnsupportedError, printable
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.folder import put_right

if TYPE_CHECKING:
    from rich.console import Group

WIDTH = 160

MOST_ROWS = 2000
"""Of a table; to lay one out takes about a millisecond a row."""


@dataclass(frozen=True)
class FileLayer:
    """A factored layer of a file.

    Parameters
    ----------
    name, places
        Qualified names: the first one, and all.
    stands_for : str or None
        The type of the layer that it replaced; None where the file does not say.
    format, rank, shape
        Of its factors; shape is that of the dense tensor.
    dtype : str
        Of its factors, as safetensors calls it.
    params_before, params_after : int
        Numbers in the dense weight and in the factors.
    measured : tuple of str
        Devices for which the file has measured path tables.
    """

    name: str
    places: tuple[str, ...]
    stands_for: str | None
    format: str
    rank: int | tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    params_before: int
    params_after: int
    measured: tuple[str, ...]


@dataclass(frozen=True)
class FileReport(Paged):
    """What `inspect` says of a file. Prints itself as a table; `to_json()`; `to_html(path)`.

    Parameters
    ----------
    path : str
    version : int
        Of the format.
    made_by : str
        The tensorlrf that wrote it.
    fingerprint : str or None
        Of the model's architecture; None for a checkpoint without its model.
    size : int
        Of the file in bytes.
    tensors : int
        How many it holds.
    params_before, params_after : int
        Of the whole model, dense and as it is in the file: numbers in parameters and persistent
        buffers, each once.
    layers : tuple of FileLayer
        The factored ones.
    plan : Mapping
        Name of a layer -> how its factors were made.
    verified : bool
        Whether the checksums of all tensors were checked, beside that of the header.
    """

    path: str
    version: int
    made_by: str
    fingerprint: str | None
    size: int
    tensors: int
    params_before: int
    params_after: int
    layers: tuple[FileLayer, ...]
    plan: Mapping[str, Any]
    verified: bool

    def layer(self, name: str) -> FileLayer:
        """The row of a layer, by any of its names. Raises KeyError."""
        for row in self.layers:
            if name in row.places:
                return row
        raise KeyError(name)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return as_text(self.__rich__(), WIDTH)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(printable(f"{self.path}, {self.size:,} bytes")), title_justify="left"
        )
        for name in ("layer", "kind", "format"):
            table.add_column(name, overflow="fold")
        for name in ("rank", "shape", "dtype", "parameters", "kept"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.layers[:MOST_ROWS]:
            table.add_row(*(Text(printable(cell)) for cell in _cells(row)))
        rest = len(self.layers) - MOST_ROWS
        lines = [f"and {rest:,} more; the JSON has all"] if rest > 0 else []
        lines += self._lines()
        return Group(table, *(Text(printable(line)) for line in lines))

    def _lines(self) -> list[str]:
        return [
            f"format version {self.version}, written by tensorlrf {self.made_by}, "
            + (f"architecture {self.fingerprint[:12]}" if self.fingerprint else "a checkpoint"),
            f"{self.tensors:,} tensors; numbers: {self.params_before:,} dense, "
            f"{self.params_after:,} here ({_share(self.params_after, self.params_before)})",
            "checksums of the header and of all tensors are right"
            if self.verified
            else "checksum of the header is right; verify=True checks the tensors",
        ]

    def _page(self, title: str | None, date: str | None) -> Page:
        saved = self.path
        if os.path.basename(saved) == folder.TENSORS:
            saved = os.path.dirname(saved) or os.curdir
        called = title or os.path.basename(os.path.abspath(saved))
        numbers = self.params_before, self.params_after
        return file_page(
            called, date, self.size, numbers, self.layers, self.plan, self._lines(), saved
        )


def inspect(path: PathLike, *, verify: bool = False) -> FileReport:
    """What a file that `save` wrote holds, without its model.

    Parameters
    ----------
    path : str or path
        The file, or the folder of a model of transformers.
    verify : bool
        Whether to read the whole file and check the tensors too, and of a folder all else that
        `load` checks; else only the header is read.

    Returns
    -------
    FileReport

    Raises
    ------
    FileError
        Where there is nothing to read.
    FileFormatError
        Where the file is damaged, from a later version, or none of ours.

    Examples
    --------
    >>> import os, tempfile
    >>> layer = tensorlrf.nn.factorize(torch.nn.Linear(64, 64), "svd", 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "small.safetensors")
    ...     tensorlrf.save(torch.nn.Sequential(layer), path)
    ...     about = tensorlrf.inspect(path, verify=True)
    >>> about.layer("0").rank, about.verified
    (4, True)
    """
    given = target = as_path(path)
    if os.path.isdir(given):
        put_right(given)
        if (given / folder.TENSORS).exists():
            target = given / folder.TENSORS
    with reading(target) as file:
        if verify and not (target != given and _loads(given)):
            for name in file.header.tensors:
                file.tensor(name)
        return _report(file.header, target, verify)


def _loads(given: Path) -> bool:
    """Load the model of a folder, so that whatever is wrong is raised. False where its architecture
    is not at hand, and `load` wants it as an argument."""
    if not (given / CONFIG).is_file():
        return False
    try:
        folder.load(given, None, None)
    except (MissingExtraError, UnsupportedError):
        return False
    return True


def _report(header: Header, path: Path, verified: bool) -> FileReport:
    dtypes: dict[str, set[str]] = {}  # name of a module -> of its own tensors
    for slot in header.slots:
        for name in slot.at:
            held = dtypes.setdefault(name.rpartition(".")[0], set())
            held.add(header.tensors[slot.tensor].dtype)
    layers = tuple(_layer(entry, dtypes, os.fspath(path)) for entry in header.layers)
    lasting = {
        slot.tensor
        for slot in header.slots
        if any(role is None or role in LASTING for role in slot.at.values())
    }
    after = sum(math.prod(header.tensors[name].shape) for name in lasting)
    return FileReport(
        path=os.fspath(path),
        version=FORMAT_VERSION,
        made_by=header.made_by,
        fingerprint=None if header.architecture is None else digest(header.architecture),
        size=path.stat().st_size,
        tensors=len(header.tensors),
        params_before=after
        + sum(row.params_before - row.params_after for row in layers)
        + sum(entry.left_out for entry in header.resized),
        params_after=after,
        layers=layers,
        plan=header.plan,
        verified=verified,
    )


def _layer(entry: LayerEntry, dtypes: Mapping[str, set[str]], path: str) -> FileLayer:
    factors = blank_factors(entry, path)
    return FileLayer(
        name=entry.places[0],
        places=entry.places,
        stands_for=entry.stands_for,
        format=entry.format,
        rank=factors.rank,
        shape=entry.shape,
        dtype="/".join(sorted(dtypes.get(entry.places[0], ()))) or "?",
        params_before=math.prod(entry.shape),
        params_after=numbers_in(entry),
        measured=tuple(entry.measured),
    )


def _cells(row: FileLayer) -> list[str]:
    rank = ", ".join(map(str, row.rank)) if isinstance(row.rank, tuple) else str(row.rank)
    return [
        row.name or "(model)",
        row.stands_for or "-",
        row.format,
        rank,
        "x".join(map(str, row.shape)),
        row.dtype,
        f"{row.params_before:,} to {row.params_after:,}",
        _share(row.params_after, row.params_before),
    ]


def _share(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else "-"
