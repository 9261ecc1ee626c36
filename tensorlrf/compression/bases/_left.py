"""The left factor of a weight for a right one that is given."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.compact import Gram
from tensorlrf.factors import LowRank


def on_right(weight: Tensor, gram: Gram | None, right: Tensor) -> LowRank:
    """L R with L = W G R^T (R G R^T)^-1, of least tr(D G D^T) for D = W - L R: whatever metric the
    outputs have it is the same. In the dtype of R (r, n), for moments G (n, n) or none."""
    wide = right.to(torch.float64)
    seen = wide if gram is None else wide @ gram
    inner = torch.linalg.pinv(seen @ wide.T, hermitian=True)
    return LowRank((weight.to(torch.float64) @ seen.T @ inner).to(right.dtype), right)
