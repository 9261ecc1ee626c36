"""Linear layer whose weight is a product of two matrices: the op, and how it is dispatched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate, check_activation
from tensorlrf_kernels._check import check_operands, once
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.launches import HAS_TRITON, say_once
from tensorlrf_kernels.lowrank_linear import fused, reference
from tensorlrf_kernels.lowrank_linear.launch import MOST_DECODE_ROWS, MOST_PREFILL_RANK

__all__ = ["lowrank_linear"]


def lowrank_linear(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x @ right^T @ left^T + bias + residual)`, in one kernel on an NVIDIA GPU.

    Differentiable once, in all five tensors.

    Parameters
    ----------
    x : Tensor of shape (..., n)
    right : Tensor of shape (r, n)
    left : Tensor of shape (m, r)
    bias : Tensor of shape (m,), optional
    residual : Tensor of shape (..., m), optional
        A further term of the sum.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (..., m)
        Contiguous.

    Raises
    ------
    ValueError
        Where shapes, dtypes, devices or the activation do not fit together.

    Notes
    -----
    The operands may have any strides. Sums are made in float32; float32 operands are multiplied in
    TF32 where torch's own switch allows it. In float16 the intermediate may leave the dtype's
    range.

    Two library products run in its place on a CPU, in float64, beyond rank 256 for more than 128
    rows, and where the kernel does not compile; the last two are said once, by a RuntimeWarning.
    There the intermediate is rounded to the operands' dtype.

    Examples
    --------
    >>> from tensorlrf_kernels.lowrank_linear import lowrank_linear
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> y = lowrank_linear(torch.rand(5, 6), f.right, f.left, activation="relu")
    >>> y.shape, bool((y >= 0).all())
    (torch.Size([5, 8]), True)
    """
    given = (x, right, left, bias, residual)
    differentiated = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in given
    )
    keep = differentiated and (activation is not None or left.requires_grad)
    op = torch.ops.tensorlrf.lowrank_linear
    y: Tensor
    y, _ = call(op, *given, activation, keep, differentiated=differentiated)
    return y


