"""The plain torch meaning of `lowrank_linear`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate


def lowrank_linear(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation(x @ right^T @ left^T + bias + residual).

    x (..., n), right (r, n), left (m, r), bias (m,), residual (..., m); returns (..., m).
    The residual is a further term of the layer's sum, so it is added before the activation.
    """
    y = F.linear(F.linear(x, right), left, bias)  # (..., n) -> (..., r) -> (..., m)
    if residual is not None:
        y = y + residual
    return activate(y, activation)
