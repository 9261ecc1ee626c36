"""Rounding alone, to compare with: weights to integers and a scale for each row or part of a row.

Symmetric, to the nearest, without data. With activations in 8 bits as well (W8A8, a scale for each
row, found as it comes), linear layers run on products of integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.compression.calibration._dense_layer import DenseLayer

SCALE_BYTES = 2
"""Scales are bfloat16: the range of float32, and rounding is by the scale that is stored."""

LEAST_ROWS, MULTIPLE = 17, 8
"""Rows, and of what columns are multiples, that the product of integers takes on every device."""


@dataclass(frozen=True)
class Quantiser:
    """word       what it is called
    bits         of an integer
    group        columns that share a scale; None for whole rows
    activations  whether inputs of linear layers are rounded too
    runs         whether torch runs on what is stored, so that its time can be told
    """

    word: str
    bits: int
    group: int | None
    activations: bool = False
    runs: bool = True

    def rounded(self, weight: Tensor) -> Tensor:
        """The values (O, ...) that are stored, as weights of the same dtype."""
        codes, scales = self.stored(weight)
        columns = self._columns(weight)
        wide = scales.repeat_interleave(columns, dim=1)[:, : codes.shape[1]]
        return (codes.float() * wide.float()).reshape(weight.shape).to(weight.dtype)

    def stored(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(integers (O, n) in int8, scales (O, groups) in bfloat16)."""
        rows = weight.detach().flatten(1).float()
        parts = [self._part(part) for part in torch.split(rows, self._columns(weight), dim=1)]
        return torch.cat([codes for codes, _ in parts], 1), torch.cat([s for _, s in parts], 1)

    def n_bytes(self, weight: Tensor) -> int:
        """That integers and scales take."""
        rows, columns = weight.shape[0], weight[0].numel()
        scales = rows * -(-columns // self._columns(weight))
        return -(-weight.numel() * self.bits // 8) + scales * SCALE_BYTES

    def layer(self, site: DenseLayer) -> nn.Module:
        """The layer as torch runs it on whole rows of integers."""
        return _IntegerLayer(site, *self.stored(site.weight), activations=self.activations)

    def _columns(self, weight: Tensor) -> int:
        columns = max(1, weight[0].numel())
        return columns if self.group is None else min(self.group, columns)

    def _part(self, part: Tensor) -> tuple[Tensor, Tensor]:
        most = 2 ** (self.bits - 1) - 1
        scale = (part.abs().amax(1, keepdim=True) / most).bfloat16()
        whole = part / torch.where(scale > 0, scale, 1).float()
        return whole.round().clamp(-most - 1, most).to(torch.int8), scale


QUANTISERS = (
    Quantiser("int8", 8, None),
    Quantiser("int4", 4, 128, runs=False),
    Quantiser("w8a8", 8, None, activations=True),
)


class _IntegerLayer(nn.Module):
    """A layer on integers: weights alone become floats in every call, since torch's own kernel for
    that is a plain loop in float32; a linear layer with activations in 8 bits multiplies integers.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self, site: DenseLayer, codes: Tensor, scales: Tensor, *, activations: bool
    ) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales.to(site.weight.dtype))
        self.bias = site.module.bias
        self.shape, self.whole = site.shape, activations and site.taps is None
        # Of the given layer its own way to convolve; its weight is not used.
        self._convolved: Callable[..., Tensor] | None = getattr(site.module, "_conv_forward", None)

    @property
    def weight(self) -> Tensor:
        """For parents that ask for its dtype."""
        return (self.codes * self.scales).reshape(self.shape)

    def forward(self, input: Tensor) -> Any:
        if self._convolved is not None:
            return self._convolved(input, self.weight, self.bias)
        if not self.whole:
            return F.linear(input, self.weight, self.bias)
        y = self._product(input.reshape(-1, input.shape[-1]))
        y = y if self.bias is None else y + self.bias
        return y.reshape(*input.shape[:-1], -1)

    def _product(self, rows: Tensor) -> Tensor:
        """(M, n) -> (M, O), each row rounded by a scale of its own."""
        scale = rows.abs().amax(1, keepdim=True).float() / 127
        codes = (rows / torch.where(scale > 0, scale, 1)).round()
        M, n = rows.shape
        if M >= LEAST_ROWS and n % MULTIPLE == 0 and len(self.codes) % MULTIPLE == 0:
            product = torch._int_mm(codes.to(torch.int8), self.codes.T).float()
        else:
            product = codes @ self.codes.T.float()
        return (product * scale * self.scales[:, 0].float()).to(rows.dtype)
