"""Operands of `lowrank_swiglu` for tests, its exact value, and how far rounding may carry it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels.lowrank_swiglu.reference import Projection, lowrank_swiglu
from tests.kernels.drawn.lowrank import BEND, STEEPEST, Operands, roundoff, sum_bound
from tests.kernels.drawn.lowrank import draw as draw_linear
from tests.kernels.drawn.operands import Drawn

# Of silu and its slope in float32, relative to what they are of: an exponential, whose argument's
# rounding it magnifies as far as float32 reaches, a quotient and a few products.
EVALUATION = 128 * roundoff(torch.float32)


@dataclass
class GatedOperands(Drawn):
    """x (M, K), gate_right (G, K), gate_left (N, G), up_right (U, K), up_left (N, U), biases
    (N,)."""

    x: Tensor
    gate_right: Tensor
    gate_left: Tensor
    up_right: Tensor
    up_left: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None

    @property
    def gate(self) -> Projection:
        return Projection(self.gate_right, self.gate_left, self.gate_bias)

    @property
    def up(self) -> Projection:
        return Projection(self.up_right, self.up_left, self.up_bias)


NAMES = tuple(f.name for f in fields(GatedOperands))


def draw(
    M: int,
    N: int,
    K: int,
    G: int,
    U: int,
    dtype: torch.dtype = torch.float64,
    *,
    gate_bias: bool = True,
    up_bias: bool = True,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> GatedOperands:
    """Operands near one; `layout` changes the strides of the matrices."""
    a = draw_linear(M, N, K, G, dtype, layout=layout, device=device, seed=2 * seed)
    b = draw_linear(M, N, K, U, dtype, layout=layout, device=device, seed=2 * seed + 1)
    return GatedOperands(
        *(a.x, a.right, a.left, b.right, b.left),
        a.bias if gate_bias else None,
        b.bias if up_bias else None,
    )


def exact(o: GatedOperands) -> Tensor:
    """The value in float64."""
    return lowrank_swiglu(*o.wide().each())


def forward_bound(o: GatedOperands) -> Tensor:
    """How far each element of y = silu(a) b may be off, by the roundings that are made: those of
    a and b, of silu in float32, and of y at the end."""
    a, b = _projections(o.wide())
    off_a, off_b = _off(o)
    off_silu = STEEPEST["silu"] * off_a + EVALUATION * a.abs()
    y = F.silu(a) * b
    off = off_silu * (b.abs() + off_b) + F.silu(a).abs() * off_b
    return off + 2 * roundoff(o.x.dtype) * (y.abs() + off) + _least(o.x.dtype) + 1e-30


def kept(o: GatedOperands) -> Tensor:
    """t (M, G + U) in float64."""
    wide = o.wide()
    return wide.x @ torch.cat([wide.gate_right, wide.up_right]).T


def kept_bound(o: GatedOperands) -> Tensor:
    """How far each element of t may be off: it is stored in the operands' precision at least."""
    absolute = kept(o.map(torch.abs))
    u, u32 = roundoff(o.x.dtype), roundoff(torch.float32)
    return (2 * u + (o.x.shape[1] + 8) * u32) * absolute + 1e-30


def backward_bounds(o: GatedOperands, dh: Tensor) -> dict[str, Tensor]:
    """The same as `forward_bound` for the gradients, by the names of the operands.

    da = dh b silu'(a) and db = dh silu(a) are rounded to the operands' dtype before they are
    multiplied, dt too, and t was when it was kept.
    """
    dtype = o.x.dtype
    u, u32, least = roundoff(dtype), roundoff(torch.float32), _least(dtype)
    wide = o.wide()
    a, b = _projections(wide)
    off_a, off_b = _off(o)
    g = dh.double().cpu().abs()
    (M, N), K, (G, U) = g.shape, wide.x.shape[1], (o.gate.rank, o.up.rank)

    da = STEEPEST["silu"] * g * (b.abs() + off_b)
    off_slope = BEND["silu"] * off_a + EVALUATION * (1 + a.abs())
    off_da = g * (STEEPEST["silu"] * off_b + off_slope * (b.abs() + off_b)) + 2 * u * da + least
    off_silu = STEEPEST["silu"] * off_a + EVALUATION * a.abs()
    db = g * (F.silu(a).abs() + off_silu)
    off_db = g * off_silu + 2 * u * db + least

    p = wide.map(torch.abs)
    t = p.x @ torch.cat([p.gate_right, p.up_right]).T  # (M, G + U)
    off_t = kept_bound(o)
    bounds = {"x": torch.zeros(M, K, dtype=torch.float64)}
    sides = (
        ("gate", da, off_da, p.gate_left, p.gate_right, t[:, :G], off_t[:, :G]),
        ("up", db, off_db, p.up_left, p.up_right, t[:, G:], off_t[:, G:]),
    )
    for side, d, off_d, left, right, t_side, off_t_side in sides:
        dt = d @ left
        # Of float16's lines only the entries near the largest keep all their digits.
        off_dt = off_d @ left + (N * u32 + 2 * u) * dt
        across = off_dt + least * dt.amax(1, keepdim=True)
        down = off_dt + least * dt.amax(0, keepdim=True)
        down_t = off_t_side + least * t_side.amax(0, keepdim=True)
        bounds["x"] += across @ right + ((G + U + 4) * u32 + 2 * u) * (dt @ right)
        bounds[f"{side}_right"] = down.T @ p.x + ((M + 4) * u32 + 2 * u) * (dt.T @ p.x)
        bounds[f"{side}_left"] = (
            off_d.T @ t_side + d.T @ down_t + ((M + 4) * u32 + 2 * u) * (d.T @ t_side)
        )
        bounds[f"{side}_bias"] = off_d.sum(0) + ((M + 4) * u32 + 2 * u) * d.sum(0)
    return {name: bound + least + 1e-30 for name, bound in bounds.items()}


def gradients(o: GatedOperands, dh: Tensor) -> dict[str, Tensor]:
    """The gradients in float64, by autograd through the definition."""
    wide = o.wide().map(lambda t: t.requires_grad_())
    lowrank_swiglu(*wide.each()).backward(dh.double().cpu())
    return {
        name: t.grad
        for name, t in zip(NAMES, wide.each(), strict=True)
        if t is not None and t.grad is not None
    }


def _projections(o: GatedOperands) -> tuple[Tensor, Tensor]:
    a, b = o.x @ o.gate_right.T @ o.gate_left.T, o.x @ o.up_right.T @ o.up_left.T
    return (
        a if o.gate_bias is None else a + o.gate_bias,
        b if o.up_bias is None else b + o.up_bias,
    )


def _off(o: GatedOperands) -> tuple[Tensor, Tensor]:
    """How far both projections may be off."""
    return sum_bound(Operands(o.x, *o.gate)), sum_bound(Operands(o.x, *o.up))


def _least(dtype: torch.dtype) -> float:
    """What is left of precision beneath float16's normal numbers; the others have float32's."""
    return torch.finfo(dtype).smallest_normal * 2**-10 if dtype is torch.float16 else 0.0
