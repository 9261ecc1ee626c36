"""What one rank of tensor parallelism holds of a linear layer on factors: pure arithmetic.

vLLM has the layers that read the same input in one: queries, keys and values, or gate and up. Each
part of such a layer has its own rank, or is dense. Of a layer that is cut by its outputs a rank
holds rows of `left` and all of `right`; of one that is cut by its inputs all of `left` and columns
of `right`. What the rank of the factors counts is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensorlrf.errors import FileFormatError, ShapeError, UnsupportedError
from tensorlrf.vllm._told import Factored

Parts = Sequence[tuple[str, Factored | None]]
"""Name and factors of each part of a layer of vLLM, None for a dense one."""


@dataclass(frozen=True)
class Own:
    """What a rank holds of a layer.

    rows     of each of its parts, as vLLM counts them: outputs on this rank
    copies   how many ranks have the same rows of a part; more than 1 for few heads of keys
    columns  inputs on this rank
    inputs   of the whole layer
    place    of this rank, among `ways`
    """

    rows: tuple[int, ...]
    copies: tuple[int, ...]
    columns: int
    inputs: int
    place: int
    ways: int


@dataclass(frozen=True)
class Piece:
    """A part of a layer on one rank.

    name     of the part
    factors  None where it is dense
    spans    which of the rows of `Own` it is, one or several that follow each other
    rows     how many outputs it has here
    left     where its left factor lies, of all that are held one after another, flat
    first    its rows in what multiplies the input: the right factors, then the dense weights
    shared   whether its right factor is that of a piece before it
    """

    name: str
    factors: Factored | None
    spans: tuple[int, int]
    rows: int
    left: tuple[int, int]
    first: tuple[int, int]
    shared: bool = False


def pieces_of(layer: str, parts: Parts, own: Own) -> list[Piece]:
    """The parts of a layer, or the one that all of it is in the files, and where they lie.

    Raises ShapeError, FileFormatError, UnsupportedError where they do not fit the layer.
    """
    if len(parts) not in (1, len(own.rows)):
        raise UnsupportedError(
            f"layer {layer!r} has {len(own.rows)} parts in vLLM and {len(parts)} in the files, "
            f"{parts[0][0]!r} the first; leave it dense"
        )
    spans = [(k, k + 1) for k in range(len(parts))] if parts[1:] else [(0, len(own.rows))]
    found: list[Piece] = []
    rights: dict[str, tuple[int, int]] = {}
    lefts = ranks = 0
    for (name, factors), span in zip(parts, spans, strict=True):
        if factors is None:
            continue
        rows = sum(own.rows[slice(*span)])
        _check(factors, span, own)
        size = rows * factors.rank
        shared = factors.right in rights
        if not shared:
            rights[factors.right] = (ranks, ranks + factors.rank)
            ranks += factors.rank
        first = rights[factors.right]
        found.append(Piece(name, factors, span, rows, (lefts, lefts + size), first, shared))
        lefts += size
    for (name, factors), span in zip(parts, spans, strict=True):
        if factors is None:
            rows = sum(own.rows[slice(*span)])
            found.append(Piece(name, None, span, rows, (0, 0), (ranks, ranks + rows)))
            ranks += rows
    return sorted(found, key=lambda one: one.spans)


def _check(factors: Factored, span: tuple[int, int], own: Own) -> None:
    if factors.columns != own.inputs:
        raise FileFormatError(
            f"the layer {factors} by its factors, takes {own.inputs} inputs by config.json; get "
            "the folder anew"
        )
    rows_here(factors.name, factors.rows, span, own)


def rows_here(name: str, rows: int, span: tuple[int, int], own: Own) -> list[slice]:
    """Which rows of a whole matrix of `rows` are this rank's.

    Raises ShapeError where the ranks do not divide them.
    """
    here, copies = own.rows[slice(*span)], own.copies[slice(*span)]
    if rows == sum(here):
        return [slice(0, rows)]
    wholes = [n * own.ways // k for n, k in zip(here, copies, strict=True)]
    if rows != sum(wholes):
        raise ShapeError(
            f"tensor_parallel_size={own.ways} gives a rank {sum(here)} rows of {name!r}, which has "
            f"{rows}; choose one that divides its rows, or get the folder anew where config.json "
            "is not of its tensors"
        )
    found, start = [], 0
    for n, k, whole in zip(here, copies, wholes, strict=True):
        begin = start + own.place // k * n
        found.append(slice(begin, begin + n))
        start += whole
    return found


def columns_here(name: str, columns: int, own: Own) -> slice:
    """Which columns of a whole matrix are this rank's. Raises ShapeError as `rows_here` does."""
    if columns == own.columns:
        return slice(0, columns)
    if columns != own.columns * own.ways:
        raise ShapeError(
            f"tensor_parallel_size={own.ways} gives a rank {own.columns} columns of {name!r}, "
            f"which has {columns}; choose one that divides them"
        )
    return slice(own.place * own.columns, (own.place + 1) * own.columns)


def sizes_of(pieces: Sequence[Piece]) -> tuple[int, int, int]:
    """(entries of all left factors, rows of all right ones, rows of all dense weights)."""
    lefts = max((one.left[1] for one in pieces), default=0)
    rights = max((one.first[1] for one in pieces if one.factors), default=0)
    return lefts, rights, max(one.first[1] for one in pieces) - rights


def piece_of(layer: str, pieces: Sequence[Piece], shard: object) -> Piece:
    """The piece that vLLM names by a shard: "q", "k", "v", a number, or None for all.

    Raises UnsupportedError where there is none such.
    """
    place = {None: 0, "q": 0, "k": 1, "v": 2}.get(shard, shard)  # type: ignore[call-overload]  # a number is its place
    one = next((one for one in pieces if one.spans[0] == place), None)
    if one is None or (shard is None and len(pieces) > 1):
        raise UnsupportedError(f"layer {layer!r} has no part {shard!r} on factors; leave it dense")
    return one
