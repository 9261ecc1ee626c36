"""Numbers as codes of eight or four bits and the scales that they are multiplied by.

A matrix (rows, columns) is cut into tiles of one size, (a, b) of them, and each tile has a scale:
its largest number over the largest code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.factors.arrays import PLACES

Blocks = tuple[int, int]
"""How many tiles there are along the rows and along the columns."""

LEVELS = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
"""The largest code; whole numbers are symmetric about zero, fp8 is e4m3."""

HELD = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.uint8}
"""The dtype of the tensor that holds codes: two of four bits in a byte, the bits of fp8 as they
are, so that no cast of floats reaches them."""

CODES = tuple(LEVELS)

DENSE, WEIGHT = "dense", "weight"
"""What `of` is where a matrix as it is is quantised, and the name of its one tensor."""

SCALES, HELD_AS = "scales", "codes"
"""What a quantised tensor is stored as: two tensors, behind its name and a dot."""

Sizes = tuple[tuple[int, ...], Blocks]
"""The shape of a tensor, and how many tiles it has as a matrix."""

_ZERO = 8
"""What is added to a code of four bits, which is then from 1 to 15."""


def held_columns(columns: int, codes: str) -> int:
    """How many bytes a row of so many codes takes."""
    return -(-columns // 2) if codes == "int4" else columns


def encoded(
    matrix: Tensor, codes: str, blocks: Blocks, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scales (a, b) in `dtype` and codes (rows, bytes) of a matrix in floating point.

    Codes are those nearest to what the scales, as they are after their cast, leave: the error of
    int8 and int4 is at most half a step, which is the scale.
    """
    rows, columns = matrix.shape
    tiles = _tiles(matrix, blocks)
    scales = (tiles.abs().amax((1, 3)) / LEVELS[codes]).to(dtype)
    wide = scales.to(matrix.dtype)
    steps = torch.where(wide > 0, wide, torch.ones_like(wide))
    whole = (tiles / steps[:, None, :, None]).reshape(rows, columns)
    whole = whole.clamp(-LEVELS[codes], LEVELS[codes])
    if codes == "fp8":
        return scales, whole.to(torch.float8_e4m3fn).view(torch.uint8)
    whole = whole.round()
    return scales, whole.to(torch.int8) if codes == "int8" else _packed(whole)


def decoded(
    held: Tensor,
    scales: Tensor,
    columns: int,
    codes: str,
    unpack: Callable[[Tensor, Tensor, int, str], Tensor] | None = None,
) -> Tensor:
    """The matrix (rows, columns) in the dtype of the scales; differentiable in these."""
    a, b = scales.shape
    tiles = _tiles((unpack or unpacked)(held, scales, columns, codes), (a, b))
    return (tiles * scales[:, None, :, None]).reshape(-1, columns)


def unpacked(held: Tensor, scales: Tensor, columns: int, codes: str) -> Tensor:
    """The codes themselves, (rows, columns), as numbers of the dtype of their scales."""
    if codes == "fp8":
        return held.view(torch.float8_e4m3fn).to(scales.dtype)
    if codes == "int8":
        return held.to(scales.dtype)
    pairs = torch.stack([held % 16, held // 16], -1).flatten(-2)[:, :columns]
    return pairs.to(scales.dtype) - _ZERO


def _packed(whole: Tensor) -> Tensor:
    """Two in a byte, the first one in the lower half; an odd column has a zero beside it."""
    shifted = (whole + _ZERO).to(torch.uint8)
    if shifted.shape[1] % 2:
        shifted = torch.cat([shifted, torch.full_like(shifted[:, :1], _ZERO)], 1)
    return shifted[:, ::2] + 16 * shifted[:, 1::2]


def _tiles(matrix: Tensor, blocks: Blocks) -> Tensor:
    """(a, rows / a, b, columns / b)."""
    (rows, columns), (a, b) = matrix.shape, blocks
    return matrix.reshape(a, rows // a, b, columns // b)


# ---- how a tensor is cut into tiles, and what it is called -------------------------------------


def named_parts(name: str, scales: Tensor, held: Tensor) -> dict[str, Tensor]:
    """The two tensors that one is stored as, by their names."""
    return {f"{name}.{SCALES}": scales, f"{name}.{HELD_AS}": held}


def places_of(count: int) -> torch.dtype:
    """What holds a place among so many in the fewest bytes."""
    if count <= 256:
        return torch.uint8
    return torch.int16 if count <= 1 << 15 else PLACES


def check_codes(codes: Any) -> None:
    """Raise ArgumentError for codes that there are not."""
    if not isinstance(codes, str) or codes not in CODES:
        raise unknown("codes", codes, CODES)


def blocks_of(
    shape: tuple[int, int], group: int | None, name: str, *, by_rows: bool = False
) -> Blocks:
    """How many tiles a matrix has: lines along its longer axis, or rows, in groups of `group`.

    Raises ArgumentError for a group that does not divide these.
    """
    rows, columns = shape
    across = by_rows or rows <= columns  # lines are rows
    length = columns if across else rows
    if group is None:
        return (rows, 1) if across else (1, columns)
    if isinstance(group, bool) or not isinstance(group, int) or group < 1:
        raise ArgumentError(f"group={group!r} must be an int of at least 1, or None")
    if length % group:
        fit = [d for d in range(1, length + 1) if length % d == 0]
        near = sorted(sorted(fit, key=lambda d: abs(math.log(d / group)))[:4])
        raise ArgumentError(
            f"group={group} does not divide the {length} numbers along the longer axis of {name} "
            f"{shape}; {', '.join(map(str, near))} do"
            if not by_rows
            else f"group={group} does not divide the {length} inputs of {name} {shape}; "
            f"{', '.join(map(str, near))} do"
        )
    return (rows, columns // group) if across else (rows // group, columns)


def bytes_of(shape: tuple[int, int], codes: str, blocks: Blocks, size: int) -> int:
    """Of a coded matrix with scales of `size` bytes."""
    return shape[0] * held_columns(shape[1], codes) + math.prod(blocks) * size
