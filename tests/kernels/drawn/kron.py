"""Operands of `kron_linear` for tests, its exact value, and how far rounding may carry it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf_kernels._activation import activate
from tests.kernels.drawn.lowrank import BEND, STEEPEST, roundoff
from tests.kernels.drawn.operands import Drawn

NAMES = ("x", "a", "b", "bias", "residual")
SLACK = 1.1  # for products of two roundings, of which the bounds count the first order


@dataclass
class KronOperands(Drawn):
    """x (M, n1 n2), a (s, m1, n1), b (s, m2, n2), bias (m1 m2,), residual (M, m1 m2)."""

    x: Tensor
    a: Tensor
    b: Tensor
    bias: Tensor | None = None
    residual: Tensor | None = None

    def sum(self) -> Tensor:
        """The value before the activation, by the dense weight."""
        z = self.x @ weight(self.a, self.b).T
        for term in (self.bias, self.residual):
            z = z if term is None else z + term
        return z


def weight(a: Tensor, b: Tensor) -> Tensor:
    """sum of kron(a_s, b_s), by the definition."""
    return torch.stack([torch.kron(one, other) for one, other in zip(a, b, strict=True)]).sum(0)


def draw_kron(
    M: int,
    one: tuple[int, int],
    other: tuple[int, int],
    s: int,
    dtype: torch.dtype = torch.float64,
    *,
    terms: bool = True,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> KronOperands:
    """Operands near one, a (s, *one) and b (s, *other); `layout` changes strides of matrices."""
    (m1, n1), (m2, n2) = one, other
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    made = KronOperands(
        normal(M, n1 * n2),
        normal(s, *one) / n1**0.5,
        normal(s, *other) / (s * n2) ** 0.5,
        normal(m1 * m2) if terms else None,
        normal(M, m1 * m2) if terms else None,
    ).map(lambda t: t.to(device, dtype))

    def laid(t: Tensor) -> Tensor:
        if t.ndim == 2:
            return layout(t)
        return layout(t.flatten(0, 1)).unflatten(0, t.shape[:2]) if t.ndim == 3 else t

    return made.map(laid)


def exact(o: KronOperands, activation: str | None) -> Tensor:
    """The value in float64."""
    return activate(o.wide().sum(), activation)


def sum_bound(o: KronOperands) -> Tensor:
    """How far z, the value before the activation, may be off.

    A sum of n terms in float32 is off by n u of the same sum over absolute values (Higham 2002,
    section 3.1): here n1 terms and then s n2, or n2 and then s n1. What lies between the two
    products is rounded to the dtype once.
    """
    absolute = o.wide().map(torch.abs)
    s, _, n1 = o.a.shape
    n2 = o.b.shape[2]
    n = n1 + n2 + s * max(n1, n2) + 8
    u, u32 = roundoff(o.x.dtype), roundoff(torch.float32)
    off = SLACK * (u + n * u32) * absolute.sum()
    if o.x.dtype is torch.float16:
        # Lines of what lies between are scaled to begin at one, beneath whose 2^-14 only absolute
        # precision is left: 2^-25 of their largest entry, for each entry that a factor meets.
        X = absolute.x.unflatten(1, (n1, n2))
        for left, right in ((absolute.a, absolute.b), (absolute.b, absolute.a)):
            t = torch.einsum("sik,rkl->rsil", left, X)
            widest = t.flatten(2).amax(-1) if t.numel() else t.new_zeros(len(X), s)
            off = off + 2**-25 * (widest @ right.sum(2).amax(1))[:, None]
            X = X.transpose(1, 2)
    return off


def forward_bound(o: KronOperands, activation: str | None) -> Tensor:
    """How far each element of y may be off: as z through the activation, and one rounding."""
    last = roundoff(o.x.dtype) * exact(o, activation).abs() + _underflow(o.x.dtype)
    return STEEPEST[activation] * sum_bound(o) + SLACK * last + 1e-30


def gradients(o: KronOperands, dy: Tensor, activation: str | None) -> dict[str, Tensor]:
    """The gradients in float64, by autograd through the definition."""
    wide = o.wide().map(lambda t: t.requires_grad_())
    activate(wide.sum(), activation).backward(dy.double().cpu())
    found = zip(NAMES, wide.each(), strict=True)
    return {name: t.grad for name, t in found if t is not None and t.grad is not None}


def backward_bounds(o: KronOperands, dy: Tensor, activation: str | None) -> dict[str, Tensor]:
    """How far each element of the gradients may be off."""
    dtype = o.x.dtype
    u, u32, small = roundoff(dtype), roundoff(torch.float32), _underflow(dtype)
    wide, g = o.wide(), dy.double().cpu().abs()
    z, off = wide.sum(), sum_bound(o)
    # dz = dy slope(z): z is off, the slope bends, at its jump relu may take either side, and dz is
    # stored in the dtype. Without an activation it is dy itself.
    dz, off_z = g, torch.zeros_like(g)
    if activation is not None:
        dz = STEEPEST[activation] * g
        off_z = g * (BEND[activation] * off + 16 * u32) + SLACK * u * dz + small
        if activation == "relu":
            off_z = off_z + g * (z.abs() <= off)
    a, b, x = (t.abs() for t in (wide.a, wide.b, wide.x))
    turned = KronOperands(dz, a.transpose(1, 2), b.transpose(1, 2))
    stored = KronOperands(dz.to(dtype), turned.a.to(dtype), turned.b.to(dtype))
    M, (_, m1, n1), (_, m2, n2) = len(g), a.shape, b.shape
    Z, X, off_Z = dz.view(M, m1, m2), x.view(M, n1, n2), off_z.view(M, m1, m2)

    def of_a(Z: Tensor) -> Tensor:
        return torch.einsum("rij,sjl,rkl->sik", Z, b, X)

    def of_b(Z: Tensor) -> Tensor:
        return torch.einsum("rij,sik,rkl->sjl", Z, a, X)

    # The longest of the sums on either way, and two roundings: of what lies between, and the last.
    n = max(m1, m2, n1, n2) * (M + 1) + 8
    rounded = SLACK * (2 * u + n * u32)
    bounds = {
        "x": KronOperands(off_z, turned.a, turned.b).sum()
        + SLACK * (sum_bound(stored) + u * turned.sum()),
        "a": of_a(off_Z) + rounded * of_a(Z),
        "b": of_b(off_Z) + rounded * of_b(Z),
        "bias": off_z.sum(0) + ((M + 4) * u32 + 2 * u) * dz.sum(0),
        "residual": off_z,
    }
    # Lines scaled as in `sum_bound`, of which M are added up.
    lost = 2**-24 * float((Z.amax() if M else 0) * X.amax()) * M * m1 * m2 if small and M else 0.0
    for name in "ab":
        bounds[name] = bounds[name] + lost
    return {name: bound + small + 1e-30 for name, bound in bounds.items()}


def _underflow(dtype: torch.dtype) -> float:
    """Half the spacing of float16 beneath its normal numbers; the others have float32's range."""
    return 2**-25 if dtype is torch.float16 else 0.0
