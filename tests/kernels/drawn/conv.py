"""Operands of the convolution kernels for tests, exact values, and how far rounding may carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate
from tensorlrf_kernels.geometry import Geometry
from tests.draws import seeded
from tests.kernels.drawn.lowrank import STEEPEST, roundoff

LAST = torch.channels_last


def crowded(t: Tensor) -> Tensor:
    """(B, C, H, W) with a gap behind every column and row of channels."""
    wide = t.new_full((t.shape[0], t.shape[2], t.shape[3] + 1, t.shape[1] + 3), float("nan"))
    view = wide[:, :, :-1, :-3].permute(0, 3, 1, 2)
    view.copy_(t)
    return view


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.contiguous(memory_format=LAST),
    "rows": lambda t: t.contiguous(),
    "gaps": crowded,
}


@dataclass
class ConvOperands:
    """x (B, C, H, W), core (R, C, kh, kw), out_factor (N, R), bias (N,) or None."""

    x: Tensor
    core: Tensor
    out_factor: Tensor
    bias: Tensor | None
    geometry: Geometry

    @property
    def kernel(self) -> tuple[int, int]:
        return self.core.shape[2], self.core.shape[3]

    @property
    def size(self) -> tuple[int, int]:
        return self.geometry.output((self.x.shape[2], self.x.shape[3]), self.kernel)

    def each(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.x, self.core, self.out_factor, self.bias

    def map(self, f: Callable[[Tensor], Tensor]) -> ConvOperands:
        bias = None if self.bias is None else f(self.bias)
        return ConvOperands(f(self.x), f(self.core), f(self.out_factor), bias, self.geometry)

    def sum(self) -> Tensor:
        """The value before the activation."""
        t = F.conv2d(self.x, self.core, None, *self.geometry)
        return F.conv2d(t, self.out_factor[:, :, None, None], self.bias)


def draw_conv(
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
) -> ConvOperands:
    """Operands near one, from `channels[0]` to `channels[1]`."""
    C, N = channels
    made = ConvOperands(
        seeded(batch, C, *image, seed=0),
        seeded(rank, C, *kernel, seed=1) / (C * kernel[0] * kernel[1]) ** 0.5,
        seeded(N, rank, seed=2) / rank**0.5,
        seeded(N, seed=3) if bias else None,
        geometry,
    ).map(lambda t: t.to(device, dtype))
    made.x, made.core = LAYOUTS[layout](made.x), LAYOUTS[layout](made.core)
    return made


def exact(o: ConvOperands, activation: str | None) -> Tensor:
    """The value in float64."""
    return activate(o.map(lambda t: t.detach().double().cpu()).sum(), activation)


def forward_bound(o: ConvOperands, activation: str | None) -> Tensor:
    """How far each element may be off, as `operands.forward_bound` has it: the inner sum has
    C kh kw terms."""
    dtype = o.x.dtype
    absolute = o.map(lambda t: t.detach().double().cpu().abs())
    n = o.core[0].numel() + o.core.shape[0] + 8
    small = torch.finfo(dtype).smallest_normal if dtype is torch.float16 else 0.0
    underflow = small * 2**-10 * (absolute.out_factor.sum(1)[None, :, None, None] + 1)
    u, u32 = roundoff(dtype), roundoff(torch.float32)
    off = (2 * u + n * u32) * absolute.sum() + underflow
    return STEEPEST[activation] * off + u * exact(o, activation).abs() + 1e-30
