"""The true residual of starts of a CP model."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.linalg.multilinear._residual import square_residual


def square_residuals(tensor: CutTensor, state: CPState) -> Tensor:
    """||X - X_hat||^2 for each start, (s,) float64, on the device: the difference itself is
    summed."""
    return torch.stack([_one(tensor, state.start(i)) for i in range(state.starts)])


def _one(tensor: CutTensor, state: CPState) -> Tensor:
    # Weights in the dtype of the data, as they are returned.
    return square_residual(tensor, state.columns, state.weights[0])
