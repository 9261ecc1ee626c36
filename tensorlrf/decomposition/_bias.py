"""What the bias of a layer can make good of an approximated weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors
from tensorlrf.factors.autocast import without_autocast


@without_autocast()
@threaded
def bias_correction(tensor: Any, factors: Factors, mean: Any) -> Tensor:
    """(W - W_hat) E[x], to be added to the bias of a layer whose weight becomes W_hat.

    tensor   the weight W, (m, ...) seen as (m, n)
    factors  of its shape; they stand for W_hat
    mean     (n,) the mean input, for a conv the mean patch

    No other bias has a smaller mean square error of the outputs W x: with it what remains is
    (W - W_hat)(x - E[x]), which `svd(gram=, mean=)` and `tucker(gram=, mean=)` minimise (Yu & Wu
    2023). Returns (m,) in the dtype of `tensor`. At zero-padded borders of a convolution, where
    patches are not like the mean patch, it adds the same as elsewhere.
    """
    weight = as_tensor(tensor)
    mu = as_tensor(mean, "mean", min_order=1)
    if factors.shape != tuple(weight.shape):
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}, tensor is {tuple(weight.shape)}"
        )
    n = weight[0].numel()
    if tuple(mu.shape) != (n,):
        raise ShapeError(f"mean has shape {tuple(mu.shape)}; the mean input is ({n},)")
    if mu.device != weight.device:
        raise ArgumentError(f"mean is on {mu.device} but tensor on {weight.device}; move it")
    difference = (weight.detach() - factors.to_dense().detach()).to(torch.float64)
    shift: Tensor = difference.reshape(weight.shape[0], n) @ mu.to(torch.float64)
    return shift.to(weight.dtype)
