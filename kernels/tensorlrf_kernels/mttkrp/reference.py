"""The plain torch meaning of `mttkrp`: Khatri-Rao products, and products of matrices with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_ENTRIES = 1 << 24  # of a Khatri-Rao product in memory, unless the modes but one have more


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Columnwise Kronecker product of (n_k, c), the first slowest: (prod n_k, c)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None, :] * factor[None, :, :]).reshape(-1, factor.shape[1])
    return product


def mttkrp(tensor: Tensor, factors: Sequence[Tensor], mode: int) -> Tensor:
    """The matricised tensor times the Khatri-Rao product of all factors but that of `mode`.

    factors[k] (n_k, c); returns (n_mode, c).
    """
    modes = [k for k in range(tensor.ndim) if k != mode]
    return contract_modes(tensor, [factors[k] for k in modes], modes)


def contract_modes(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    """sum over the indices of `modes` of the tensor times a row of each of `factors`.

    factors[j] (n, c) belongs to modes[j]; returns (prod of the other sizes, c). The tensor is
    copied only where its strides do not let it be seen as a matrix, or as a stack of them.
    """
    order = sorted(range(len(modes)), key=lambda j: modes[j])
    factors = [factors[j] for j in order]
    done = [modes[j] for j in order]
    free = [k for k in range(tensor.ndim) if k not in done]
    sizes, columns = tensor.shape, factors[0].shape[1]
    rows = math.prod(sizes[k] for k in free)
    if not (tensor.numel() and columns):
        return tensor.new_zeros(rows, columns)
    if _is_range(done):
        front, inner = math.prod(sizes[: done[0]]), math.prod(sizes[k] for k in done)
        return _over_the_middle(tensor.reshape(front, inner, -1), factors)
    if _is_range(free):
        blocks = tensor.reshape(math.prod(sizes[: free[0]]), rows, -1)
        return _around_the_middle(blocks, factors)
    turned = tensor.permute(*free, *done)
    return contract_modes(turned, factors, range(len(free), tensor.ndim))


def _is_range(modes: Sequence[int]) -> bool:
    return modes[-1] - modes[0] == len(modes) - 1


def _over_the_middle(blocks: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """(P, K, Q) contracted over K: (P Q, c)."""
    P, K, Q = blocks.shape
    first, *rest = factors
    columns = first.shape[1]
    width = K // first.shape[0]
    many = max(1, MOST_ENTRIES // max(1, width * columns))
    total: Tensor | None = None
    for start in range(0, first.shape[0], many):
        part = khatri_rao([first[start : start + many], *rest])  # (k, c)
        block = blocks[:, start * width : start * width + len(part)]  # (P, k, Q)
        if Q == 1:
            made = block[:, :, 0] @ part
        elif P == 1:
            made = block[0].T @ part
        else:
            made = torch.bmm(block.mT, part.expand(P, *part.shape)).flatten(0, 1)
        total = made if total is None else total + made
    assert total is not None
    return total


def _around_the_middle(blocks: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """(P, M, Q) contracted over P and Q: (M, c)."""
    P, M, Q = blocks.shape
    first, *rest = factors
    columns = first.shape[1]
    depth = P // first.shape[0]  # blocks for an index of the first factor
    many = max(1, MOST_ENTRIES // max(1, depth * max(M, Q) * columns))
    total = blocks.new_zeros(M, columns)
    for start in range(0, first.shape[0], many):
        part = khatri_rao([first[start : start + many], *rest]).view(-1, Q, columns)  # (p, Q, c)
        block = blocks[start * depth : start * depth + len(part)]  # (p, M, Q)
        total = total + torch.bmm(block, part).sum(0)
    return total


def tensor_gradient(
    dy: Tensor, factors: Sequence[Tensor], modes: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    """The gradient of `contract_modes` in its tensor, of `sizes`, from dy (prod of others, c):
    dy[f, r] times a row of each factor, summed over r."""
    free = [k for k in range(len(sizes)) if k not in modes]
    matrices = [dy, *factors]
    rows = [len(m) for m in matrices]
    # Cut in two where the Khatri-Rao products of both sides have the fewest rows.
    cut = min(range(1, len(rows)), key=lambda at: math.prod(rows[:at]) + math.prod(rows[at:]))
    made = khatri_rao(matrices[:cut]) @ khatri_rao(matrices[cut:]).T
    order = [*free, *modes]
    back = [order.index(k) for k in range(len(sizes))]
    return made.view([sizes[k] for k in order]).permute(back).contiguous()
