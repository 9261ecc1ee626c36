"""Rows of a table that is a product of two matrices: the op, and how it is dispatched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._check import check_operands
from tensorlrf_kernels._library import _cast as cast
from tensorlrf_kernels._library import call, define, differentiate, library, refuse_gradients
from tensorlrf_kernels.lowrank_embedding import fused, reference

__all__ = ["lowrank_embedding"]


def lowrank_embedding(
    indices: Tensor, left: Tensor, right: Tensor, padding_idx: int | None = None
) -> Tensor:
    """Rows `(left @ right)[indices]`, gathered and multiplied in one kernel on an NVIDIA GPU.

    Differentiable once, in both factors; all sums of the gradients have a fixed order.

    Parameters
    ----------
    indices : Tensor of shape (...)
        Of int32 or int64, each from 0 up to n.
    left : Tensor of shape (n, r)
        May be float32 beside a `right` of half precision, to which its rows are then rounded: so it
        is under autocast, where a cast of the whole table would cost more than the lookup.
    right : Tensor of shape (r, d)
    padding_idx : int, optional
        What is looked up at this index has no gradient, as in torch.nn.Embedding; below zero it
        counts from the end.

    Returns
    -------
    Tensor of shape (..., d)
        Contiguous, in the dtype of right.

    Raises
    ------
    ValueError
        Where shapes, dtypes, devices or padding_idx do not fit together.
    IndexError
        For an index out of range on a CPU. On a GPU it ends the kernel by a trap, which the next
        synchronising call reports as a launch failure, and like torch's device assert leaves no
        CUDA context to go on with.

    Notes
    -----
    The factors may have any strides. Sums are made in float32; float32 operands are multiplied in
    TF32 where torch's own switch allows it.

    Torch's lookup and a library product run in its place on a CPU, in float64, and where the kernel
    does not compile, which a RuntimeWarning says once.

    Examples
    --------
    >>> from tensorlrf_kernels.lowrank_embedding import lowrank_embedding
    >>> left, right = torch.rand(100, 4), torch.rand(4, 16)
    >>> lowrank_embedding(torch.tensor([3, 7]), left, right).shape
    torch.Size([2, 16])
    """
    padding = known_padding(padding_idx, len(left))
    differentiated = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    op = torch.ops.tensorlrf.lowrank_embedding
    y: Tensor = call(op, indices, left, right, padding, differentiated=differentiated)
    return y


def known_padding(padding_idx: int | None, rows: int) -> int:
    """`padding_idx` counted from the start, -1 for none. Raises ValueError where it is no row."""
    if padding_idx is None:
        return -1
    if not -rows <= padding_idx < rows:
        raise ValueError(
            f"padding_idx={padding_idx} is no row of a table of {rows}; it must be None or from "
            f"{-rows} to {rows - 1}"
        )
    return padding_idx % rows


def check_indices(indices: Tensor, like: Tensor, name: str) -> None:
    """int32 or int64, on the device of `like`, which is called `name`; values are not looked at."""
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"indices has dtype {indices.dtype}; it must be torch.int32 or torch.int64"
        )
    if indices.device != like.device:
        raise ValueError(
            f"indices is on {indices.device}, {name} on {like.device}; move one with .to()"
        )


def _check(indices: Tensor, left: Tensor, right: Tensor) -> None:
    check_indices(indices, left, "left")
    if left.dtype is not torch.float32 or right.dtype not in (torch.float16, torch.bfloat16):
        check_operands(left=(left, "nr"), right=(right, "rd"))
        return
    check_operands(left=(left, "nr"))
    check_operands(right=(right, "rd"))
    if left.shape[1] != right.shape[0] or left.device != right.device:
        raise ValueError(
            f"right is {tuple(right.shape)} on {right.device}; it must be (r, d) with r = "
            f"{left.shape[1]}, on {left.device}, as left has it"
        )


def _none(padding: int) -> int | None:
    return None if padding < 0 else padding


# ---- forward ------------------------------------------------------------------------------------


def _forward_reference(indices: Tensor, left: Tensor, right: Tensor, padding: int) -> Tensor:
    _check(indices, left, right)
    return reference.lowrank_embedding(indices, left, right)


def _forward_cuda(indices: Tensor, left: Tensor, right: Tensor, padding: int) -> Tensor:
    _check(indices, left, right)
    y = fused.forward(indices.reshape(-1).contiguous(), left, right)
    if y is None:
        return reference.lowrank_embedding(indices, left, right)
    return y.view(*indices.shape, right.shape[1])


def _forward_fake(indices: Tensor, left: Tensor, right: Tensor, padding: int) -> Tensor:
    _check(indices, left, right)
    return right.new_empty((*indices.shape, right.shape[1]))


# ---- backward -----------------------------------------------------------------------------------


def _backward_with(
    run: Any,
    dy: Tensor,
    indices: Tensor,
    left: Tensor,
    right: Tensor,
    padding: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    flat = dy.reshape(indices.numel(), right.shape[1])
    dleft, dright = run(flat, indices.reshape(-1), left, right, _none(padding), needed)
    nothing = dy.new_empty(0)
    return (
        nothing.to(left.dtype) if dleft is None else dleft,
        nothing if dright is None else dright.contiguous(),
    )


def _backward_reference(
    dy: Tensor, indices: Tensor, left: Tensor, right: Tensor, padding: int, needed: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    run = reference.lowrank_embedding_backward
    return _backward_with(run, dy, indices, left, right, padding, needed)


def _backward_cuda(
    dy: Tensor, indices: Tensor, left: Tensor, right: Tensor, padding: int, needed: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    return _backward_with(fused.backward, dy, indices, left, right, padding, needed)


def _backward_fake(
    dy: Tensor, indices: Tensor, left: Tensor, right: Tensor, padding: int, needed: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    need_left, need_right = needed
    return (
        left.new_empty(left.shape if need_left else (0,)),
        right.new_empty(right.shape if need_right else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, left, right, ctx.padding = inputs
    ctx.save_for_backward(indices, left, right)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[1:3])
    found = torch.ops.tensorlrf.lowrank_embedding_backward(
        dy, *ctx.saved_tensors, ctx.padding, needed
    )
    gradients = (g if need else None for g, need in zip(found, needed, strict=True))
    return (None, *gradients, None)


define(
    "lowrank_embedding(Tensor indices, Tensor left, Tensor right, int padding) -> Tensor",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
)
define(
    "lowrank_embedding_backward(Tensor dy, Tensor indices, Tensor left, Tensor right, "
    "int padding, bool[] needed) -> (Tensor, Tensor)",
    cpu=_backward_reference,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
differentiate("lowrank_embedding", _backward, _setup_context)
refuse_gradients("lowrank_embedding_backward", "lowrank_embedding")


# ---- autocast -----------------------------------------------------------------------------------


def _autocast_rule(device: str, key: str) -> Callable[..., Tensor]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def rule(indices: Tensor, left: Tensor, right: Tensor, padding: int) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        right = cast(right, device, dtype)
        if left.dtype is not torch.float32:
            left = cast(left, device, dtype)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            y: Tensor = torch.ops.tensorlrf.lowrank_embedding(indices, left, right, padding)
            return y

    return rule


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    library.impl("lowrank_embedding", _autocast_rule(_device, _key), _key)
