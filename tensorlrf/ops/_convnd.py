"""Convolutions on factors in any number of axes, with or without groups: one library call a factor.

The stages are those of `_conv2d.py`, written for a kernel (O, I, *k) of one, two or three axes. The
factors of g groups are stacks, and each stage is one convolution with groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.factors import CPFactors, Factors, Grouped, KroneckerSum, LowRank, TTFactors
from tensorlrf.factors.algebra import mode_product
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops.geometry import CONVOLUTION, Axes, Geometry, resolve_padding


def run_convnd(
    path: str,
    factors: Factors,
    x: Tensor,
    bias: Tensor | None = None,
    stride: Axes = (1,),
    padding: Axes | str = (0,),
    dilation: Axes = (1,),
) -> Tensor:
    """`conv1d`, `conv2d` or `conv3d` by a given path, without checks.

    x (B, g I, *size) or (g I, *size) for factors of shape (O, I, *k); stride, padding and dilation
    have one entry an axis. Returns (B, O, *size') or (O, *size').
    """
    axes = len(stride)
    if x.ndim == axes + 1:
        return run_convnd(path, factors, x[None], bias, stride, padding, dilation)[0]
    if isinstance(padding, str):
        zeros = resolve_padding(padding, factors.shape[2:], stride, dilation)
        padding = zeros.shared
        if zeros.ahead:
            x = F.pad(x, zeros.ahead)
    groups = factors.groups if isinstance(factors, Grouped) else 1
    if path == "dense":
        weight = dense_weight(factors)
        return CONVOLUTION[axes](x, weight, bias, stride, padding, dilation, groups)
    run = _RUNS.get(_format_of(factors), _tucker)
    y = run(factors, groups, x, bias, (stride, padding, dilation))
    return _lying_as(y, x)


def _format_of(factors: Factors) -> type[Factors]:
    return factors._format() if isinstance(factors, Grouped) else type(factors)


def _stacks(factors: Factors) -> dict[str, Tensor]:
    """The tensors of every group, each with a leading dimension g."""
    if isinstance(factors, Grouped):
        return factors.parts
    return {name: t[None] for name, t in factors.tensors().items()}


def _low_rank(
    factors: Factors, groups: int, x: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """A convolution into r channels a group, then a pointwise one."""
    stacks = _stacks(factors)
    right = stacks["right"].reshape(-1, *factors.shape[1:])  # (g r, I, *k)
    t = CONVOLUTION[x.ndim - 2](x, right, None, *geometry, groups)  # (B, g r, *size')
    return _pointwise(t, stacks["left"], bias, is_channels_last(x))


def _tucker(
    factors: Factors, groups: int, x: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Pointwise, a convolution by the core, pointwise; a channel mode left whole needs none."""
    stacks = _stacks(factors)
    meta = factors.of_meta if isinstance(factors, Grouped) else factors.meta()
    given = {mode: stacks[f"factors.{k}"] for k, mode in enumerate(meta["modes"])}
    core = stacks["core"]  # (g, r_0, r_1, *k)
    for mode, f in given.items():
        if mode >= 2:
            core = _mode_product(core, f, mode)
    core = core.flatten(0, 1)  # (g r_0, r_1, *k)
    last = is_channels_last(x)
    t = x
    if 1 in given:
        t = _pointwise(x, given[1].mT, None, last)  # (B, g r_1, *size)
    if 0 not in given:
        return CONVOLUTION[x.ndim - 2](t, core, bias, *geometry, groups)
    t = CONVOLUTION[x.ndim - 2](t, core, None, *geometry, groups)  # (B, g r_0, *size')
    return _pointwise(t, given[0], bias, last)


def _mode_product(core: Tensor, matrices: Tensor, mode: int) -> Tensor:
    """core[k] x_mode matrices[k] for every group k."""
    if len(core) == 1:
        return mode_product(core[0], matrices[0], mode)[None]
    moved = core.movedim(mode + 1, -1)  # (g, ..., r)
    product = moved.flatten(1, -2) @ matrices.mT  # (g, product of the others, n)
    return product.reshape(*moved.shape[:-1], -1).movedim(-1, mode + 1)


