"""The true residual of factors, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.large._divided import Reading
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.linalg.multilinear._residual import sum_of_squares

_BLOCK = 1 << 20  # entries of a residual


def blocks(piece: Tensor, mode: int = 0) -> Iterator[slice]:
    """Some of a mode of a piece at a time, as its residual is taken."""
    count = piece.shape[mode]
    step = max(1, _BLOCK * count // piece.numel())
    yield from (slice(k, min(k + step, count)) for k in range(0, count, step))


def residual_bytes(reading: Reading) -> int:
    """What is rebuilt of a block, on the way and at the end, and its difference."""
    return 3 * max(_BLOCK, reading.row) * reading.dtype.itemsize


def rel_error(
    reading: Reading,
    norm: float,
    rows: int,
    rebuilt: Callable[[slice], Tensor],
    axes: Sequence[int] | None = None,
) -> float:
    """||X - X_hat|| / ||X||, absolute for zero, in one pass.

    norm     ||X||, over the scale of `reading` as X is
    rebuilt  from the rows of the divided mode, as this process counts them, to X_hat there, of the
             shape of the piece with its modes in the order `axes`; it may be changed
    """
    found = torch.zeros((), dtype=torch.float64, device=reading.device)
    mode = (axes or reading.axes).index(reading.tensor.along)
    for own, piece in reading.pieces(rows, axes):
        for some in blocks(piece, mode):
            at = slice(own.start + some.start, own.start + some.stop)
            block = piece.narrow(mode, some.start, some.stop - some.start)
            found += sum_of_squares(rebuilt(at).sub_(block).flatten(1))
    return ratio(reading.group.total(found[None])[0], norm**2)
