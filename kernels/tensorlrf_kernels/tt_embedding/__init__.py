"""Rows of a table that is a tensor train, cut in two: the op, and how it is dispatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._check import check_operands
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.lowrank_embedding import check_indices, known_padding
from tensorlrf_kernels.lowrank_embedding.fused import segment_sums
from tensorlrf_kernels.lowrank_embedding.reference import segment_sums as reference_sums
from tensorlrf_kernels.tt_embedding import fused, reference

__all__ = ["tt_embedding"]


def tt_embedding(
    indices: Tensor,
    first: Tensor,
    second: Tensor,
    shape: tuple[int, int] | None = None,
    padding_idx: int | None = None,
) -> Tensor:
    """Rows of a table that is a train of two: `first[i1] second[:, i2]`, flattened.

    Of the digits (i1, i2) of every index two small matrices are gathered and multiplied, in one
    kernel on an NVIDIA GPU. Differentiable once, in both cores, by library products and sums in a
    fixed order; their terms are rounded to the dtype.

    Parameters
    ----------
    indices : Tensor of shape (...)
        Of int32 or int64, each from 0 up to n; i1, i2 = divmod(index, n2).
    first : Tensor of shape (n1, d1, R)
        The leading cores of the train as one.
    second : Tensor of shape (R, n2, d2)
        The others.
    shape : (n, d), optional
        n <= n1 n2 and d <= d1 d2: what is more is padding that the table does not have; by default
        (n1 n2, d1 d2).
    padding_idx : int, optional
        What is looked up at this index has no gradient, as in torch.nn.Embedding; below zero it
        counts from the end.

    Returns
    -------
    Tensor of shape (..., d)
        Contiguous.

    Raises
    ------
    ValueError
        Where shapes, dtypes, devices or padding_idx do not fit together.
    IndexError
        For an index out of range on a CPU; on a GPU a trap, as in `lowrank_embedding`.

    Notes
    -----
    The cores may have any strides; sums are made in float32, and float32 operands are multiplied in
    TF32 where torch's own switch allows it.

    Gathers and a batched library product run in its place on a CPU, in float64, above rank 64, and
    where the kernel does not compile, which a RuntimeWarning says once.

    Examples
    --------
    >>> from tensorlrf_kernels.tt_embedding import tt_embedding
    >>> first, second = torch.ones(10, 4, 2), torch.ones(2, 10, 4)
    >>> tt_embedding(torch.tensor([3, 97]), first, second).shape
    torch.Size([2, 16])
    """
    _check(indices, first, second)
    whole = (first.shape[0] * second.shape[1], first.shape[1] * second.shape[2])
    n, d = whole if shape is None else shape
    padding = known_padding(padding_idx, n)
    differentiated = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    op = torch.ops.tensorlrf.tt_embedding
    y: Tensor = call(op, indices, first, second, n, d, padding, differentiated=differentiated)
    return y


def _check(indices: Tensor, first: Tensor, second: Tensor) -> None:
    check_indices(indices, first, "first")
    check_operands(first=(first, "abr"), second=(second, "rcd"))


def _check_shape(first: Tensor, second: Tensor, n: int, d: int) -> None:
    most = (first.shape[0] * second.shape[1], first.shape[1] * second.shape[2])
    if not (0 <= n <= most[0] and 0 <= d <= most[1]):
        raise ValueError(
            f"shape={(n, d)} does not fit the cores; it must be (n, d) with n <= {most[0]} and "
            f"d <= {most[1]}"
        )


# ---- forward ------------------------------------------------------------------------------------


def _forward_reference(
    indices: Tensor, first: Tensor, second: Tensor, rows: int, columns: int, padding: int
) -> Tensor:
    _check(indices, first, second)
    _check_shape(first, second, rows, columns)
    cores = (first[None], second[..., None])
    return reference.tt_embedding(indices, cores, (rows, columns)).contiguous()


def _forward_cuda(
    indices: Tensor, first: Tensor, second: Tensor, rows: int, columns: int, padding: int
) -> Tensor:
    _check(indices, first, second)
    _check_shape(first, second, rows, columns)
    y = fused.forward(indices.reshape(-1).contiguous(), first, second, (rows, columns))
    if y is None:
        return _forward_reference(indices, first, second, rows, columns, padding)
    return y.view(*indices.shape, columns)


def _forward_fake(
    indices: Tensor, first: Tensor, second: Tensor, rows: int, columns: int, padding: int
) -> Tensor:
    _check(indices, first, second)
    _check_shape(first, second, rows, columns)
    return first.new_empty((*indices.shape, columns))


# ---- backward -----------------------------------------------------------------------------------


def _backward_with(
    sums: reference.Sums,
    dy: Tensor,
    indices: Tensor,
    first: Tensor,
    second: Tensor,
    rows: int,
    padding: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    flat = dy.reshape(indices.numel(), dy.shape[-1])
    padding_idx = None if padding < 0 else padding
    found = reference.tt_embedding_backward(
        flat, indices.reshape(-1), first, second, rows, padding_idx, needed, sums
    )
    dfirst, dsecond = (dy.new_empty(0) if g is None else g.contiguous() for g in found)
    return dfirst, dsecond


def _backward_reference(
    dy: Tensor,
    indices: Tensor,
    first: Tensor,
    second: Tensor,
    rows: int,
    padding: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    return _backward_with(reference_sums, dy, indices, first, second, rows, padding, needed)


def _backward_cuda(
    dy: Tensor,
    indices: Tensor,
    first: Tensor,
    second: Tensor,
    rows: int,
    padding: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    return _backward_with(segment_sums, dy, indices, first, second, rows, padding, needed)


def _backward_fake(
    dy: Tensor,
    indices: Tensor,
    first: Tensor,
    second: Tensor,
    rows: int,
    padding: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    need_first, need_second = needed
    return (
        first.new_empty(first.shape if need_first else (0,)),
        second.new_empty(second.shape if need_second else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, first, second, ctx.rows, _, ctx.padding = inputs
    ctx.save_for_backward(indices, first, second)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[1:3])
    found = torch.ops.tensorlrf.tt_embedding_backward(
        dy, *ctx.saved_tensors, ctx.rows, ctx.padding, needed
    )
    gradients = (g if need else None for g, need in zip(found, needed, strict=True))
    return (None, *gradients, None, None, None)


define(
    "tt_embedding(Tensor indices, Tensor first, Tensor second, int rows, int columns, "
    "int padding) -> Tensor",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
    autocast=True,
)
define(
    "tt_embedding_backward(Tensor dy, Tensor indices, Tensor first, Tensor second, int rows, "
    "int padding, bool[] needed) -> (Tensor, Tensor)",
    cpu=_backward_reference,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
differentiate("tt_embedding", _backward, _setup_context)
refuse_gradients("tt_embedding_backward", "tt_embedding")