def _cp(
    factors: Factors, groups: int, x: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Pointwise, one depthwise convolution along each axis, pointwise (Lebedev et al. 2015,
    section 3.2, for two axes). The intermediates are linear in x, so zeros may wait for them."""
    stacks = _stacks(factors)
    axes, last = x.ndim - 2, is_channels_last(x)
    t = _pointwise(x, stacks["factors.1"].mT, None, last)  # (B, g r, *size)
    for axis in range(axes):
        taps = stacks[f"factors.{axis + 2}"]  # (g, k, r)
        if axis == 0:
            taps = taps * stacks["weights"][:, None]
        one = [1] * axes
        one[axis] = taps.shape[1]
        kernel = taps.mT.reshape(-1, 1, *one)  # (g r, 1, .., k, ..)
        stride, padding, dilation = (
            tuple(n if k == axis else rest for k, n in enumerate(all_axes))
            for all_axes, rest in zip(geometry, (1, 0, 1), strict=True)
        )
        t = CONVOLUTION[axes](t, kernel, None, stride, padding, dilation, kernel.shape[0])
    return _pointwise(t, stacks["factors.0"], bias, last)


def _tt(
    factors: Factors, groups: int, x: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Pointwise, one convolution along each axis, pointwise: a core each. As for CP, zeros may wait
    for the axis that they belong to."""
    stacks = _stacks(factors)
    axes, last = x.ndim - 2, is_channels_last(x)
    t = _pointwise(x, stacks[f"cores.{axes + 1}"][..., 0], None, last)  # (B, g r, *size)
    for axis in range(axes):
        core = stacks[f"cores.{axes - axis}"]  # (g, r, k, r')
        one = [1] * axes
        one[axis] = core.shape[2]
        kernel = core.transpose(2, 3).reshape(-1, core.shape[3], *one)  # (g r, r', .., k, ..)
        stride, padding, dilation = (
            tuple(n if k == axis else rest for k, n in enumerate(all_axes))
            for all_axes, rest in zip(geometry, (1, 0, 1), strict=True)
        )
        t = CONVOLUTION[axes](t, kernel, None, stride, padding, dilation, groups)
    return _pointwise(t, stacks["cores.0"][:, 0], bias, last)


def _kron(
    factors: Factors, groups: int, x: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """A convolution by the kernels of b, for each first channel digit as one of the batch, and a
    pointwise one by a, for each second digit as one more line of the image."""
    if isinstance(factors, Grouped):
        parts = zip(range(groups), x.chunk(groups, 1), strict=True)
        terms = [_kron(factors.group(k), 1, part, None, geometry) for k, part in parts]
        y = torch.cat(terms, 1)
    else:
        assert isinstance(factors, KroneckerSum)
        y = kron_convolution(factors.a, factors.b, x, geometry)
    # Under autocast y is of a lower dtype than the bias.
    return y if bias is None else y + bias.to(y.dtype).reshape(-1, *(1,) * (x.ndim - 2))


def kron_convolution(a: Tensor, b: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """a (s, O1, I1), b (s, O2, I2, *k), x (B, I1 I2, *size); returns (B, O1 O2, *size')."""
    s, O1, I1 = a.shape
    _, O2, I2, *kernel = b.shape
    ones = (1,) * len(kernel)
    batch = x.shape[0]
    conv = CONVOLUTION[len(kernel)]
    x = torch.unflatten(x, 1, (I1, I2))
    if kron_b_first(s, (O1, I1), (O2, I2, *kernel)):
        t = conv(x.flatten(0, 1), b.flatten(0, 1), None, *geometry)  # (B I1, s O2, *size')
        t = torch.unflatten(torch.unflatten(t, 0, (batch, I1)), 2, (s, O2))
        t = t.flatten(1, 2).flatten(2, 3)  # (B, I1 s, O2 L, ..)
        t = conv(t, a.permute(1, 2, 0).reshape(O1, I1 * s, *ones))
        return torch.unflatten(t, 2, (O2, t.shape[2] // O2)).flatten(1, 2)
    t = conv(x.flatten(2, 3), a.transpose(0, 1).reshape(O1 * s, I1, *ones))  # (B, O1 s, I2 L, ..)
    t = torch.unflatten(torch.unflatten(t, 2, (I2, t.shape[2] // I2)), 1, (O1, s))
    t = t.flatten(2, 3).flatten(0, 1)  # (B O1, s I2, *size)
    t = conv(t, b.transpose(0, 1).flatten(1, 2), None, *geometry)  # (B O1, O2, *size')
    return torch.unflatten(t, 0, (batch, O1)).flatten(1, 2)


def kron_b_first(s: int, one: tuple[int, int], other: tuple[int, ...]) -> bool:
    """Which of the two orders multiplies less, at stride 1."""
    (O1, I1), (O2, I2, *kernel) = one, other
    taps = 1
    for n in kernel:
        taps *= n
    return I1 * O2 * (I2 * taps + O1) <= O1 * I2 * (I1 + O2 * taps)


def _pointwise(x: Tensor, matrices: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    """y[b, (k, :), s] = matrices[k] @ x[b, (k, :), s] + bias for every group k and position s.

    x (B, g n, *size), matrices (g, m, n), bias (g m,); returns (B, g m, *size). Of one group it is
    a matrix product, which reads its operand in either memory format and writes the one asked for.
    """
    groups, m, n = matrices.shape
    size = x.shape[2:]
    if groups > 1:
        weight = matrices.reshape(groups * m, n, *(1,) * len(size))
        return CONVOLUTION[len(size)](x, weight, bias, groups=groups)
    if channels_last:
        y = F.linear(x.movedim(1, -1), matrices[0], bias)
        return y.movedim(-1, 1)
    batch, columns = x.shape[0], x.flatten(2)  # (B, n, S)
    each: Any = matrices.expand(batch, -1, -1)
    y = torch.bmm(each, columns) if bias is None else torch.baddbmm(bias[:, None], each, columns)
    return y.view(batch, m, *size)


_RUNS: dict[type[Factors], Callable[..., Tensor]] = {
    CPFactors: _cp,
    KroneckerSum: _kron,
    LowRank: _low_rank,
    TTFactors: _tt,
}


def _lying_as(y: Tensor, x: Tensor) -> Tensor:
    """y in the memory format of x. The library keeps that of its input in most calls, but not with
    groups on one thread, nor where a kernel happens to lie the other way."""
    if is_channels_last(x):
        return y.movedim(1, -1).contiguous().movedim(-1, 1)
    return y.contiguous()


def is_channels_last(x: Tensor) -> bool:
    """Channels last and nothing else, for any number of axes."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
