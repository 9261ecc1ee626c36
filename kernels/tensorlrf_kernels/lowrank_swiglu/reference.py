"""The plain torch meaning of `lowrank_swiglu`, its gradients included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Projection(NamedTuple):
    """One of the two linear layers: right (r, n), left (m, r), bias (m,) or None."""

    right: Tensor
    left: Tensor
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """r."""
        return self.left.shape[1]


def lowrank_swiglu(
    x: Tensor,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> Tensor:
    """silu(x @ gate_right^T @ gate_left^T + gate_bias) * (x @ up_right^T @ up_left^T + up_bias).

    x (..., n), gate_right (g, n), gate_left (m, g), up_right (u, n), up_left (m, u), biases (m,);
    returns (..., m). Shazeer (2020), "GLU variants improve transformer", equation 6.
    """
    gate = F.linear(F.linear(x, gate_right), gate_left, gate_bias)  # (..., n) -> (..., m)
    return F.silu(gate) * F.linear(F.linear(x, up_right), up_left, up_bias)


def shrink(x: Tensor, gate: Projection, up: Projection) -> Tensor:
    """t (..., g + u): x @ gate_right^T, and x @ up_right^T behind it."""
    return torch.cat([F.linear(x, gate.right), F.linear(x, up.right)], dim=-1)


def expand(t: Tensor, gate: Projection, up: Projection) -> tuple[Tensor, Tensor]:
    """Both projections (..., m), biases included, of t (..., g + u)."""
    t_gate, t_up = t[..., : gate.rank], t[..., gate.rank :]
    return F.linear(t_gate, gate.left, gate.bias), F.linear(t_up, up.left, up.bias)


def lowrank_swiglu_backward(
    dh: Tensor,
    x: Tensor | None,
    t: Tensor,
    gate: Projection,
    up: Projection,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients in x, gate_right, gate_left, up_right, up_left, gate_bias and up_bias, those that
    are `needed`, from dh (M, m).

    x (M, n), read for the gradients in the two `right`s alone; t (M, g + u) as of `shrink`. With
    a the gate's projection and b the other: da = dh b silu'(a) and db = dh silu(a), (M, m), and
    of either projection dt = da left, dx = dt right, dright = dt^T x, dleft = da^T t.
    """
    need_x, need_gate_right, need_gate_left, need_up_right, need_up_left, *need_biases = needed
    a, b = expand(t, gate, up)
    da: Tensor = torch.ops.aten.silu_backward(dh * b, a)
    db = dh * F.silu(a)
    t_gate, t_up = t[:, : gate.rank], t[:, gate.rank :]
    dt_gate = da @ gate.left if need_x or need_gate_right else None  # (M, g)
    dt_up = db @ up.left if need_x or need_up_right else None  # (M, u)
    dx = None
    if need_x and dt_gate is not None and dt_up is not None:
        dx = torch.addmm(dt_gate @ gate.right, dt_up, up.right)
    return (
        dx,
        dt_gate.T @ x if need_gate_right and dt_gate is not None and x is not None else None,
        da.T @ t_gate if need_gate_left else None,
        dt_up.T @ x if need_up_right and dt_up is not None and x is not None else None,
        db.T @ t_up if need_up_left else None,
        da.sum(0) if need_biases[0] else None,
        db.sum(0) if need_biases[1] else None,
    )
