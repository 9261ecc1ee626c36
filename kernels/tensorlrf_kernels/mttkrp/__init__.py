"""Matricised tensor times Khatri-Rao product: the op, and how it is dispatched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._library import call, define, differentiate, library, refuse_gradients
from tensorlrf_kernels.chips import chip_of, tf32_allowed
from tensorlrf_kernels.launches import Problem, supports
from tensorlrf_kernels.mttkrp import fused, launch, reference
from tensorlrf_kernels.mttkrp.groups import groups_of

__all__ = ["contract_modes", "kernel_wins", "mttkrp"]


def mttkrp(tensor: Tensor, factors: Sequence[Tensor], mode: int) -> Tensor:
    """The unfolding of a mode times the Khatri-Rao product of the other modes' factors.

    Without that product in memory on an NVIDIA GPU. Numerics, strides, gradients and errors are
    those of `contract_modes`.

    Parameters
    ----------
    tensor : Tensor of shape (n_0, ..., n_d), d >= 1
    factors : sequence of Tensor
        One a mode, (n_k, c); that of `mode` is not read, and may be anything.
    mode : int
        Counted from the end where it is negative.

    Returns
    -------
    Tensor of shape (n_mode, c)
        Entry [i, r] is the sum over all other indices of the tensor's entry times the product of
        the factors' entries in column r.

    Raises
    ------
    ValueError
        As `contract_modes`, and where `mode` or the number of factors does not fit.

    References
    ----------
    Kolda & Bader 2009, section 3.4.

    Examples
    --------
    >>> from tensorlrf_kernels.mttkrp import mttkrp
    >>> factors = [torch.ones(n, 2) for n in (3, 4, 5)]
    >>> mttkrp(torch.ones(3, 4, 5), factors, 0)[0]
    tensor([20., 20.])
    """
    order = tensor.ndim
    if order < 2:
        raise ValueError(f"tensor has shape {tuple(tensor.shape)}; it must have two modes or more")
    if len(factors) != order:
        raise ValueError(f"{len(factors)} factors were given for {order} modes; give one a mode")
    if not -order <= mode < order:
        raise ValueError(f"mode={mode} is out of range; it must be from {-order} to {order - 1}")
    modes = [k for k in range(order) if k != mode % order]
    return contract_modes(tensor, [factors[k] for k in modes], modes)


def contract_modes(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    """Contract some modes of a tensor with their factors, column by column.

    With one mode left this is `mttkrp`; with more, what a dimension tree has at its nodes.
    Differentiable once, in the tensor and in the factors. Under autocast nothing is cast.

    Parameters
    ----------
    tensor : Tensor of shape (n_0, ..., n_d)
    factors : sequence of Tensor
        (n, c) each, for modes[j] its factors[j]; of any strides.
    modes : sequence of int
        Different ones, one at least, not negative.

    Returns
    -------
    Tensor of shape (m, c)
        m is the product of the sizes of the modes that are left, in their order: the sum over the
        indices of `modes` of the tensor's entry times the factors' entries in column r.

    Raises
    ------
    ValueError
        Where shapes, dtypes, devices or modes do not fit together.

    Notes
    -----
    On a GPU float32 and float64 are served by a kernel, with the Khatri-Rao product of all factors
    never in memory, at most a small one of some of four modes or more. No copy is made of a tensor
    that is a permutation of a contiguous one. float32 is multiplied as three products of TF32, near
    full accuracy (a product is off by 12 units roundoff at most; where there is an infinity it may
    be NaN), or as one where torch's own switch allows it. Sums are made in the tensor's dtype, in a
    fixed order. Other dtypes, and other devices, take library products with Khatri-Rao products of
    bounded size.

    References
    ----------
    Phan, Tichavsky, Cichocki 2013.

    Examples
    --------
    >>> from tensorlrf_kernels.mttkrp import contract_modes
    >>> factors = [torch.ones(4, 2), torch.ones(5, 2)]
    >>> contract_modes(torch.ones(3, 4, 5, 6), factors, (1, 2)).shape
    torch.Size([18, 2])
    """
    given, which = list(factors), list(modes)
    differentiated = torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in (tensor, *given)
    )
    op = torch.ops.tensorlrf.mttkrp
    made: Tensor = call(op, tensor, given, which, differentiated=differentiated)
    return made


def kernel_wins(tensor: Tensor, modes: Sequence[int], columns: int) -> bool:
    """Whether the kernel should be faster here than a library product.

    The library product has the Khatri-Rao product of all factors in memory; a model of both decides
    (`launch.kernel_wins`).

    Parameters
    ----------
    tensor : Tensor
    modes : sequence of int
        Those that would be contracted.
    columns : int
        Of the factors, c.

    Returns
    -------
    bool
        False for a tensor that is not on a GPU with kernels, for dtypes that they do not serve, and
        for strides that would take a copy.

    Examples
    --------
    >>> from tensorlrf_kernels.mttkrp import kernel_wins
    >>> kernel_wins(torch.ones(3, 4, 5), (0, 1), 2)
    False
    """
    if tensor.device.type != "cuda" or not supports(chip_of(tensor.device)):
        return False
    tf32 = tensor.dtype is torch.float32 and tf32_allowed()
    shape = (tuple(tensor.shape), tensor.stride(), tuple(modes), columns)
    return model_says(*shape, tensor.dtype, tf32, tensor.device)


@lru_cache(maxsize=4096)
def model_says(
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    modes: tuple[int, ...],
    columns: int,
    dtype: torch.dtype,
    tf32: bool,
    device: torch.device,
) -> bool:
    """The same from sizes and strides alone; devices that are no GPU are taken for an H200."""
    groups = groups_of(sizes, strides, modes)
    if groups is None:
        return False
    inp = math.prod(sizes[k] for k in modes)
    rows = groups.p.size * groups.q.size
    problem = Problem(rows, groups.inner, inp, columns, dtype, tf32)
    return launch.kernel_wins(problem, chip_of(device), inp if len(modes) > 1 else 0)


# ---- forward ------------------------------------------------------------------------------------


def _check(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"tensor has dtype {tensor.dtype}; it must be a floating one")
    if not modes or len(set(modes)) != len(modes) or not set(modes) <= set(range(tensor.ndim)):
        raise ValueError(
            f"modes={list(modes)} must be one or more different numbers below {tensor.ndim}"
        )
    if len(factors) != len(modes):
        raise ValueError(
            f"{len(factors)} factors were given for modes={list(modes)}; give one each"
        )
    for mode, factor in zip(modes, factors, strict=True):
        name, size = f"the factor of mode {mode}", tensor.shape[mode]
        columns = factors[0].shape[1] if factors[0].ndim == 2 else "c"
        if factor.ndim != 2 or factor.shape[0] != size or factor.shape[1] != columns:
            raise ValueError(
                f"{name} has shape {tuple(factor.shape)}; it must be ({size}, {columns})"
            )
        if factor.dtype != tensor.dtype:
            raise ValueError(
                f"{name} has dtype {factor.dtype}, tensor {tensor.dtype}; cast one with .to()"
            )
        if factor.device != tensor.device:
            raise ValueError(
                f"{name} is on {factor.device}, tensor on {tensor.device}; move one with .to()"
            )


def _forward_reference(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    _check(tensor, factors, modes)
    return reference.contract_modes(tensor, factors, modes).contiguous()


def _forward_cuda(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    _check(tensor, factors, modes)
    made = fused.forward(tensor, factors, modes)
    return _forward_reference(tensor, factors, modes) if made is None else made


def _forward_fake(tensor: Tensor, factors: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    _check(tensor, factors, modes)
    return tensor.new_empty(_rows(tensor, modes), factors[0].shape[1])


def _rows(tensor: Tensor, modes: Sequence[int]) -> int:
    return math.prod(n for k, n in enumerate(tensor.shape) if k not in modes)


# ---- backward -----------------------------------------------------------------------------------


def _backward_any(
    dy: Tensor,
    tensor: Tensor,
    factors: Sequence[Tensor],
    modes: Sequence[int],
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients in the tensor and each factor, those that are `needed`. A factor's is the same
    contraction, over the free modes with dy in place of a factor and over the other modes."""
    need_tensor, *need_factors = needed
    dtensor = dy.new_empty(0)
    if need_tensor:
        dtensor = reference.tensor_gradient(dy, factors, modes, tensor.shape)
    free = [k for k in range(tensor.ndim) if k not in modes]
    sizes = [tensor.shape[k] for k in modes]
    turned = tensor.permute(*free, *modes).reshape(_rows(tensor, modes), *sizes)
    found = [dtensor]
    for j, need in enumerate(need_factors):
        others = [k for k in range(len(modes)) if k != j]
        found.append(
            torch.ops.tensorlrf.mttkrp(
                turned, [dy, *(factors[k] for k in others)], [0, *(k + 1 for k in others)]
            )
            if need
            else dy.new_empty(0)
        )
    return found


