"""Which memory format an image or a volume lies in."""

from __future__ import annotations

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Number of dimensions -> the memory format that torch has for it."""


def is_channels_last(x: Tensor) -> bool:
    """Channels last and nothing else: with one channel or one pixel a tensor is both."""
    layout = CHANNELS_LAST.get(x.ndim)
    if layout is None:
        return False
    return x.is_contiguous(memory_format=layout) and not x.is_contiguous()
