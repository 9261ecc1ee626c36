"""Rounding alone, to compare with: weights to integers and a scale for each row or part of a row.

Symmetric, to the nearest, without data. Layers compute as before on the values that the integers
stand for, so that this is the quality of weight-only kernels, whose speed it does not tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCALE_BYTES = 2
"""Scales are bfloat16: the range of float32, and rounding is by the scale that is stored."""


@dataclass(frozen=True)
class Quantiser:
    """word   what it is called
    bits      of an integer
    group     columns that share a scale; None for whole rows
    """

    word: str
    bits: int
    group: int | None

    def rounded(self, weight: Tensor) -> Tensor:
        """The values (O, ...) that are stored, as weights of the same dtype."""
        rows = weight.detach().flatten(1).float()
        parts = torch.split(rows, self._columns(weight), dim=1)
        whole = torch.cat([self._part(part) for part in parts], dim=1)
        return whole.reshape(weight.shape).to(weight.dtype)

    def n_bytes(self, weight: Tensor) -> int:
        """That integers and scales take."""
        rows, columns = weight.shape[0], weight[0].numel()
        scales = rows * -(-columns // self._columns(weight))
        return -(-weight.numel() * self.bits // 8) + scales * SCALE_BYTES

    def _columns(self, weight: Tensor) -> int:
        columns = max(1, weight[0].numel())
        return columns if self.group is None else min(self.group, columns)

    def _part(self, part: Tensor) -> Tensor:
        most = 2 ** (self.bits - 1) - 1
        scale = (part.abs().amax(1, keepdim=True) / most).bfloat16().float()
        whole = (part / torch.where(scale > 0, scale, 1)).round().clamp(-most - 1, most)
        stored: Tensor = whole * scale
        return stored


QUANTISERS = (Quantiser("int8", 8, None), Quantiser("int4", 4, 128))
