"""The 1 x 1 convolution, as one matrix product that also chooses the memory format."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def is_channels_last(x: Tensor) -> bool:
    """Channels last and nothing else: with one channel or one pixel a tensor is both."""
    # Not by is_contiguous(memory_format=...), which torch.vmap does not know.
    return x.ndim == 4 and not x.is_contiguous() and x.permute(0, 2, 3, 1).is_contiguous()


def pointwise(
    x: Tensor, matrix: Tensor, bias: Tensor | None = None, *, channels_last: bool
) -> Tensor:
    """y[b, :, h, w] = matrix @ x[b, :, h, w] + bias.

    x (B, I, H, W), matrix (O, I), bias (O,); returns (B, O, H, W), in channels_last or in the
    default format as asked, whatever the format of x: a product reads its operand transposed
    at no cost, where a convolution would reorder it.
    """
    if channels_last and is_channels_last(x):
        return F.linear(x.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
    batch, _, height, width = x.shape
    columns = x.flatten(2)  # (B, I, H W), a view in either format
    if channels_last:
        y = F.linear(columns.transpose(1, 2), matrix, bias).transpose(1, 2)  # (B, O, H W)
    elif bias is None:
        y = torch.bmm(matrix.expand(batch, -1, -1), columns)
    else:
        y = torch.baddbmm(bias[:, None], matrix.expand(batch, -1, -1), columns)
    return y.view(batch, matrix.shape[0], height, width)
