"""Coordinates and values of entries, from whatever holds them, checked, sorted and each once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors.arrays import PLACES, SPARSE_LAYOUTS, as_dense

Triple = tuple[Tensor, Tensor, tuple[int, ...]]
"""Values (nnz,), coordinates (order, nnz), and the shape of the whole."""

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

DUPLICATES = ("error", "sum")

LARGEST = torch.iinfo(torch.int64).max


def places_dtype(sizes: Sequence[int]) -> torch.dtype:
    """What holds coordinates in a tensor of these sizes."""
    return PLACES if max(sizes) <= torch.iinfo(PLACES).max else torch.int64


def checked_sizes(shape: Any) -> tuple[int, ...]:
    """A shape as a tuple of ints of at least one. Raises ArgumentError or ShapeError."""
    if isinstance(shape, (str, int)) or not isinstance(shape, Sequence):
        raise ArgumentError(f"shape={shape!r} must be a tuple of ints, one a mode")
    sizes = tuple(shape)
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in sizes)
    if not whole or not sizes:
        raise ArgumentError(f"shape={sizes!r} must be ints, one a mode")
    if not all(1 <= n <= LARGEST for n in sizes):
        raise ShapeError(f"shape={sizes} holds no entry; sizes are from 1 to 2^63 - 1")
    return tuple(int(n) for n in sizes)


def as_values(values: Any) -> Tensor:
    """Values (nnz,) of floating point. Raises ArgumentError or ShapeError."""
    given = as_dense(_array(values, "values"), "values")
    if given.ndim != 1:
        raise ShapeError(f"values has shape {tuple(given.shape)}; it must be (nnz,)")
    if not given.is_floating_point():
        raise ArgumentError(
            f"values has dtype {given.dtype}; a decomposition needs floating point, cast it first, "
            "as with .to(torch.float32)"
        )
    return given


def as_whole_numbers(coordinates: Any, values: Tensor) -> Tensor:
    """Coordinates (order, nnz) for the values. Raises ArgumentError or ShapeError."""
    given = as_dense(_array(coordinates, "coordinates"), "coordinates")
    if not given.numel() and not isinstance(coordinates, (Tensor, np.ndarray)):
        given = given.long()  # empty lists do not say what they are lists of
    if given.dtype not in WHOLE:
        raise ArgumentError(
            f"coordinates has dtype {given.dtype}; they are whole numbers, cast them first, as "
            "with .to(torch.int64)"
        )
    nnz = len(values)
    if given.ndim != 2 or given.shape[1] != nnz or not given.shape[0]:
        turned = given.ndim == 2 and given.shape[0] == nnz
        remedy = "; pass coordinates.T" if turned else ""
        raise ShapeError(
            f"coordinates has shape {tuple(given.shape)} for {nnz} values; it must be (order, "
            f"{nnz}), a row for each mode and a column for each value{remedy}"
        )
    if given.device != values.device:
        raise ArgumentError(
            f"coordinates is on {given.device}, values on {values.device}; bring them together "
            "with .to()"
        )
    return given


def _array(value: Any, name: str) -> Any:
    """Lists and the like as an array: of floats in torch's own dtype for them."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value
    try:
        made = np.asarray(value)
    except ValueError as error:
        raise ArgumentError(f"{name} is no array of numbers: {error}") from None
    if made.dtype == np.float64:
        return torch.tensor(made, dtype=torch.get_default_dtype(), device="cpu")
    return made


def sizes_of(places: Tensor) -> tuple[int, ...]:
    """The smallest shape that holds all coordinates."""
    if not places.shape[1]:
        raise ArgumentError("shape=None needs coordinates to be read from; there are none, give it")
    return tuple(max(1, n + 1) for n in places.amax(1).tolist())


def check_inside(places: Tensor, sizes: Sequence[int], owner: str = "") -> None:
    """Raise ArgumentError for the first entry with a coordinate outside of the shape."""
    if not places.shape[1]:
        return
    low, high = (bound.tolist() for bound in places.aminmax(dim=1))
    if all(a >= 0 and b < size for a, b, size in zip(low, high, sizes, strict=True)):
        return
    limits = torch.tensor(sizes, dtype=torch.int64, device=places.device)[:, None]
    at = int(((places < 0) | (places >= limits)).any(0).to(torch.int8).argmax())
    where = places[:, at].tolist()
    mode = next(
        k for k, (i, size) in enumerate(zip(where, sizes, strict=True)) if not 0 <= i < size
    )
    raise ArgumentError(
        f"{owner + ': ' if owner else ''}coordinates[{mode}, {at}] = {where[mode]} is outside of "
        f"mode {mode}, whose coordinates are 0 to {sizes[mode] - 1} in shape={tuple(sizes)}"
    )


