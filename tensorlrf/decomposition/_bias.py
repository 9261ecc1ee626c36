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
    """What the bias of a layer takes over when its weight W becomes W_hat: (W - W_hat) E[x].

    No other bias has a smaller mean square error of the outputs W x: with it what remains is (W -
    W_hat)(x - E[x]), which `svd(gram=, mean=)` and `tucker(gram=, mean=)` minimise. At zero-padded
    borders of a convolution, where patches are not like the mean patch, it adds the same as
    elsewhere.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, ...)
        The weight W, seen as (m, n).
    factors : Factors
        Of its shape; they stand for W_hat.
    mean : Tensor or array of shape (n,)
        The mean input, for a conv the mean patch.

    Returns
    -------
    Tensor of shape (m,)
        To be added to the bias, in the dtype of `tensor`.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Yu & Wu 2023.

    Examples
    --------
    >>> w, mean = torch.rand(8, 6), torch.ones(6)
    >>> f = tensorlrf.svd(w, 2)
    >>> shift = tensorlrf.decomposition.bias_correction(w, f, mean)
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(f.to_dense() @ mean + shift, w @ mean, atol=1e-5)
    True
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
