"""Operands of `lowrank_linear` for tests, its exact value, and how far rounding may carry it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tensorlrf_kernels._activation import activate
from tests.kernels.drawn.operands import Drawn

# The steepest slope of each activation, and the largest change of its slope.
STEEPEST = {None: 1.0, "relu": 1.0, "gelu": 1.13, "gelu_tanh": 1.13, "silu": 1.1}
BEND = {None: 0.0, "relu": 0.0, "gelu": 0.8, "gelu_tanh": 0.9, "silu": 0.5}


@dataclass
class Operands(Drawn):
    """x (M, K), right (R, K), left (N, R), bias (N,), residual (M, N)."""

    x: Tensor
    right: Tensor
    left: Tensor
    bias: Tensor | None = None
    residual: Tensor | None = None


def draw(
    M: int,
    N: int,
    K: int,
    R: int,
    dtype: torch.dtype = torch.float64,
    *,
    terms: bool = True,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Operands:
    """Operands near one; `layout` changes the strides of the matrices."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    bias, residual = (normal(N), normal(M, N)) if terms else (None, None)
    made = Operands(normal(M, K), normal(R, K) / K**0.5, normal(N, R) / R**0.5, bias, residual)
    made = made.map(lambda t: t.to(device, dtype))
    return made.map(lambda t: layout(t) if t.ndim == 2 else t)


def transposed(t: Tensor) -> Tensor:
    """The same values, one column after the other in memory."""
    return t.T.contiguous().T


def strided(t: Tensor) -> Tensor:
    """The same values with a gap behind each and behind each row."""
    wide = t.new_full((t.shape[0], 2 * t.shape[1] + 3), float("nan"))
    view = wide[:, 1 : 2 * t.shape[1] + 1 : 2]
    view.copy_(t)
    return view


def repeated(t: Tensor) -> Tensor:
    """The first row in place of every row, in memory once."""
    return t[:1].expand(t.shape) if len(t) else t


def far_apart(t: Tensor) -> Tensor:
    """The same values in rows of which the last lies more than 2^31 elements behind the first."""
    rows, columns = t.shape
    step = 2**31 // (rows - 1) + 2
    far = torch.empty((rows - 1) * step + columns, dtype=t.dtype, device=t.device)
    return far.as_strided((rows, columns), (step, 1)).copy_(t)


LAYOUTS = {"rows": lambda t: t, "columns": transposed, "gaps": strided, "one row": repeated}


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def exact(operands: Operands, activation: str | None) -> Tensor:
    """The value in float64."""
    return activate(_sum(operands.wide()), activation)


def forward_bound(operands: Operands, activation: str | None) -> Tensor:
    """How far each element may be off, by the roundings that are made.

    Every product is summed in float32: a sum of n terms is off by n u of the same sum over
    absolute values (Higham 2002, section 3.1). Operands of half precision are exact, but t is
    rounded to them once, and y at the end.
    """
    wide = operands.wide()
    y = activate(_sum(wide), activation)
    return STEEPEST[activation] * sum_bound(operands) + _last(operands.x.dtype) * y.abs() + 1e-30


def sum_bound(operands: Operands) -> Tensor:
    """How far z, the value before the activation, may be off."""
    dtype = operands.x.dtype
    absolute = operands.wide().map(torch.abs)
    n = operands.x.shape[1] + operands.right.shape[0] + 8
    small = torch.finfo(dtype).smallest_normal if dtype is torch.float16 else 0.0
    # Of what lies beneath float16's normal numbers only absolute precision is left.
    underflow = small * 2**-10 * (absolute.left.sum(1)[None, :] + 1)
    return (2 * _last(dtype) + n * roundoff(torch.float32)) * _sum(absolute) + underflow


def backward_bounds(operands: Operands, dy: Tensor, activation: str | None) -> dict[str, Tensor]:
    """The same for the gradients in x, right, left, bias and residual."""
    wide = operands.wide()
    dtype = operands.x.dtype
    u, u32 = _last(dtype), roundoff(torch.float32)
    g, z, t = dy.double().cpu().abs(), _sum(wide), wide.x @ wide.right.T
    off = sum_bound(operands)
    # dz = dy slope(z): z is off, the slope bends, and at its jump relu may take either side.
    dz = STEEPEST[activation] * g
    off_z = g * (BEND[activation] * off + 16 * u32) + 2 * u * dz
    if activation == "relu":
        off_z = off_z + g * (z.abs() <= off)
    a = wide.map(torch.abs)
    M, N = g.shape
    R, K = a.right.shape
    dt = dz @ a.left
    off_t = off_z @ a.left + (N * u32 + 2 * u) * dt
    t_abs = a.x @ a.right.T
    off_kept = ((K + 4) * u32 + 2 * u) * t_abs
    del t
    bounds = {
        "x": off_t @ a.right + ((R + 4) * u32 + 2 * u) * (dt @ a.right),
        "right": off_t.T @ a.x + ((M + 4) * u32 + 2 * u) * (dt.T @ a.x),
        "left": off_z.T @ t_abs + dz.T @ off_kept + ((M + 4) * u32 + 2 * u) * (dz.T @ t_abs),
        "bias": off_z.sum(0) + ((M + 4) * u32 + 2 * u) * dz.sum(0),
        "residual": off_z,
    }
    small = torch.finfo(dtype).smallest_normal if dtype is torch.float16 else 0.0
    return {name: bound + small * (1 + M) + 1e-30 for name, bound in bounds.items()}


def gradients(operands: Operands, dy: Tensor, activation: str | None) -> dict[str, Tensor]:
    """The gradients in float64, by autograd through the definition."""
    wide = operands.wide().map(lambda t: t.requires_grad_())
    activate(_sum(wide), activation).backward(dy.double().cpu())
    return {
        f.name: getattr(wide, f.name).grad
        for f in fields(wide)
        if getattr(wide, f.name) is not None
    }


def assert_within(got: Tensor, expected: Tensor, bound: Tensor, what: str = "") -> None:
    """Every element, NaN included, lies where its bound says."""
    assert got.shape == expected.shape, what
    off = (got.double().cpu() - expected).abs()
    worst = float((off / bound).nan_to_num(nan=float("inf")).max()) if off.numel() else 0.0
    assert worst <= 1, f"{what}: {worst:.3g} times its bound"


def _sum(o: Operands) -> Tensor:
    z = o.x @ o.right.T @ o.left.T
    for term in (o.bias, o.residual):
        z = z if term is None else z + term
    return z


def _last(dtype: torch.dtype) -> float:
    """The rounding of what is stored; float32's is in the sum's own."""
    return roundoff(dtype)
