"""Moments in a safetensors file with a sealed header, of which one layer is read at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorlrf.compression.calibration.moments._form import COUNTS, FULL, IMAGE, Form
from tensorlrf.compression.calibration.moments._sums import PRODUCTS
from tensorlrf.compression.moments._kept import Groups, Kept
from tensorlrf.compression.moments._layer import SAMPLES, CalibratedLayer, Weight, empty, shapes_of
from tensorlrf.compression.moments._rows import by_name
from tensorlrf.compression.scale._shards import Piece, write_pieces
from tensorlrf.errors import FileFormatError
from tensorlrf.files.safetensors import TORCH_DTYPES, SafeFile, bytes_of, opened
from tensorlrf.files.sealed import Stored, checked, made_by, seal, storable_key, unseal
from tensorlrf.files.strict import JsonNode

KEY = "tensorlrf.moments"
"""Of the header in the metadata."""

FORMAT_VERSION = 1

PART = 1 << 21
"""Numbers that are written at a time, of one row of a matrix at the least."""

F64 = "F64"

LARGEST = 1 << 31
"""Of a size that is in a header."""


# ---- writing -----------------------------------------------------------------------------------


def write(path: Path, batches: int, rows: Sequence[CalibratedLayer], kept: Kept) -> dict[str, str]:
    """Write the moments of these layers, one at a time; tensor -> checksum. Raises OSError."""
    pieces, at_hand = [], _AtHand(kept)
    for row in rows:
        if not row.count or row.like:
            continue
        for group in range(row.groups):
            for name, shape in shapes_of(row).items():
                chunks = partial(at_hand.chunks, row, group, name)
                pieces.append(Piece(key(row.name, group, name), F64, shape, chunks))

    def metadata(checksums: Mapping[str, str]) -> dict[str, str]:
        stored = {piece.name: piece.stored(checksums[piece.name]) for piece in pieces}
        return {KEY: seal(_values(batches, rows, stored))}

    return write_pieces(path, pieces, metadata)


def key(layer: str, group: int, name: str) -> str:
    """Of a tensor in the file."""
    return storable_key(f"{layer}/{group}/{name}")


def _values(
    batches: int, rows: Sequence[CalibratedLayer], stored: Mapping[str, Stored]
) -> dict[str, Any]:
    return {
        "version": FORMAT_VERSION,
        "tensorlrf": made_by(),
        "tensors": {name: one.to_json() for name, one in stored.items()},
        "batches": batches,
        "layers": {row.name: _row_values(row) for row in rows},
    }


def _row_values(row: CalibratedLayer) -> dict[str, Any]:
    numbers = torch.tensor(row.weight.samples, dtype=torch.float64, device="cpu")
    return {
        "count": row.count,
        "groups": row.groups,
        "like": row.like,
        "kind": row.kept.kind,
        "size": row.kept.size,
        "shape": list(row.weight.shape),
        "dtype": row.weight.dtype,
        "samples": bytes(bytes_of(numbers)).hex(),
    }


class _AtHand:
    """Reads a layer once for all of its tensors, which are written one behind the other."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._name: str | None = None
        self._groups: Groups = ()

    def chunks(self, row: CalibratedLayer, group: int, name: str) -> Iterator[memoryview]:
        """The bytes of one of its tensors."""
        if row.name != self._name:
            self._groups = ()
            self._name, self._groups = row.name, self._kept.read(row)
        tensor = self._groups[group].tensors()[name]
        parts = _triangle(tensor) if name == PRODUCTS else iter((tensor,))
        for part in parts:
            if part.numel():
                yield bytes_of(part.contiguous())


def _triangle(square: Tensor) -> Iterator[Tensor]:
    """The upper triangle, row by row."""
    n = len(square)
    first = 0
    while first < n:
        last, numbers = first, 0
        while last < n and (last == first or numbers + n - last <= PART):
            numbers, last = numbers + n - last, last + 1
        yield torch.cat([square[k, k:] for k in range(first, last)])
        first = last


def _square(triangle: Tensor, n: int) -> Tensor:
    """Inverse of `_triangle`; zero below the diagonal."""
    square = torch.zeros(n, n, dtype=triangle.dtype, device=triangle.device)
    at = 0
    for k in range(n):
        square[k, k:] = triangle[at : at + n - k]
        at += n - k
    return square


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class InFile(Kept):
    """path   of the file
    seal   the checksum of its header when it was first read
    """

    path: Path
    seal: str

    def read(self, row: CalibratedLayer) -> Groups:
        """Raises FileFormatError where a tensor is damaged, or the file is another one by now."""
        with opened(self.path) as file:
            head, stored = _head(file)
            if head["checksum"].text() != self.seal:
                raise FileFormatError(
                    f"path={os.fspath(self.path)!r} is not the file any more that it was when its "
                    "moments were loaded; load them again"
                )
            tensor = checked(file, stored)
            found = []
            for group in range(row.groups):
                tensors = {name: tensor(key(row.source, group, name)) for name in shapes_of(row)}
                if PRODUCTS in tensors:
                    tensors[PRODUCTS] = _square(tensors[PRODUCTS], row.columns)
                _check_filled(file, row, tensors)
                moments = empty(row)
                moments.restore(row.count, tensors)
                found.append(moments)
        return tuple(found)


