"""A sum of Kronecker products: (sum of kron(a_s, b_s)) x is the sum of a_s X b_s^T, for x as the
matrix X (n1, n2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.factors import KroneckerSum
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms._kernel import Kernel
from tensorlrf.ops.forms.shared._slide import Conv, Groups
from tensorlrf.ops.forms.stages import Paths, Stage
from tensorlrf.ops.geometry import CONVOLUTION, Sliding
from tensorlrf_kernels.chips import H200
from tensorlrf_kernels.kron_linear import kron_linear, reference
from tensorlrf_kernels.kron_linear.launch import KronProblem, forward
from tensorlrf_kernels.launches import power_above


class KroneckerForm(Form[KroneckerSum]):
    """Two products, the terms s stacked in the one or in the other, and no permutation between
    them. A kernel is convolved in b, for each first digit of the channels as one of the batch, and
    multiplied by a, for each second digit as one more line of the image."""

    def linear(self, f: KroneckerSum) -> Paths:
        fused = KroneckerKernel((f.a, f.b))
        paths: Paths = {"chain": (Kronecker(f.a, f.b),)}
        return {**paths, "fused": (fused,)} if fused.is_meant else paths

    def conv(self, f: KroneckerSum, conv: Conv) -> Paths:
        if f.a.ndim == 3:
            return {"chain": (SlidingKronecker(f.a, f.b, conv.geometry),)}
        groups = [(SlidingKronecker(f.a[k], f.b[k], conv.geometry),) for k in range(conv.groups)]
        return {"chain": (Groups(tuple(groups)),)}

    def along(self, f: KroneckerSum, axis: int) -> dict[str, int]:
        return {"a": 1 + axis}  # the first digit of a row or column is that of a

    def kernels(self, f: KroneckerSum, conv: Conv) -> dict[str, tuple[int, ...]]:
        *stacked, columns = f.b.shape[: f.b.ndim - conv.axes]
        return {"b": (math.prod(stacked), columns, *conv.kernel)}


@dataclass(frozen=True, eq=False)
class Kronecker(Stage):
    """x times the sum of kron(a_s, b_s), for a (s, m1, n1) and b (s, m2, n2)."""

    a: Tensor
    b: Tensor

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return reference.product(x, self.a, self.b)

    def count(self, counter: Counter) -> None:
        (s, m1, n1), (_, m2, n2) = self.a.shape, self.b.shape
        rows = counter.rows
        if reference.b_first((m1, n1), (m2, n2)):
            counter.matmul(rows * n1, n2, s * m2)
            counter.products(rows, m1, n1 * s, m2)
        else:
            counter.products(rows, m1 * s, n1, n2)
            counter.matmul(rows * m1, s * n2, m2)


@dataclass(frozen=True, eq=False)
class KroneckerKernel(Kernel):
    """Both products in one kernel."""

    op = kron_linear

    def problem(self, rows: int, dtype: torch.dtype, tf32: bool) -> tuple[str, KronProblem] | None:
        (s, m1, n1), (_, m2, n2) = (t.shape for t in self.operands)
        problem = KronProblem(rows, m1, n1, m2, n2, s, dtype, tf32)
        return ("kron_linear", problem) if problem.served else None

    def serves(self, rows: int, dtype: torch.dtype) -> bool:
        return self.problem(rows, dtype, False) is not None

    def count(self, counter: Counter) -> None:
        found = self.problem(counter.rows, counter.dtype, False)
        assert found is not None  # asked for nothing else
        count_kernel(counter, found[1])


def count_kernel(counter: Counter, problem: KronProblem) -> None:
    """What `kron_linear` does where its kernel serves."""
    config = forward(problem, H200)
    assert config is not None  # asked for nothing else
    rows, m1, n1, m2, n2, s, *_ = problem.swapped if config.blocks["SWAP"] else problem
    widths = [power_above(n) for n in (m1, n1, m2, n2)]
    multiply_adds = m1 * n2 * (n1 + m2)
    padded = widths[0] * widths[3] * (widths[1] + widths[2])
    elements = rows * (n1 * n2 + m1 * m2) + s * (m1 * n1 + m2 * n2)
    counter.kernel(rows * s * multiply_adds, elements, padded / multiply_adds, rows)


@dataclass(frozen=True, eq=False)
class SlidingKronecker(Stage):
    """The convolution by the sum of kron(a_s, b_s), for a (s, O1, I1) and b (s, O2, I2, *k)."""

    a: Tensor
    b: Tensor
    geometry: Sliding
    keeps_layout = False

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        (s, O1, I1), (_, O2, I2, *kernel) = self.a.shape, self.b.shape
        ones, conv = (1,) * len(kernel), CONVOLUTION[len(kernel)]
        a, b, batch = self.a, self.b, x.shape[0]
        x = torch.unflatten(x, 1, (I1, I2))
        if self.b_first:
            t = self.geometry.convolve(x.flatten(0, 1), b.flatten(0, 1), None, 1)
            # (B I1, s O2, ..)
            t = torch.unflatten(torch.unflatten(t, 0, (batch, I1)), 2, (s, O2))
            t = t.flatten(1, 2).flatten(2, 3)  # (B, I1 s, O2 L, ..)
            t = conv(t, a.permute(1, 2, 0).reshape(O1, I1 * s, *ones))
            return torch.unflatten(t, 2, (O2, t.shape[2] // O2)).flatten(1, 2)
        t = conv(x.flatten(2, 3), a.transpose(0, 1).reshape(O1 * s, I1, *ones))  # (B, O1 s, I2 L)
        t = torch.unflatten(torch.unflatten(t, 2, (I2, t.shape[2] // I2)), 1, (O1, s))
        t = t.flatten(2, 3).flatten(0, 1)  # (B O1, s I2, *size)
        t = self.geometry.convolve(t, b.transpose(0, 1).flatten(1, 2), None, 1)  # (B O1, O2, ..)
        return torch.unflatten(t, 0, (batch, O1)).flatten(1, 2)

    @property
    def b_first(self) -> bool:
        """Which of the two orders multiplies less, at stride 1."""
        (_, O1, I1), (_, O2, I2, *kernel) = self.a.shape, self.b.shape
        taps = math.prod(kernel)
        return I1 * O2 * (I2 * taps + O1) <= O1 * I2 * (I1 + O2 * taps)

    def count(self, counter: Counter) -> None:
        (s, O1, I1), (_, O2, I2, *kernel) = self.a.shape, self.b.shape
        taps, read = math.prod(kernel), counter.rows
        written, adjoint = counter.slide(len(kernel)), self.geometry.transposed
        if self.b_first:
            counter.conv(read * I1, written * I1, I2, s * O2, taps, adjoint=adjoint)
            counter.matmul(written * O2, I1 * s, O1)
        else:
            counter.matmul(read * I2, I1, O1 * s)
            counter.conv(read * O1, written * O1, s * I2, O2, taps, adjoint=adjoint)