def unsorted_at(places: Tensor) -> int | None:
    """The first column that is not above the one before it in lexicographic order, if any."""
    if places.shape[1] < 2:
        return None
    here, before = places[:, 1:], places[:, :-1]
    above = here[0] > before[0]
    tied = here[0] == before[0]
    for now, last in zip(here[1:], before[1:], strict=True):
        above |= tied & (now > last)
        tied &= now == last
    return None if bool(above.all()) else int(above.to(torch.int8).argmin()) + 1


def sorted_unique(triple: Triple, duplicates: str) -> Triple:
    """The same entries in lexicographic order, each once.

    Parameters
    ----------
    triple : tuple
        Values, coordinates and shape.
    duplicates : {"error", "sum"}
        What is done about coordinates that are there twice.

    Returns
    -------
    tuple
        Likewise, coordinates in their dtype.

    Raises
    ------
    ArgumentError, ShapeError
        For an entry outside of the shape, or there twice where that is an error.
    """
    values, places, sizes = triple
    if duplicates not in DUPLICATES:
        raise unknown("duplicates", duplicates, DUPLICATES)
    if len(places) != len(sizes):
        raise ShapeError(
            f"coordinates has {len(places)} rows for the {len(sizes)} modes of shape={sizes}; give "
            "one each"
        )
    check_inside(places, sizes)
    places = places.to(places_dtype(sizes))
    first = unsorted_at(places)
    if first is None:
        return values, places.contiguous(), sizes
    order = _order(places, sizes)
    ranked = places[:, order]
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = (ranked[:, 1:] != ranked[:, :-1]).any(0)
    if bool(new.all()):
        return values[order], ranked, sizes
    if duplicates == "error":
        _refuse_twice(ranked, order, new)
    starts = new.nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([len(order)]))
    wide = values.detach()[order].to(torch.float64)
    summed = torch.segment_reduce(wide, "sum", lengths=lengths).to(values.dtype)
    return summed, ranked[:, starts].contiguous(), sizes


def _order(places: Tensor, sizes: Sequence[int]) -> Tensor:
    """The permutation that sorts columns, equal ones as they stand."""
    if math.prod(sizes) <= LARGEST:
        key = places[0].long()
        for row, size in zip(places[1:], sizes[1:], strict=True):
            key = key * size + row
        return key.argsort(stable=True)
    order = places[-1].argsort(stable=True)
    for row in places[:-1].flip(0):
        order = order[row[order].argsort(stable=True)]
    return order


def _refuse_twice(ranked: Tensor, order: Tensor, new: Tensor) -> None:
    """Raise ArgumentError that names the first entry which repeats another one."""
    again = (~new).nonzero()[:, 0]
    at = int(again[order[again].argmin()])
    start = int(new[: at + 1].nonzero()[-1])
    raise ArgumentError(
        f"coordinates has {tuple(ranked[:, at].tolist())} twice, at {int(order[start])} and "
        f"{int(order[at])} ({len(again)} repeated in all); duplicates='sum' adds their values up"
    )


# ---- from other kinds of tensors ----------------------------------------------------------------


def of_any(tensor: Any) -> Triple:
    """What a sparse or dense tensor of torch, numpy or scipy holds; sorted by nothing.

    Raises ArgumentError for what is none of these.
    """
    if hasattr(tensor, "tocoo"):  # of scipy, in any layout
        coo = tensor.tocoo()
        along = coo.coords if hasattr(coo, "coords") else (coo.row, coo.col)
        places = np.stack([np.asarray(row) for row in along])
        values = as_values(np.asarray(coo.data))
        return values, as_whole_numbers(places, values), checked_sizes(tuple(coo.shape))
    if isinstance(tensor, Tensor) and tensor.layout in SPARSE_LAYOUTS:
        return _of_layout(tensor.detach())
    dense = as_dense(tensor, "tensor").detach()
    if not dense.is_floating_point():
        as_values(dense.flatten())
    sizes = checked_sizes(tuple(dense.shape))
    at = dense.nonzero().T
    return dense[tuple(at)], at, sizes


def _of_layout(tensor: Tensor) -> Triple:
    if tensor.is_meta:
        as_dense(tensor.to_dense(), "tensor")
    if tensor.dense_dim():
        raise ArgumentError(
            f"tensor is hybrid, with entries of {tensor.dense_dim()} dense dimensions; pass "
            ".to_dense(), or .to_dense().to_sparse()"
        )
    coo = tensor if tensor.layout is torch.sparse_coo else tensor.to_sparse(layout=torch.sparse_coo)
    values = as_values(coo._values())
    return values, as_whole_numbers(coo._indices(), values), checked_sizes(tuple(coo.shape))
