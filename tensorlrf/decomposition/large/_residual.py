"""The true residual of factors, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._residual import sum_of_squares
from tensorlrf.decomposition.large._divided import Reading
from tensorlrf.decomposition.linalg._spectrum import ratio


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
    for own, piece in reading.pieces(rows, axes):
        found += sum_of_squares(rebuilt(own).sub_(piece).flatten(1))
    return ratio(reading.group.total(found[None])[0], norm**2)
