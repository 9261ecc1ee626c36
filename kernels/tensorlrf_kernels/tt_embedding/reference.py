"""The plain torch meaning of `tt_embedding`, its gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels.lowrank_embedding.reference import segment_sums, without_gradient

Sums = Callable[[Tensor, Tensor, int, int | None, torch.dtype], Tensor]
"""`segment_sums`: rows of values of equal indices added up."""


def tt_embedding(
    indices: Tensor,
    cores: Sequence[Tensor],
    shape: tuple[int, int],
    padding_idx: int | None = None,
) -> Tensor:
    """Rows of the table (n, d) = `shape` that is a tensor train (Hrinchuk et al. 2020, section 3).

    indices (...), cores (r_k, n_k, d_k, r_{k+1}) with a rank of one at both ends, n <= prod n_k and
    d <= prod d_k: what is more is padding of the table. Returns (..., d). For every index the
    slices of the cores at its digits are gathered and multiplied, from the first to the last.
    """
    flat = indices.reshape(-1)
    places = digits(flat, shape[0], [core.shape[1] for core in cores])
    t = F.embedding(places[0], cores[0][0].flatten(1))  # refuses indices out of range
    t = torch.unflatten(t, 1, (cores[0].shape[2], cores[0].shape[3]))  # (M, d_0, r_1)
    for core, place in zip(cores[1:], places[1:], strict=True):
        sliced = torch.index_select(core, 1, place).transpose(0, 1).flatten(2)  # (M, r, d_k r')
        t = torch.unflatten(torch.bmm(t, sliced), 2, (core.shape[2], core.shape[3])).flatten(1, 2)
    y = t.flatten(1)  # (M, prod d_k)
    if math.prod([core.shape[2] for core in cores]) != shape[1]:
        y = y[:, : shape[1]]
    y = y.reshape(indices.shape + (shape[1],))  # noqa: RUF005  a traced shape cannot be unpacked
    return without_gradient(y, indices, padding_idx)


def digits(indices: Tensor, rows: int, sizes: Sequence[int]) -> list[Tensor]:
    """The digits of row indices in a mixed base, the leading one first. Of an index that is no row
    the first digit is beyond its size, so that the lookup that follows refuses it on any device."""
    found = []
    rest = indices
    for size in reversed(sizes[1:]):
        found.append(rest % size)
        rest = torch.div(rest, size, rounding_mode="floor")
    beyond = (indices < 0) | (indices >= rows)
    found.append(rest.masked_fill(beyond, sizes[0]))
    return found[::-1]


def tt_embedding_backward(
    dy: Tensor,
    indices: Tensor,
    first: Tensor,
    second: Tensor,
    rows: int,
    padding_idx: int | None,
    needed: Sequence[bool],
    sums: Sums = segment_sums,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in first (n1, d1, R) and second (R, n2, d2), those that are `needed`, from
    dy (M, d) and indices (M,).

    With dY (d1, d2) a row of dy, dfirst[i1] is the sum of dY second[i2]^T over the indices with the
    digit i1, and dsecond[i2] that of first[i1]^T dY over those with i2.
    """
    (n1, d1, R), (_, n2, d2) = first.shape, second.shape
    if padding_idx is not None:
        dy = dy.masked_fill((indices == padding_idx)[:, None], 0.0)
    dy = F.pad(dy, (0, d1 * d2 - dy.shape[1])).reshape(len(indices), d1, d2)
    one, other = digits(indices, rows, (n1, n2))
    dfirst = dsecond = None
    if needed[0]:
        slices = second.index_select(1, other).permute(1, 2, 0)  # (M, d2, R)
        values = torch.bmm(dy, slices).flatten(1)
        dfirst = sums(values, one, n1, None, first.dtype).view(n1, d1, R)
    if needed[1]:
        slices = first.index_select(0, one).transpose(1, 2)  # (M, R, d1)
        values = torch.bmm(slices, dy).flatten(1)
        dsecond = sums(values, other, n2, None, second.dtype).view(n2, R, d2).transpose(0, 1)
    return dfirst, dsecond
