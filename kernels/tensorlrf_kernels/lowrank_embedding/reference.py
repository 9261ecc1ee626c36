"""The plain torch meaning of `lowrank_embedding`, its gradients included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def lowrank_embedding(
    indices: Tensor, left: Tensor, right: Tensor, padding_idx: int | None = None
) -> Tensor:
    """(left @ right)[indices]: the rows of left are gathered, and then multiplied.

    indices (...) of int32 or int64, left (n, r), right (r, d); returns (..., d). As in
    torch.nn.Embedding, what is looked up at `padding_idx` has no gradient.
    """
    y = F.embedding(indices, left).to(right.dtype) @ right  # (..., d)
    return without_gradient(y, indices, padding_idx)


def without_gradient(y: Tensor, indices: Tensor, padding_idx: int | None) -> Tensor:
    """y (..., d) with the rows of padding cut from the graph."""
    if padding_idx is None or not (torch.is_grad_enabled() and y.requires_grad):
        return y
    return torch.where((indices == padding_idx)[..., None], y.detach(), y)


def lowrank_embedding_backward(
    dy: Tensor,
    indices: Tensor,
    left: Tensor,
    right: Tensor,
    padding_idx: int | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in left and right, those that are `needed`, from dy (M, d) and indices (M,).

    With t = left[indices], the rows of padding left out: dright = t^T dy, and a row of dleft is the
    sum of dt = dy right^T over the indices that are equal to it.
    """
    need_left, need_right = needed
    return (
        segment_sums(dy @ right.T, indices, len(left), padding_idx, left.dtype)
        if need_left
        else None,
        gathered(left, indices, padding_idx, right.dtype).T @ dy if need_right else None,
    )


def gathered(left: Tensor, indices: Tensor, padding_idx: int | None, dtype: torch.dtype) -> Tensor:
    """left[indices] (M, r) in `dtype`, with zeros for padding."""
    t = F.embedding(indices, left).to(dtype)
    return t if padding_idx is None else t.masked_fill((indices == padding_idx)[:, None], 0.0)


def segment_sums(
    values: Tensor, indices: Tensor, rows: int, padding_idx: int | None, dtype: torch.dtype
) -> Tensor:
    """(rows, C): the values (M, C) of equal indices (M,) added up, those of padding left out.

    In float32 at least. Torch's own sum for embeddings has a fixed order on every device.
    """
    wide = values.float() if values.dtype.itemsize == 2 else values
    padding = -1 if padding_idx is None else padding_idx
    total: Tensor = torch.ops.aten.embedding_dense_backward(wide, indices, rows, padding, False)
    return total.to(dtype)
