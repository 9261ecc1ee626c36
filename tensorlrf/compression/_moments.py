"""Second moments of a layer's inputs, streamed: G = X X^T / N, never X itself.

A column of X is one input row of a linear layer, or one unfolded patch of a conv in the order
(I, kh, kw) of `torch.nn.functional.unfold`; N counts columns.

Products are made in float32 (float64 for float64 inputs) over at most `COLUMNS` columns and added
up in float64. By Cauchy-Schwarz an entry is then off by no more than COLUMNS * 6e-8 of
sqrt(G_ii G_jj), in practice by sqrt(COLUMNS) of that unit or less since BLAS sums in blocks, and
this does not grow with N. Directions that hold less than about 1e-6 of the energy are below it;
an output error of 1e-3 is where they would begin to matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensorlrf.compression._shifts import ShiftedCorrelations
from tensorlrf.ops._geometry import pair, resolve_padding

COLUMNS = 1 << 14
"""Columns of X in one product."""

PATCH_NUMBERS = 1 << 22
"""Numbers in one block of unfolded patches (16 MB in float32); at the least one output row."""

FEW_CHANNELS = 8
"""Up to here unfolding is cheaper than one correlation for each difference of taps."""


class Moments(ABC):
    """G = X X^T / N of one layer's inputs, batch by batch.

    count   N so far
    """

    count: int = 0

    @abstractmethod
    def add(self, x: Tensor) -> None:
        """Take the input of one call of the layer; it is neither changed nor kept."""

    @abstractmethod
    def gram(self) -> Tensor:
        """G so far: (n, n), symmetric, float64."""


class LinearMoments(Moments):
    """Over all leading dimensions of the input (..., n)."""

    def __init__(self, n: int, device: torch.device) -> None:
        self._sum = torch.zeros(n, n, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        rows = raised(x.detach()).reshape(-1, x.shape[-1])  # (N, n)
        add_products(self._sum, rows, rows)
        self.count += rows.shape[0]

    def gram(self) -> Tensor:
        return (self._sum + self._sum.T) / (2 * max(1, self.count))


class PatchMoments(Moments):
    """Of a conv with any stride, by unfolding a bounded block of output rows at a time."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv = conv
        n = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        self._sum = torch.zeros(n, n, dtype=torch.float64, device=conv.weight.device)

    def add(self, x: Tensor) -> None:
        conv = self._conv
        padded = pad_input(raised(x.detach()), conv)  # (batch, I, H, W)
        reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        height = (padded.shape[2] - reach[0]) // conv.stride[0] + 1
        width = (padded.shape[3] - reach[1]) // conv.stride[1] + 1
        step = max(1, PATCH_NUMBERS // (self._sum.shape[0] * max(1, width)))
        for image in padded:
            for top in range(0, height, step):
                bottom = min(height, top + step)
                band = image[
                    None,
                    :,
                    top * conv.stride[0] : (bottom - 1) * conv.stride[0] + reach[0],
                ]
                patches = F.unfold(band, conv.kernel_size, conv.dilation, 0, conv.stride)[0].T
                add_products(self._sum, patches, patches)  # patches (positions, n)
        self.count += padded.shape[0] * height * width

    def gram(self) -> Tensor:
        return (self._sum + self._sum.T) / (2 * max(1, self.count))


class ShiftMoments(Moments):
    """Of a conv with stride 1, by correlations of the shifted input.

    Apart from the borders, the block of G for taps p and q depends on q - p only: a 3 x 3 kernel
    needs 13 products of the size of the input instead of 45 (or 81, by unfolding).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv = conv
        self._parts = ShiftedCorrelations(
            conv.in_channels, conv.kernel_size, conv.dilation, conv.weight.device
        )

    def add(self, x: Tensor) -> None:
        conv = self._conv
        x = raised(x.detach())
        x = x[None] if x.ndim == 3 else x
        zeros = padding(conv) if conv.padding_mode == "zeros" else (0, 0, 0, 0)
        # The padded copy is bounded, by one image at the least.
        images = max(1, PATCH_NUMBERS // max(1, x[0].numel()))
        for start in range(0, x.shape[0], images):
            chunk = x[start : start + images]
            self.count += self._parts.add(pad_input(chunk, conv), zeros)

    def gram(self) -> Tensor:
        return self._parts.total().div_(max(1, self.count))


def moments_of(layer: nn.Linear | nn.Conv2d) -> Moments:
    """An empty accumulator for the inputs of `layer`, the cheapest that serves it."""
    if isinstance(layer, nn.Linear):
        return LinearMoments(layer.in_features, layer.weight.device)
    if layer.stride == (1, 1) and layer.in_channels > FEW_CHANNELS:
        return ShiftMoments(layer)
    return PatchMoments(layer)


def raised(x: Tensor) -> Tensor:
    """float64 stays, all else becomes float32."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right for (N, n) matrices; `total` is float64."""
    for start in range(0, left.shape[0], COLUMNS):
        total += left[start : start + COLUMNS].T @ right[start : start + COLUMNS]


def padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of what the conv adds around its input."""
    kernel, stride, dilation = (
        pair("size", n, 1) for n in (conv.kernel_size, conv.stride, conv.dilation)
    )
    zeros = resolve_padding(conv.padding, kernel, stride, dilation)
    (top, left), (below, beside) = zeros
    return left, left + beside, top, top + below


def pad_input(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The input (batch, I, H, W), or (I, H, W), as the conv sees it: (batch, I, H', W')."""
    x = x[None] if x.ndim == 3 else x
    amounts = padding(conv)
    if not any(amounts):
        return x
    return F.pad(x, amounts, "constant" if conv.padding_mode == "zeros" else conv.padding_mode)
