"""Operands of `cp_conv2d` for tests, exact values, and how far rounding may carry them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf_kernels._activation import activate
from tensorlrf_kernels.cp_conv2d import reference
from tensorlrf_kernels.geometry import Geometry
from tests.draws import seeded
from tests.kernels.drawn.conv import LAYOUTS
from tests.kernels.drawn.lowrank import STEEPEST, roundoff


@dataclass
class CPOperands:
    """x (B, C, H, W), the five factors, bias (N,) or None."""

    x: Tensor
    factors: reference.Factors
    bias: Tensor | None
    geometry: Geometry

    @property
    def kernel(self) -> tuple[int, int]:
        return self.factors[2].shape[0], self.factors[3].shape[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.geometry.output((self.x.shape[2], self.x.shape[3]), self.kernel)

    def map(self, f: Callable[[Tensor], Tensor]) -> CPOperands:
        out, inp, kh, kw, weights = (f(t) for t in self.factors)
        bias = None if self.bias is None else f(self.bias)
        return CPOperands(f(self.x), (out, inp, kh, kw, weights), bias, self.geometry)

    def wide(self) -> CPOperands:
        return self.map(lambda t: t.detach().double().cpu())

    def up_to_taps(self) -> CPOperands:
        """The same with the identity behind the taps."""
        rank = self.factors[4].shape[0]
        eye = torch.eye(rank, dtype=self.x.dtype, device=self.x.device)
        return CPOperands(self.x, (eye, *self.factors[1:]), None, self.geometry)

    def sum(self) -> Tensor:
        """The value before the activation."""
        return reference.cp_conv2d(self.x, *self.factors, self.bias, *self.geometry)


def draw_cp(
    batch: int,
    channels: tuple[int, int],
    rank: int,
    image: tuple[int, int],
    kernel: tuple[int, int],
    geometry: Geometry,
    dtype: torch.dtype = torch.float64,
    *,
    bias: bool = True,
    layout: str = "channels last",
    device: torch.device | str = "cpu",
) -> CPOperands:
    """Operands near one, from `channels[0]` to `channels[1]`."""
    C, N = channels
    factors = (
        seeded(N, rank, seed=1) / rank**0.5,
        seeded(C, rank, seed=2) / C**0.5,
        seeded(kernel[0], rank, seed=3),
        seeded(kernel[1], rank, seed=4),
        seeded(rank, seed=5),
    )
    made = CPOperands(
        seeded(batch, C, *image, seed=0), factors, seeded(N, seed=6) if bias else None, geometry
    ).map(lambda t: t.to(device, dtype))
    made.x = LAYOUTS[layout](made.x)
    return made


def exact(o: CPOperands, activation: str | None) -> Tensor:
    """The value in float64."""
    return activate(o.wide().sum(), activation)


def forward_bound(o: CPOperands, activation: str | None) -> Tensor:
    """How far each element may be off: sums of C, kh, kw and R terms in float32, one rounding of
    what lies behind the taps, and one of y."""
    dtype = o.x.dtype
    absolute = o.wide().map(torch.abs)
    n = o.x.shape[1] + sum(o.kernel) + o.factors[4].shape[0] + 12
    small = torch.finfo(dtype).smallest_normal if dtype is torch.float16 else 0.0
    underflow = small * 2**-10 * (absolute.factors[0].sum(1)[None, :, None, None] + 1)
    u, u32 = roundoff(dtype), roundoff(torch.float32)
    off = (2 * u + n * u32) * absolute.sum() + underflow
    return STEEPEST[activation] * off + u * exact(o, activation).abs() + 1e-30