def _backward_fake(
    dy: Tensor,
    tensor: Tensor,
    factors: Sequence[Tensor],
    modes: Sequence[int],
    needed: Sequence[bool],
) -> list[Tensor]:
    shapes = [tensor.shape, *(f.shape for f in factors)]
    return [dy.new_empty(s if need else (0,)) for s, need in zip(shapes, needed, strict=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensor, factors, ctx.modes = inputs
    ctx.save_for_backward(tensor, *factors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    tensor, *factors = ctx.saved_tensors
    need_tensor, need_factors, _ = ctx.needs_input_grad
    needed = [need_tensor, *need_factors]
    found = torch.ops.tensorlrf.mttkrp_backward(dy, tensor, factors, ctx.modes, needed)
    dtensor, *rest = (g if need else None for g, need in zip(found, needed, strict=True))
    return dtensor, rest, None


define(
    "mttkrp(Tensor tensor, Tensor[] factors, int[] modes) -> Tensor",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
)
define(
    "mttkrp_backward(Tensor dy, Tensor tensor, Tensor[] factors, int[] modes, bool[] needed) "
    "-> Tensor[]",
    cpu=_backward_any,
    cuda=_backward_any,
    fake=_backward_fake,
)
differentiate("mttkrp", _backward, _setup_context)
refuse_gradients("mttkrp_backward", "mttkrp")


def _without_autocast(name: str, device: str) -> None:
    """Have the op's own library products stay in the dtype of its operands, autocast or not."""
    key = f"Autocast{device}"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def rule(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return getattr(torch.ops.tensorlrf, name)(*args)

    library.impl(name, rule, key)


for _name in ("mttkrp", "mttkrp_backward"):
    for _device in ("CPU", "CUDA"):
        _without_autocast(_name, _device)
