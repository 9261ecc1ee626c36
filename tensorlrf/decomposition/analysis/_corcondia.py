"""Core consistency: whether a tensor has the number of terms that a CP model gave it."""

from __future__ import annotations

from typing import Any

import torch

from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors
from tensorlrf.factors.algebra import mode_product
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.factors.kinds import check_format


@without_autocast()
@threaded
def corcondia(tensor: Any, factors: CPFactors) -> float:
    """How nearly the best Tucker core for the factors of a CP model is superdiagonal, in percent.

    100 where terms are all that the factors explain; it falls, below zero as well, once there are
    more terms than the tensor has. From 90 on a model is taken for right, below 50 for wrong.

    The core is X x_1 U_1^+ x_2 U_2^+ ...: one mode after the other, no Kronecker product is formed.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_1, ..., n_N), N >= 3
        Of any float dtype; computed in float64.
    factors : CPFactors
        Of the same shape.

    Returns
    -------
    float
        100 (1 - sum of squares of the core less the superdiagonal of ones / rank).

    Raises
    ------
    ArgumentError
        For what is not CPFactors, and for matrices, of which every model is consistent.
    ShapeError
        For factors of another shape.

    References
    ----------
    Bro & Kiers 2003, "A new efficient method for determining the number of components in PARAFAC
    models"; Papalexakis & Faloutsos 2015, "Fast efficient and scalable core consistency
    diagnostic".

    Examples
    --------
    >>> f = tensorlrf.CPFactors(torch.tensor([2.0, 1.0]), tuple(torch.eye(3)[:, :2] for _ in "abc"))
    >>> round(tensorlrf.corcondia(f.to_dense(), f), 6)
    100.0
    """
    check_format(factors, (CPFactors,), "factors", "pass CPFactors, as cp gives")
    checked = as_tensor(tensor).detach()
    if tuple(checked.shape) != tuple(factors.shape):
        raise ShapeError(
            f"factors are of a tensor of shape {tuple(factors.shape)}, but tensor has shape "
            f"{tuple(checked.shape)}; give the one that they were made of"
        )
    if checked.ndim < 3:
        raise ArgumentError(
            "tensor is a matrix, of which terms can be turned into each other, so that no core "
            "tells how many there are; give a tensor of three modes or more, or see scree"
        )
    core = checked.to(torch.float64)
    rank = len(factors.weights)
    weights = factors.weights.detach().to(core.device, torch.float64)
    for k, u in enumerate(factors.factors):
        wide = u.detach().to(core.device, torch.float64)
        if k == 0:
            wide = wide * weights  # so that the core of the model itself is of ones
        core = mode_product(core, torch.linalg.pinv(wide).contiguous(), k)
    places = (torch.arange(rank, device=core.device),) * core.ndim
    core[places] -= 1
    return 100 * (1 - float(core.square().sum()) / rank)
