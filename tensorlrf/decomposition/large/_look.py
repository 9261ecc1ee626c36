"""The first pass: whether all entries are numbers, how large they are, and their norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tensorlrf.decomposition._input import check_room
from tensorlrf.decomposition.large._divided import Reading
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.errors import ArgumentError

_BLOCK = 1 << 18  # entries that are raised to float64 at once
_SLAB = 1 << 22  # entries of a slab


def look(reading: Reading) -> float:
    """The norm of the tensor over the scale that `reading` gets, in one pass.

    Raises ArgumentError for NaN and Inf, with the slab where they are, and where entries or their
    norm are at the end of what the dtype holds.
    """
    largest, square, bad = 0.0, 0.0, ""
    rows = max(1, _SLAB // reading.row)
    for own, piece in reading.raw(rows):
        low, high = map(float, piece.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            kind = "NaN" if math.isnan(low) or math.isnan(high) else "Inf"
            bad = f"tensor contains {kind} in {_place(reading, own)}"
            break
        most = max(abs(low), abs(high))
        if most > largest:  # squares are of entries over the largest so far
            square *= (largest / most) ** 2
            largest = most
        if largest > 0:
            square += _square(piece, largest)
    _raise_together(reading, bad)
    whole = reading.group.most(_one(reading, largest)).item()
    share = (largest / whole) ** 2 if whole > 0 else 0.0
    ratio = math.sqrt(reading.group.total(_one(reading, square * share)).item())
    count = math.prod(reading.shape)
    check_room(reading.tensor.dtype, count, whole, lambda: ratio, "tensor")
    # Of the working dtype alone: how far an exponent may go.
    reading.scale = scale_of(torch.zeros((), dtype=reading.dtype, device="cpu"), float(whole))
    return ratio * (whole / reading.scale)


def _square(piece: Tensor, unit: float) -> float:
    """Sum of squares of the entries over `unit`, a block at a time.

    All blocks go through one: allocations of megabytes, freed and made again, leave gaps in the
    heap that add up to more than a slab.
    """
    flat = piece.reshape(-1)
    block = torch.empty(min(_BLOCK, len(flat)), dtype=torch.float64, device=piece.device)
    total = 0.0
    for part in torch.split(flat, _BLOCK):
        raised = block[: len(part)].copy_(part).div_(unit)
        total += float(torch.linalg.vector_norm(raised)) ** 2
    return total


def _place(reading: Reading, own: slice) -> str:
    start = reading.tensor.own.start
    return f"slab {start + own.start} to {start + own.stop - 1} along mode {reading.tensor.along}"


def _raise_together(reading: Reading, bad: str) -> None:
    if reading.group.processes is not None:
        reading.group.check_all(bad)
    elif bad:
        raise ArgumentError(f"{bad}; clean it first, or find where it came from")


def _one(reading: Reading, value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64, device=reading.device)
