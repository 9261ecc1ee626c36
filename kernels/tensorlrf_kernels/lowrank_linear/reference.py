"""The plain torch meaning of `lowrank_linear`, its gradients included."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate, activate_backward


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
    return activate(expand(F.linear(x, right), left, bias, residual), activation)


def expand(t: Tensor, left: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """t @ left^T + bias + residual, of t = x @ right^T (..., r)."""
    z = F.linear(t, left, bias)  # (..., r) -> (..., m)
    return z if residual is None else z + residual


def lowrank_linear_backward(
    dy: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients in x, right, left, bias and residual, those that are `needed`, from dy (M, m).

    x (M, n), t = x @ right^T (M, r), residual (M, m), right, left and bias as above; x is read for
    dright alone, t for dleft and where there is an activation. With dz = dy activation'(z) and
    dt = dz left: dx = dt right, dright = dt^T x, dleft = dz^T t.
    """
    need_x, need_right, need_left, need_bias, need_residual = needed
    dz = dy
    if activation is not None and t is not None:
        dz = activate_backward(dy, expand(t, left, bias, residual), activation)  # (M, m)
    dt = dz @ left if need_x or need_right else None  # (M, r)
    return (
        dt @ right if dt is not None and need_x else None,
        dt.T @ x if dt is not None and x is not None and need_right else None,
        dz.T @ t if t is not None and need_left else None,
        dz.sum(0) if need_bias else None,
        dz if need_residual else None,
    )
