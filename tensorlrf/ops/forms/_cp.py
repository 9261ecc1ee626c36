"""A sum of rank-one terms: one factor a mode, and a weight a term."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.factors import CPFactors
from tensorlrf.factors.algebra import khatri_rao
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import Form, Terms
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms.shared._kernels import TwoMatrices
from tensorlrf.ops.forms.shared._lookup import lookups
from tensorlrf.ops.forms.shared._slide import Conv
from tensorlrf.ops.forms.stages import Matrix, Paths
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.cp_conv2d import cp_conv2d
from tensorlrf_kernels.geometry import MOST_TAPS
from tensorlrf_kernels.launches import Problem, Workload


class CPForm(Form[CPFactors]):
    """Into r channels by the input factor, one depthwise convolution along each axis, out of them
    by the output factor (Lebedev et al. 2015, section 3.2, for two axes); the weights go with the
    first. In two axes neighbours can be merged into one convolution."""

    def linear(self, f: CPFactors) -> Paths:
        out, inp = f.factors
        right = (inp * f.weights).T
        return {"chain": (Matrix(right), Matrix(out)), "fused": (TwoMatrices((right, out)),)}

    def conv(self, f: CPFactors, conv: Conv) -> Paths:
        out, inp, *taps = f.factors
        first = taps[0] * f.weights[..., None, :]
        lines = [
            conv.depthwise(t.mT.reshape(-1, 1, *conv.line(t.shape[-2], k)), range(k, k + 1))
            for k, t in enumerate([first, *taps[1:]])
        ]
        into = conv.pointwise(inp.mT, inner=True)
        paths: Paths = {"chain": (into, *lines, conv.pointwise(out))}
        if conv.axes == 2 and conv.groups == 1 and out.ndim == 2:
            down = inp.T[:, :, None] * first.T[:, None, :]  # (r, I, kh)
            across = out[:, :, None] * taps[1].T  # (O, r, kw)
            paths["fold"] = (
                conv.taps(down[..., None], range(1), made=True),
                conv.taps(across[:, :, None], range(1, 2), made=True),
            )
            kernel = first.T[:, :, None] * taps[1].T[:, None, :]  # (r, kh, kw)
            paths["fold_depthwise"] = (into, conv.depthwise(kernel[:, None]), conv.pointwise(out))
            operands = (*f.factors, f.weights)
            if conv.fuses:
                paths["fused"] = (ConvolutionChain(operands, tuple(conv.geometry)),)
        return paths

    def embedding(self, f: CPFactors, padding_idx: int | None) -> Paths:
        rows, columns = f.factors
        return lookups((rows, (columns * f.weights).T), padding_idx)

    def dense(self, f: CPFactors, channels_last: bool) -> Tensor:
        if not channels_last:
            return f._dense()
        out, inp, *taps = f.factors
        matrix = out @ khatri_rao((*taps, inp * f.weights)).T  # (O, kh kw I)
        return matrix.reshape(-1, *[len(t) for t in (*taps, inp)]).permute(0, 3, 1, 2)

    def count_dense(self, f: CPFactors, counter: Counter) -> bool:
        # Whichever way the modes are cut in two.
        m, *others = f.shape
        n = math.prod(others)
        counter.merge(n * f.rank)
        counter.matmul(m, f.rank, n)
        return True

    def rows_of(self, f: CPFactors) -> str:
        return "factors.0"

    def network(self, f: CPFactors, modes: str, fresh: Iterator[str]) -> Terms:
        r = next(fresh)
        factors = [(n + r, factor) for n, factor in zip(modes, f.factors, strict=True)]
        return [(r, f.weights), *factors]


@dataclass(frozen=True, eq=False)
class ConvolutionChain(Kernel):
    """All of the chain in two axes, the intermediates on chip; on the factors and the weights."""

    keeps_layout = True
    op = cp_conv2d

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, Workload] | None:
        m, n, kh, kw = (len(factor) for factor in self.operands[:-1])
        if max(kh, kw) > MOST_TAPS:
            return None
        return "cp_conv2d", Problem(rows, m, n, len(self.operands[-1]), dtype, tf32)

    def count(self, counter: Counter) -> None:
        m, n, kh, kw, r = (len(factor) for factor in self.operands)
        read, written = counter.rows, counter.slide(2)
        config = self.launch(written, counter.dtype, H200)
        # The first product is made anew for every vertical tap.
        if config is not None and config.blocks["EXPAND"]:
            counter.fused_conv(read, written, n, r, m, kh * n + kw)
        else:
            counter.fused_conv(read, written, n, r, 0, kh * n + kw)
            counter.matmul(written, r, m)
