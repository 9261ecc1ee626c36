"""Matricised sparse tensor times Khatri-Rao product: the op, and how it is dispatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._check import check_operands
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.sparse_mttkrp import fused, reference

__all__ = ["sparse_mttkrp"]


def sparse_mttkrp(
    values: Tensor, indices: Tensor, starts: Tensor, factors: Sequence[Tensor]
) -> Tensor:
    """The MTTKRP of one mode of a sparse tensor, from its nonzeros sorted by that mode.

    Row i of the result is the sum, over the nonzeros j from `starts[i]` up to `starts[i + 1]`, of
    `values[j]` times the elementwise product of the rows `factors[k][indices[k, j]]`. Memory is
    linear in the nonzeros. Sums are made in the dtype of the values, in a fixed order, without
    atomics: the same operands give the same bits. Differentiable once, in the values and factors.

    Parameters
    ----------
    values : Tensor of shape (nnz,)
    indices : Tensor of shape (K, nnz)
        Of int32 or int64, for each of the other modes where a nonzero stands along it.
    starts : Tensor of shape (rows + 1,)
        Of int32 or int64, ascending from 0 to nnz: where the nonzeros of each row begin.
    factors : sequence of Tensor
        One for each of the K modes, (n_k, c).

    Returns
    -------
    Tensor of shape (rows, c)
        Contiguous.

    Raises
    ------
    ValueError
        Where shapes, dtypes or devices do not fit together.
    IndexError
        For an index out of range on a CPU; on a GPU values are not looked at.

    Notes
    -----
    On a GPU float32 and float64 are served by a kernel: a program adds up at most some dozens of
    nonzeros of a row, and a second launch what is left of long rows. Other dtypes and devices take
    torch's gather and its bags of embeddings, a block of nonzeros at a time.

    References
    ----------
    Bader & Kolda 2008, "Efficient MATLAB computations with sparse and factored tensors", section
    5.2.6; Phipps & Kolda 2019, "Software for sparse tensor decomposition on emerging computing
    architectures" (nonzeros permuted by mode).

    Examples
    --------
    >>> from tensorlrf_kernels.sparse_mttkrp import sparse_mttkrp
    >>> values, starts = torch.ones(3), torch.tensor([0, 2, 2, 3])
    >>> indices = torch.tensor([[0, 1, 1], [2, 0, 1]])
    >>> sparse_mttkrp(values, indices, starts, [torch.ones(2, 2), torch.ones(3, 2)])
    tensor([[2., 2.],
            [0., 0.],
            [1., 1.]])
    """
    given = list(factors)
    differentiated = torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in (values, *given)
    )
    op = torch.ops.tensorlrf.sparse_mttkrp
    made: Tensor = call(op, values, indices, starts, given, differentiated=differentiated)
    return made


# ---- forward ------------------------------------------------------------------------------------


def _check(values: Tensor, indices: Tensor, starts: Tensor, factors: Sequence[Tensor]) -> None:
    check_operands(values=(values, "m"))
    if not factors:
        raise ValueError("no factors were given; give one for each mode but that of the rows")
    named = {f"factors[{k}]": (factor, "nc") for k, factor in enumerate(factors)}
    for name, (factor, letters) in named.items():
        check_operands(values=(values, "m"), **{name: (factor, letters)})
        if factor.shape[1] != factors[0].shape[1]:
            raise ValueError(
                f"{name} has {factor.shape[1]} columns, factors[0] {factors[0].shape[1]}; give "
                "all the same"
            )
    if tuple(indices.shape) != (len(factors), values.shape[0]):
        raise ValueError(
            f"indices has shape {tuple(indices.shape)}; it must be ({len(factors)}, "
            f"{values.shape[0]}), a row for each factor and a column for each value"
        )
    if starts.ndim != 1 or starts.shape[0] < 1:
        raise ValueError(f"starts has shape {tuple(starts.shape)}; it must be (rows + 1,)")
    for name, t in (("indices", indices), ("starts", starts)):
        if t.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} has dtype {t.dtype}; it must be torch.int32 or torch.int64")
        if t.device != values.device:
            raise ValueError(
                f"{name} is on {t.device}, values on {values.device}; move one with .to()"
            )


def _forward_reference(
    values: Tensor, indices: Tensor, starts: Tensor, factors: Sequence[Tensor]
) -> Tensor:
    _check(values, indices, starts, factors)
    return reference.in_blocks(values, indices, starts, factors)


def _forward_cuda(
    values: Tensor, indices: Tensor, starts: Tensor, factors: Sequence[Tensor]
) -> Tensor:
    _check(values, indices, starts, factors)
    made = fused.forward(values, indices, starts, factors)
    return _forward_reference(values, indices, starts, factors) if made is None else made


def _forward_fake(
    values: Tensor, indices: Tensor, starts: Tensor, factors: Sequence[Tensor]
) -> Tensor:
    _check(values, indices, starts, factors)
    return values.new_empty(starts.shape[0] - 1, factors[0].shape[1])


# ---- backward -----------------------------------------------------------------------------------


def _backward_any(
    dy: Tensor,
    values: Tensor,
    indices: Tensor,
    starts: Tensor,
    factors: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients in the values and each factor, those that are `needed`. A factor's is the same op
    on the nonzeros sorted by its mode, with dy in its place."""
    need_values, *need_factors = needed
    rows = reference.rows_of(starts, values.shape[0])
    found = [dy.new_empty(0)]
    if need_values:
        found = [reference.value_gradient(dy, indices, rows, factors)]
    for k, need in enumerate(need_factors):
        if not need:
            found.append(dy.new_empty(0))
            continue
        own, order = torch.sort(indices[k], stable=True)
        edges = torch.arange(len(factors[k]) + 1, device=own.device, dtype=own.dtype)
        others = [j for j in range(len(factors)) if j != k]
        along = torch.cat([rows[None].to(indices.dtype), indices[others]])[:, order]
        found.append(
            torch.ops.tensorlrf.sparse_mttkrp(
                values[order],
                along,
                torch.searchsorted(own, edges),
                [dy.contiguous(), *(factors[j] for j in others)],
            )
        )
    return found


def _backward_fake(
    dy: Tensor,
    values: Tensor,
    indices: Tensor,
    starts: Tensor,
    factors: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor]:
    shapes = [values.shape, *(f.shape for f in factors)]
    return [dy.new_empty(s if need else (0,)) for s, need in zip(shapes, needed, strict=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, indices, starts, factors = inputs
    ctx.save_for_backward(values, indices, starts, *factors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    values, indices, starts, *factors = ctx.saved_tensors
    need_values, _, _, need_factors = ctx.needs_input_grad
    needed = [need_values, *need_factors]
    found = torch.ops.tensorlrf.sparse_mttkrp_backward(dy, values, indices, starts, factors, needed)
    dvalues, *rest = (g if need else None for g, need in zip(found, needed, strict=True))
    return dvalues, None, None, rest


define(
    "sparse_mttkrp(Tensor values, Tensor indices, Tensor starts, Tensor[] factors) -> Tensor",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
)
define(
    "sparse_mttkrp_backward(Tensor dy, Tensor values, Tensor indices, Tensor starts, "
    "Tensor[] factors, bool[] needed) -> Tensor[]",
    cpu=_backward_any,
    cuda=_backward_any,
    fake=_backward_fake,
)
differentiate("sparse_mttkrp", _backward, _setup_context)
refuse_gradients("sparse_mttkrp_backward", "sparse_mttkrp")
