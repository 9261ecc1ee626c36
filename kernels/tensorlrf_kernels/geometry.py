"""Geometry that the convolution kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf_kernels.launches import Call, Problem

MOST_TAPS = 7  # along each axis
MOST_STEP = 4  # of stride and dilation

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Stride, padding and dilation along the rows and the columns of an image."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @classmethod
    def of(cls, *pairs: Sequence[int]) -> Geometry:
        """Stride, padding and dilation as an op gets them."""
        stride, padding, dilation = (tuple(pair) for pair in pairs)
        # Whether each is a pair is for check_geometry to say.
        return cls(stride, padding, dilation)  # type: ignore[arg-type]

    def output(self, size: Pair, kernel: Pair) -> Pair:
        """Rows and columns of the output for an image of `size`; below one where it is smaller than
        the kernel."""
        high, wide = (
            (n + 2 * pad - step * (k - 1) - 1) // stride + 1
            for n, k, stride, pad, step in zip(size, kernel, *self, strict=True)
        )
        return high, wide

    def served(self, kernel: Pair) -> bool:
        """Whether the kernels take this: no more than 7 taps, strides and dilations up to 4."""
        return max(kernel) <= MOST_TAPS and max(*self.stride, *self.dilation) <= MOST_STEP

    def arguments(self) -> dict[str, int]:
        """By the names that they have in the kernels."""
        return {
            f"{name}_{axis}": pair[k]
            for name, pair in zip(("stride", "pad", "dilation"), self, strict=True)
            for k, axis in enumerate("hw")
        }


def check_geometry(x: Tensor, kernel: Pair, geometry: Geometry) -> Pair:
    """Rows and columns of the output of x (B, C, H, W).

    Raises ValueError for pairs that are none, strides or dilations below one, padding below zero,
    and an image that is smaller than the kernel.
    """
    for name, pair, least in zip(Geometry._fields, geometry, (1, 0, 1), strict=True):
        whole = len(pair) == 2 and all(isinstance(n, int) and n >= least for n in pair)
        if not whole:
            raise ValueError(f"{name}={pair!r} must be two ints of at least {least}")
    size = geometry.output((x.shape[2], x.shape[3]), kernel)
    if min(size) < 1:
        high, wide = kernel
        raise ValueError(
            f"x has images of {x.shape[2]} x {x.shape[3]}, smaller than the kernel of {high} x "
            f"{wide} with padding={geometry.padding} and dilation={geometry.dilation}; pad more"
        )
    return size


def image_strides(x: Tensor) -> dict[str, int]:
    """Of x (B, C, H, W), by the names that they have in the kernels."""
    names = ("x_image", "x_channel", "x_row", "x_column")
    return dict(zip(names, x.stride(), strict=True))


def empty_image(x: Tensor, channels: int, size: Pair) -> Tensor:
    """(B, channels, *size) in channels_last, like x."""
    return x.new_empty(x.shape[0], *size, channels).permute(0, 3, 1, 2)


def problem(x: Tensor, size: Pair, channels: int, inner: int, rank: int, *, tf32: bool) -> Problem:
    """What a launch is chosen for: a product of B P Q rows through `rank` into `channels`."""
    return Problem(x.shape[0] * size[0] * size[1], channels, inner, rank, x.dtype, tf32)


def in_channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) with channels beside each other, as it is or copied."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous(memory_format=_LAST)


_LAST = torch.channels_last


# ---- operands of no account, for compiling and timing --------------------------------------------


def trial_tensor(problem: Problem, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Random on a GPU, else never written."""
    made = torch.empty(size, dtype=problem.dtype, device=device)
    return made.normal_() if device.type == "cuda" else made


def trial_image(problem: Problem, channels: int, device: torch.device) -> tuple[Tensor, Pair]:
    """One image in channels_last with as many places as the problem has rows, about, and its rows
    and columns."""
    columns = min(problem.rows, 56)
    size = (-(-problem.rows // columns), columns)
    return trial_tensor(problem, (1, *size, channels), device).permute(0, 3, 1, 2), size


def in_precision_of(calls: list[Call], problem: Problem) -> list[Call]:
    """The problem says in what float32 is multiplied, whatever the switch of this process."""
    precision = {"PRECISION": "tf32" if problem.tf32 else "ieee"}
    return [
        replace(call, constants={**call.constants, **precision})
        if "PRECISION" in call.constants
        else call
        for call in calls
    ]
