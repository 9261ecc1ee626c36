"""Kernels of ours that layers on several formats share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms.shared._slide import Conv
from tensorlrf.ops.forms.stages import Paths
from tensorlrf_kernels.geometry import MOST_TAPS
from tensorlrf_kernels.launches import Problem, Workload
from tensorlrf_kernels.lowrank_linear import lowrank_linear
from tensorlrf_kernels.tucker_conv2d import tucker_conv2d


@dataclass(frozen=True, eq=False)
class TwoMatrices(Kernel):
    """Both products of a linear layer on right (r, n) and left (m, r), the intermediate on chip."""

    op = lowrank_linear

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, Workload]:
        (rank, n), (m, _) = (t.shape for t in self.operands)
        return "lowrank_linear", Problem(rows, m, n, rank, dtype, tf32)

    def count(self, counter: Counter) -> None:
        (rank, n), (m, _) = (t.shape for t in self.operands)
        counter.fused(counter.rows, n, rank, m)


@dataclass(frozen=True, eq=False)
class ConvolutionThenMatrix(Kernel):
    """A convolution in two axes by a core (r, I, kh, kw), then a matrix (O, r) for every place;
    before both, by the library, a factor (n, I) or None."""

    keeps_layout = True
    op = tucker_conv2d

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, Workload] | None:
        core, out, _ = self.operands
        rank, inner, *kernel = core.shape
        if max(kernel) > MOST_TAPS:
            return None
        columns = inner * math.prod(kernel)
        return "tucker_conv2d", Problem(rows, out.shape[0], columns, rank, dtype, tf32)

    def count(self, counter: Counter) -> None:
        core, out, factor = self.operands
        rank, inner, *kernel = core.shape
        read = counter.rows
        if factor is not None:
            counter.pointwise(read, factor.shape[0], inner, 1)
        written = counter.slide(2)
        each = inner * math.prod(kernel)
        counter.fused_conv(read, written, inner, rank, out.shape[0], each)


def behind_a_convolution(
    conv: Conv, core: Tensor, out: Tensor, factor: Tensor | None = None
) -> Paths:
    """The path "fused" of `ConvolutionThenMatrix`, where kernels of ours serve."""
    if not conv.fuses or out.ndim != 2:
        return {}
    return {"fused": (ConvolutionThenMatrix((core, out, factor), tuple(conv.geometry)),)}