def _check(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> None:
    check_operands(
        x=(x, "...n"),
        right=(right, "rn"),
        left=(left, "mr"),
        bias=(bias, "m"),
        residual=(residual, "...m"),
    )
    check_activation(activation)


_checked = once(_check)


# ---- forward ------------------------------------------------------------------------------------


def _forward_reference(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, right, left, bias, residual, activation)
    t = F.linear(x, right)  # (..., r)
    y = activate(reference.expand(t, left, bias, residual), activation)
    kept = t.reshape(-1, t.shape[-1]).to(fused.kept_dtype(x.dtype)) if keep else t.new_empty(0)
    return y.contiguous(), kept


def _forward_cuda(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    _checked(x, right, left, bias, residual, activation)
    lead, (out, rank) = x.shape[:-1], left.shape
    rows = _flat(x, right.shape[1])
    terms = None if residual is None else _flat(residual, out)
    shift = None if bias is None else bias.contiguous()
    made = fused.forward(rows, right, left, shift, terms, activation, keep)
    if made is not None:
        y, t = made
        return y.view(*lead, out), x.new_empty(0) if t is None else t
    if HAS_TRITON and rank > MOST_PREFILL_RANK and len(rows) > MOST_DECODE_ROWS:
        say_once(
            f"lowrank_linear: rank {rank} is above {MOST_PREFILL_RANK}, the largest that stays on "
            f"chip for more than {MOST_DECODE_ROWS} rows; library products run in its place"
        )
    return _forward_reference(x, right, left, bias, residual, activation, keep)


def _forward_fake(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, right, left, bias, residual, activation)
    lead, (out, rank) = x.shape[:-1], left.shape
    # Not lead.numel(), which takes a symbolic size for a constant.
    kept = (math.prod(lead), rank) if keep else (0,)
    t = x.new_empty(kept, dtype=fused.kept_dtype(x.dtype) if keep else x.dtype)
    return x.new_empty((*lead, out)), t


def _flat(x: Tensor, columns: int) -> Tensor:
    """x (..., columns) as rows; a view wherever one can be had."""
    return x.reshape(x.shape[:-1].numel(), columns)


# ---- backward -----------------------------------------------------------------------------------

Gradients = tuple[Tensor, ...]  # one an operand


def _backward_reference(
    dy: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> Gradients:
    rows, kept, terms = _rows(x, t, right, left, residual, activation, needed)
    kept = None if kept is None else kept.to(dy.dtype)
    found = reference.lowrank_linear_backward(
        _flat(dy, left.shape[0]), rows, kept, right, left, bias, terms, activation, needed
    )
    return _shaped(found, dy, right)


def _backward_cuda(
    dy: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> Gradients:
    rows, kept, terms = _rows(x, t, right, left, residual, activation, needed)
    shift = None if bias is None else bias.contiguous()
    found = fused.backward(
        _flat(dy, left.shape[0]), rows, kept, right, left, shift, terms, activation, needed
    )
    if found is None:
        return _backward_reference(dy, x, t, right, left, bias, residual, activation, needed)
    return _shaped(found, dy, right)


def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> Gradients:
    shape = (*dy.shape[:-1], right.shape[1])
    shapes = (shape, right.shape, left.shape, left.shape[:1], dy.shape)
    made = (dy.new_empty(size if need else (0,)) for size, need in zip(shapes, needed, strict=True))
    return tuple(made)


def _rows(
    x: Tensor | None,
    t: Tensor | None,
    right: Tensor,
    left: Tensor,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """x, t and the residual as rows; t is made from x where it is wanted and was not kept."""
    x = None if x is None else _flat(x, right.shape[1])
    residual = None if residual is None else _flat(residual, left.shape[0])
    if t is None and x is not None and (needed[2] or activation is not None):
        t = F.linear(x, right).to(fused.kept_dtype(x.dtype))
    return x, t, residual


def _shaped(found: Sequence[Tensor | None], dy: Tensor, right: Tensor) -> Gradients:
    """Gradients of rows in the shapes of the operands; nothing stands for what was not needed."""
    dx, dright, dleft, dbias, dresidual = found
    if dx is not None:
        dx = dx.view(*dy.shape[:-1], right.shape[1])
    if dresidual is not None:
        # An op returns tensors of its own, and dz may be dy.
        dresidual = dresidual.reshape(dy.shape)
        if dresidual.data_ptr() == dy.data_ptr():
            dresidual = dresidual.clone(memory_format=torch.contiguous_format)
    made = (dx, dright, dleft, dbias, dresidual)
    return tuple(dy.new_empty(0) if g is None else g.contiguous() for g in made)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, right, left, bias, residual, ctx.activation, kept = inputs
    _, t = output
    ctx.mark_non_differentiable(t)
    ctx.set_materialize_grads(False)
    _, needs_right, needs_left = ctx.needs_input_grad[:3]
    active = ctx.activation is not None
    needs_t = needs_left or active
    # Without a t that was kept it is made anew from x.
    keeps_x = needs_right or (needs_t and not kept)
    ctx.save_for_backward(
        x if keeps_x else None,
        t if needs_t and kept else None,
        right,
        left,
        bias if active else None,
        residual if active else None,
    )


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    needed = list(ctx.needs_input_grad[:5])
    found = torch.ops.tensorlrf.lowrank_linear_backward(
        dy, *ctx.saved_tensors, ctx.activation, needed
    )
    gradients = (g if need else None for g, need in zip(found, needed, strict=True))
    return (*gradients, None, None)


define(
    "lowrank_linear(Tensor x, Tensor right, Tensor left, Tensor? bias, Tensor? residual, "
    "str? activation, bool keep) -> (Tensor, Tensor)",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
    autocast=True,
)
define(
    "lowrank_linear_backward(Tensor dy, Tensor? x, Tensor? t, Tensor right, Tensor left, "
    "Tensor? bias, Tensor? residual, str? activation, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_reference,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
differentiate("lowrank_linear", _backward, _setup_context)
refuse_gradients("lowrank_linear_backward", "lowrank_linear")
