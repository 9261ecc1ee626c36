"""Positions of tokens among numbers of a floating-point dtype, none of them rounded.

A position is written in digits of a base up to which the dtype has all whole numbers: one digit in
float32, three in bfloat16 and float16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BITS = 24
"""Positions are below two to the power of this, 16,777,216."""


def digits_in(dtype: torch.dtype) -> int:
    """How many digits a position takes."""
    return math.ceil(BITS / _bits(dtype))


def joined(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., digits) of whole numbers (...)."""
    bits = _bits(dtype)
    digits = [(positions >> (bits * k)) % (1 << bits) for k in range(digits_in(dtype))]
    return torch.stack(digits, -1).to(dtype)


def parted(digits: Tensor) -> Tensor:
    """Whole numbers (...) of digits (..., digits)."""
    bits = _bits(digits.dtype)
    shifts = [1 << (bits * k) for k in range(digits.shape[-1])]
    parts = digits.to(torch.long).unbind(-1)
    return torch.stack([part * shift for part, shift in zip(parts, shifts, strict=True)]).sum(0)


def _bits(dtype: torch.dtype) -> int:
    """All whole numbers of so many bits are numbers of the dtype."""
    return min(BITS, 1 - round(math.log2(torch.finfo(dtype).eps)))
