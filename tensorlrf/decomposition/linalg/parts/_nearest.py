"""The nearest matrix of a rank to one that is no weight itself, such as what other parts leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._target import Sides, Target
from tensorlrf.decomposition.linalg._output_spectrum import OutputSpectrum
from tensorlrf.decomposition.linalg._spectrum import FullSVD, ShortSideEigh
from tensorlrf.factors import LowRank


def nearest(target: Target[Any], matrix: Tensor, r: int) -> Sides:
    """left (m, r) and right (r, n) of the matrix (m, n), in the form of the target: of the sum of
    squares a truncated SVD, in second moments of inputs the top eigenvectors of the outputs."""
    if target.gram is not None:
        return OutputSpectrum(target.with_rows(matrix.to(torch.float64)), matrix).split(r)
    wide = matrix.dtype == torch.float64
    return (FullSVD(matrix) if wide else ShortSideEigh(matrix, r)).split(r)


def factors_of_sides(target: Target[Any], sides: Sides, shape: tuple[int, ...]) -> LowRank:
    """Both sides as factors of the weight, in its dtype and scale."""
    left, right = ((side * target.root).to(target.dtype) for side in sides)
    return LowRank(left, right, shape)
