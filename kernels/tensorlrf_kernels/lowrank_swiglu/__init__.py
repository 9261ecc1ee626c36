"""The gated half of a SwiGLU block on two low-rank weights: the op, and how it is dispatched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._check import check_operands, once
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.launches import HAS_TRITON, say_once
from tensorlrf_kernels.lowrank_linear.fused import kept_dtype
from tensorlrf_kernels.lowrank_linear.launch import MOST_DECODE_ROWS
from tensorlrf_kernels.lowrank_swiglu import fused, reference
from tensorlrf_kernels.lowrank_swiglu.launch import MOST_PREFILL_RANK
from tensorlrf_kernels.lowrank_swiglu.reference import Projection

__all__ = ["lowrank_swiglu"]


def lowrank_swiglu(
    x: Tensor,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> Tensor:
    """`silu(gate) * up` of two low-rank layers of one x, in one kernel on an NVIDIA GPU.

    `gate = x @ gate_right^T @ gate_left^T + gate_bias`, `up = x @ up_right^T @ up_left^T +
    up_bias`. Neither projection is written to memory. Differentiable once, in all seven tensors.

    Parameters
    ----------
    x : Tensor of shape (..., n)
    gate_right : Tensor of shape (g, n)
    gate_left : Tensor of shape (m, g)
    up_right : Tensor of shape (u, n)
    up_left : Tensor of shape (m, u)
    gate_bias : Tensor of shape (m,), optional
    up_bias : Tensor of shape (m,), optional

    Returns
    -------
    Tensor of shape (..., m)
        Contiguous.

    Raises
    ------
    ValueError
        Where shapes, dtypes or devices do not fit together.

    Notes
    -----
    The operands may have any strides, and the ranks g and u may differ. Sums are made in float32;
    float32 operands are multiplied in TF32 where torch's own switch allows it. In float16 the
    intermediates may leave the dtype's range.

    Library products run in its place on a CPU, in float64, beyond rank 128 for more than 128 rows
    (64 for the gradients), and where the kernel does not compile; where that happens in the forward
    pass on a GPU that has kernels, a RuntimeWarning says so once. There the intermediates are
    rounded to the operands' dtype.

    Examples
    --------
    >>> from tensorlrf_kernels.lowrank_swiglu import lowrank_swiglu
    >>> right, left = torch.rand(2, 6), torch.rand(8, 2)
    >>> lowrank_swiglu(torch.rand(5, 6), right, left, right, left).shape
    torch.Size([5, 8])
    """
    operands = (x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    y: Tensor
    y, _ = call(torch.ops.tensorlrf.lowrank_swiglu, *operands, keep, differentiated=keep)
    return y


def _check(
    x: Tensor,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
) -> tuple[Projection, Projection]:
    """The two projections, once the operands fit together."""
    check_operands(
        x=(x, "...n"),
        gate_right=(gate_right, "gn"),
        gate_left=(gate_left, "mg"),
        up_right=(up_right, "un"),
        up_left=(up_left, "mu"),
        gate_bias=(gate_bias, "m"),
        up_bias=(up_bias, "m"),
    )
    return Projection(gate_right, gate_left, gate_bias), Projection(up_right, up_left, up_bias)


_checked = once(_check)


# ---- forward ------------------------------------------------------------------------------------


def _forward_reference(
    x: Tensor,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    gate, up = _check(x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias)
    t = reference.shrink(x, gate, up)  # (..., g + u)
    a, b = reference.expand(t, gate, up)
    kept = _flat(t, gate.rank + up.rank).to(kept_dtype(x.dtype)) if keep else t.new_empty(0)
    return (F.silu(a) * b).contiguous(), kept


def _forward_cuda(
    x: Tensor,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    _checked(x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias)
    gate = Projection(gate_right, gate_left, gate_bias)
    up = Projection(up_right, up_left, up_bias)
    rows, rank = _flat(x, gate_right.shape[1]), max(gate.rank, up.rank)
    made = fused.forward(rows, gate, up, keep)
    if made is not None:
        y, t = made
        return y.view(*x.shape[:-1], gate_left.shape[0]), x.new_empty(0) if t is None else t
    if HAS_TRITON and rank > MOST_PREFILL_RANK and len(rows) > MOST_DECODE_ROWS:
        say_once(
            f"lowrank_swiglu: rank {rank} is above {MOST_PREFILL_RANK}, the largest that stays on "
            f"chip for more than {MOST_DECODE_ROWS} rows; library products run in its place"
        )
    operands = (x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias)
    return _forward_reference(*operands, keep)


def _forward_fake(
    x: Tensor,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    gate, up = _check(x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias)
    lead = x.shape[:-1]
    # Not lead.numel(), which takes a symbolic size for a constant.
    kept = (math.prod(lead), gate.rank + up.rank) if keep else (0,)
    t = x.new_empty(kept, dtype=kept_dtype(x.dtype) if keep else x.dtype)
    return x.new_empty((*lead, gate_left.shape[0])), t


def _flat(x: Tensor, columns: int) -> Tensor:
    """x (..., columns) as rows; a view wherever one can be had."""
    return x.reshape(x.shape[:-1].numel(), columns)


# ---- backward -----------------------------------------------------------------------------------

Gradients = tuple[Tensor, ...]  # one an operand


def _backward_reference(
    dh: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    needed: Sequence[bool],
) -> Gradients:
    gate, up = Projection(gate_right, gate_left, gate_bias), Projection(up_right, up_left, up_bias)
    rows, kept = _rows(x, t, gate, up)
    found = reference.lowrank_swiglu_backward(
        _flat(dh, gate_left.shape[0]), rows, kept.to(dh.dtype), gate, up, needed
    )
    return _shaped(found, dh, gate_right.shape[1])


def _backward_cuda(
    dh: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    needed: Sequence[bool],
) -> Gradients:
    gate, up = Projection(gate_right, gate_left, gate_bias), Projection(up_right, up_left, up_bias)
    rows, kept = _rows(x, t, gate, up)
    found = fused.backward(_flat(dh, gate_left.shape[0]), rows, kept, gate, up, needed)
    if found is None:
        factors = (gate_right, gate_left, up_right, up_left, gate_bias, up_bias)
        return _backward_reference(dh, x, kept, *factors, needed)
    return _shaped(found, dh, gate_right.shape[1])


def _backward_fake(
    dh: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    gate_right: Tensor,
    gate_left: Tensor,
    up_right: Tensor,
    up_left: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    needed: Sequence[bool],
) -> Gradients:
    factors = (gate_right.shape, gate_left.shape, up_right.shape, up_left.shape)
    bias = gate_left.shape[:1]
    shapes = ((*dh.shape[:-1], gate_right.shape[1]), *factors, bias, bias)
    made = (dh.new_empty(size if need else (0,)) for size, need in zip(shapes, needed, strict=True))
    return tuple(made)


def _rows(
    x: Tensor | None, t: Tensor | None, gate: Projection, up: Projection
) -> tuple[Tensor | None, Tensor]:
    """x and t as rows; t is made from x where it was not kept."""
    x = None if x is None else _flat(x, gate.right.shape[1])
    if t is None:
        if x is None:
            raise ValueError("t is None, and so is x; give one of them, t or what it is made from")
        t = reference.shrink(x, gate, up).to(kept_dtype(x.dtype))
    return x, t


def _shaped(found: Sequence[Tensor | None], dh: Tensor, columns: int) -> Gradients:
    """Gradients of rows in the shapes of the operands; nothing stands for what was not needed."""
    dx, *others = found
    if dx is not None:
        dx = dx.view(*dh.shape[:-1], columns)
    made = (dx, *others)
    return tuple(dh.new_empty(0) if g is None else g.contiguous() for g in made)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias, kept = inputs
    _, t = output
    ctx.mark_non_differentiable(t)
    ctx.set_materialize_grads(False)
    needs_right = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
    ctx.save_for_backward(
        # Without a t that was kept it is made anew from x.
        x if needs_right or not kept else None,
        t if kept else None,
        *(gate_right, gate_left, up_right, up_left, gate_bias, up_bias),
    )


def _backward(ctx: Any, dh: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dh is None:
        return (None,) * 8
    needed = list(ctx.needs_input_grad[:7])
    found = torch.ops.tensorlrf.lowrank_swiglu_backward(dh, *ctx.saved_tensors, needed)
    gradients = (g if need else None for g, need in zip(found, needed, strict=True))
    return (*gradients, None)


_FACTORS = (
    "Tensor gate_right, Tensor gate_left, Tensor up_right, Tensor up_left, "
    "Tensor? gate_bias, Tensor? up_bias"
)
define(
    f"lowrank_swiglu(Tensor x, {_FACTORS}, bool keep) -> (Tensor, Tensor)",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
    autocast=True,
)
define(
    f"lowrank_swiglu_backward(Tensor dh, Tensor? x, Tensor? t, {_FACTORS}, bool[7] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_reference,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
differentiate("lowrank_swiglu", _backward, _setup_context)
refuse_gradients("lowrank_swiglu_backward", "lowrank_swiglu")