def read(path: Path) -> tuple[int, tuple[CalibratedLayer, ...], InFile]:
    """The number of batches, the layers, and where their moments are, of which none is read.

    Raises MissingFileError, FileError, FileFormatError.
    """
    with opened(path) as file:
        head, stored = _head(file)
        head.keys_are(["checksum", "version", "tensorlrf", "tensors", "batches", "layers"])
        rows = tuple(_row(name, head["layers"][name]) for name in head["layers"].mapping())
        _check_rows(file, rows, stored)
        checked(file, stored)
        return head["batches"].whole(), rows, InFile(path, head["checksum"].text())


def _head(file: SafeFile) -> tuple[JsonNode, dict[str, Stored]]:
    if KEY not in file.metadata:
        raise FileFormatError(
            f"path={file.path!r} holds no moments; give a file that tensorlrf calibrate wrote"
        )
    head = unseal(file, KEY, FORMAT_VERSION)
    return head, head["tensors"].each(Stored.read)


def _row(name: str, at: JsonNode) -> CalibratedLayer:
    at.keys_are(["count", "groups", "like", "kind", "size", "shape", "dtype", "samples"])
    shape, dtype = at["shape"].wholes(), at["dtype"].text()
    if not 1 < len(shape) < 6 or not 0 < max(shape) < LARGEST or not min(shape):
        at["shape"].wrong("that of a weight")
    if dtype not in TORCH_DTYPES or not TORCH_DTYPES[dtype].is_floating_point:
        at["dtype"].wrong("the dtype of a weight")
    text = at["samples"].text()
    if not re.fullmatch(rf"([0-9a-f]{{16}}){{0,{SAMPLES}}}", text):
        at["samples"].wrong("numbers as bytes")
    raw = bytearray.fromhex(text)
    numbers = torch.frombuffer(raw, dtype=torch.float64).tolist() if raw else []
    kept = Form(at["kind"].text(), at["size"].whole())
    sketch = kept.kind in ("sketch", IMAGE) and 0 < kept.size < LARGEST
    if kept not in (FULL, COUNTS) and not sketch:
        at["kind"].wrong("full, a sketch, an image, or counts")
    groups = at["groups"].whole(1)
    if shape[0] % groups:
        at["groups"].wrong("a number that divides the outputs")
    weight = Weight(shape, dtype, tuple(numbers))
    return CalibratedLayer(name, at["count"].whole(), groups, at["like"].text(), kept, weight)


def _check_rows(
    file: SafeFile, rows: Sequence[CalibratedLayer], stored: Mapping[str, Stored]
) -> None:
    """Raise FileFormatError where the layers and the tensors of a header do not fit."""
    known = by_name(rows)
    wanted: dict[str, tuple[int, ...]] = {}
    for row in rows:
        if row.like:
            first = known.get(row.like)
            alike = (
                first is not None
                and not first.like
                and (
                    (first.count, first.columns, first.groups, first.kept)
                    == (row.count, row.columns, row.groups, row.kept)
                )
            )
            if not alike:
                raise _damaged(file, f"{row.name} cannot have the moments of {row.like}")
        elif row.count:
            if row.groups > len(stored):  # each of which has some
                raise _damaged(file, f"{row.name} has {row.groups:,} groups")
            for group in range(row.groups):
                wanted |= {key(row.name, group, name): s for name, s in shapes_of(row).items()}
    found = {name: one.shape for name, one in stored.items() if one.dtype == F64}
    if found != wanted or len(found) != len(stored):
        raise _damaged(file, "its tensors are not those of its layers")


def _check_filled(file: SafeFile, row: CalibratedLayer, tensors: Mapping[str, Tensor]) -> None:
    """Raise FileFormatError for a sketch of no number of rows."""
    filled = float(tensors["filled"]) if "filled" in tensors else 0.0
    if not filled.is_integer() or not 0 <= filled < 2 * max(1, row.kept.size):
        raise _damaged(file, f"the sketch of {row.name} has {filled} rows")


def _damaged(file: SafeFile, why: str) -> FileFormatError:
    return FileFormatError(f"path={file.path!r} is damaged: {why}; get the file anew")
