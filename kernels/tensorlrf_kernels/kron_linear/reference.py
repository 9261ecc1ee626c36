"""The plain torch meaning of `kron_linear`, its gradients included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate, activate_backward


def kron_linear(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation(x W^T + bias + residual) for W = sum over s of kron(a_s, b_s).

    x (..., n1 n2), a (s, m1, n1), b (s, m2, n2), bias (m1 m2,), residual (..., m1 m2); returns
    (..., m1 m2). The residual is a further term of the layer's sum, so it is added before the
    activation.
    """
    return activate(expand(x, a, b, bias, residual), activation)


def expand(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x W^T + bias + residual."""
    z = product(x, a, b)
    z = z if bias is None else z + bias
    return z if residual is None else z + residual


def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x W^T, in two products with all the terms side by side in each, the cheaper order."""
    (s, m1, n1), (_, m2, n2) = a.shape, b.shape
    x = torch.unflatten(x, -1, (n1, n2))
    if b_first((m1, n1), (m2, n2)):
        t = F.linear(x, b.flatten(0, 1))  # (..., n1, s m2)
        t = torch.unflatten(t, -1, (s, m2)).flatten(-3, -2)  # (..., n1 s, m2)
        return torch.matmul(a.permute(1, 2, 0).flatten(1), t).flatten(-2)
    t = torch.matmul(a.transpose(0, 1).flatten(0, 1), x)  # (..., m1 s, n2)
    t = torch.unflatten(t, -2, (m1, s)).flatten(-2)  # (..., m1, s n2)
    return F.linear(t, b.transpose(0, 1).flatten(1)).flatten(-2)


def b_first(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Which of the two orders multiplies less, for factors (m1, n1) and (m2, n2)."""
    (m1, n1), (m2, n2) = a, b
    return n1 * m2 * (n2 + m1) <= m1 * n2 * (n1 + m2)


def kron_linear_backward(
    dy: Tensor,
    x: Tensor | None,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients in x, a, b, bias and residual, those that are `needed`, from dy (M, m1 m2).

    x (M, n1 n2), residual (M, m1 m2), the others as above; x is read for da and db, and where there
    is an activation. With dz = dy activation'(z), and its rows and those of x as matrices Z and X:
    dx = sum of a_s^T Z b_s, da_s = sum over rows of Z b_s X^T, db_s = sum over rows of Z^T a_s X.
    One term at a time, so that no more than one product of the size of dz or x is there at once.
    """
    need_x, need_a, need_b, need_bias, need_residual = needed
    dz = dy
    if activation is not None and x is not None:
        dz = activate_backward(dy, expand(x, a, b, bias, residual), activation)
    da = db = None
    if x is not None and (need_a or need_b):
        Z = torch.unflatten(dz, -1, (a.shape[1], b.shape[1]))  # (M, m1, m2)
        X = torch.unflatten(x, -1, (a.shape[2], b.shape[2]))  # (M, n1, n2)
        da = _gradient(Z, b, X) if need_a else None
        db = _gradient(Z.transpose(1, 2), a, X.transpose(1, 2)) if need_b else None
    return (
        product(dz, a.transpose(1, 2), b.transpose(1, 2)) if need_x else None,
        da,
        db,
        dz.sum(0) if need_bias else None,
        dz if need_residual else None,
    )


def _gradient(Z: Tensor, factor: Tensor, X: Tensor) -> Tensor:
    """(s, m, n): sum over rows of Z factor_s X^T; Z (M, m, k), factor (s, k, l), X (M, n, l)."""
    (M, m, k), (_, n, l) = Z.shape, X.shape
    left = Z.transpose(0, 1).reshape(m * M, k)
    right = X.transpose(1, 2).reshape(M * l, n)
    made = factor.new_empty(len(factor), m, n)
    for f, gradient in zip(factor, made, strict=True):
        torch.mm((left @ f).view(m, M * l), right, out=gradient)
    return made
