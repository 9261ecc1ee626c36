"""Linear layer whose weight is a TT-matrix: cut in the middle, or core by core."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._activation import check_activation
from tensorlrf_kernels._check import check_operands
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.kron_linear import kron_linear
from tensorlrf_kernels.launches import HAS_TRITON
from tensorlrf_kernels.tt_linear import reference
from tensorlrf_kernels.tt_linear.launch import cheaper_cut, served_cut

__all__ = ["tt_linear"]


def tt_linear(
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x @ W^T + bias + residual)` for the weight W of a TT-matrix.

    On an NVIDIA GPU as a Kronecker sum in one kernel. Differentiable once, in all tensors; for the
    gradient x and the merged cores are kept and nothing else, as for a dense layer.

    Parameters
    ----------
    x : Tensor of shape (..., n)
        n is the product of all n_k.
    cores : sequence of Tensor
        (r_k, m_k, n_k, r_{k+1}) each, r of one at both ends.
    bias : Tensor of shape (m,), optional
        m is the product of all m_k.
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
    Between two cores a TT-matrix is a Kronecker sum of as many terms as the rank there. Where that
    is 16 at most, and both halves have from 16 to 128 rows and columns, the cores of each are
    merged and the kernel of `kron_linear` runs; elsewhere library products, its own or one a core,
    whichever multiply less, what is between them rounded to the dtype.

    References
    ----------
    Novikov et al. 2015, eq. 3.

    Examples
    --------
    >>> from tensorlrf_kernels.tt_linear import tt_linear
    >>> f = tensorlrf.tt_matrix(torch.rand(12, 20), 3)
    >>> x = torch.rand(5, 20)
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(tt_linear(x, f.cores), x @ f.to_dense().T, atol=1e-4)
    True
    """
    cores = list(cores)
    _check(x, cores, bias, residual, activation)
    # Not x.shape[:-1].numel(), which takes a symbolic size for a constant.
    rows, sizes = math.prod(x.shape[:-1]), reference.sizes_of(cores)
    cut = None
    if x.device.type == "cuda" and HAS_TRITON:
        cut = served_cut(sizes, rows, _run_dtype(x))
    if cut is None:
        cut = cheaper_cut(sizes, rows, reference.work(sizes))
    if cut is not None:
        return kron_linear(x, *reference.halves(cores, cut), bias, residual, activation)
    given = (x, *cores, bias, residual)
    differentiated = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in given
    )
    op = torch.ops.tensorlrf.tt_linear
    y: Tensor
    y = call(op, x, cores, bias, residual, activation, differentiated=differentiated)
    return y


def _run_dtype(x: Tensor) -> torch.dtype:
    """In which the layer runs: that of autocast where it is on, as for products of torch's own."""
    if x.dtype is not torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _check(
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> None:
    if not cores:
        raise ValueError("cores=[] is empty; give one core at least")
    rank = rows = columns = 1
    for k, core in enumerate(cores):
        if core.ndim != 4 or core.shape[0] != rank:
            raise ValueError(
                f"cores[{k}] has shape {tuple(core.shape)}; it must be ({rank}, m, n, r'), with "
                "the rank that the core before it ends with"
            )
        rank, rows, columns = core.shape[3], rows * core.shape[1], columns * core.shape[2]
        if core.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"cores[{k}] has dtype {core.dtype}, x {x.dtype}; cast one with .to()")
        if core.device != x.device:
            raise ValueError(
                f"cores[{k}] is on {core.device}, x on {x.device}; move one with .to()"
            )
    if rank != 1:
        raise ValueError(
            f"cores[{len(cores) - 1}] has shape {tuple(cores[-1].shape)}; its last dimension must "
            "be 1, the rank at the end of a train"
        )
    for name, tensor, size, what in (
        ("x", x, columns, "the product of the cores' n"),
        ("bias", bias, rows, "the product of the cores' m"),
        ("residual", residual, rows, "the product of the cores' m"),
    ):
        if tensor is not None and (tensor.ndim == 0 or tensor.shape[-1] != size):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; its last dimension must be {size}, {what}"
            )
    check_activation(activation)


def _check_op(
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> None:
    _check(x, cores, bias, residual, activation)
    check_operands(x=(x, "...n"), bias=(bias, "m"), residual=(residual, "...m"))


# ---- core by core -------------------------------------------------------------------------------


def _forward(
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> Tensor:
    _check_op(x, cores, bias, residual, activation)
    y = reference.tt_linear(x, cores, bias, residual, activation).contiguous()
    # An op returns tensors of its own, and one core of ones may leave x as it is.
    return y.clone() if y.data_ptr() == x.data_ptr() else y


def _forward_fake(
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> Tensor:
    _check_op(x, cores, bias, residual, activation)
    rows = 1
    for core in cores:
        rows *= core.shape[1]
    return x.new_empty((*x.shape[:-1], rows))


Gradients = tuple[Tensor, list[Tensor], Tensor, Tensor]


def _backward_op(
    dy: Tensor,
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> Gradients:
    dx, dcores, dbias, dresidual = reference.tt_linear_backward(
        dy, x, cores, bias, residual, activation, needed
    )
    if dresidual is not None and dresidual.data_ptr() == dy.data_ptr():
        dresidual = dresidual.clone()

    def made(g: Tensor | None) -> Tensor:
        return dy.new_empty(0) if g is None else g.contiguous()

    own = [dy.new_empty(0) for _ in cores] if dcores is None else [made(g) for g in dcores]
    return made(dx), own, made(dbias), made(dresidual)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> Gradients:
    need_x, need_cores, need_bias, need_residual = needed
    return (
        dy.new_empty(x.shape if need_x else (0,)),
        [dy.new_empty(core.shape if need_cores else (0,)) for core in cores],
        dy.new_empty(dy.shape[-1:] if need_bias else (0,)),
        dy.new_empty(dy.shape if need_residual else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cores, bias, residual, ctx.activation = inputs
    ctx.n_cores = len(cores)
    ctx.set_materialize_grads(False)
    active = ctx.activation is not None
    ctx.save_for_backward(x, *cores, bias if active else None, residual if active else None)


def _backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    if dy is None:
        return None, [None] * ctx.n_cores, None, None, None
    x, *cores, bias, residual = ctx.saved_tensors
    need_x, need_cores, need_bias, need_residual, _ = ctx.needs_input_grad
    needed = [need_x, any(need_cores), need_bias, need_residual]
    dx, dcores, dbias, dresidual = torch.ops.tensorlrf.tt_linear_backward(
        dy, x, cores, bias, residual, ctx.activation, needed
    )
    return (
        dx if need_x else None,
        [g if need else None for g, need in zip(dcores, need_cores, strict=True)],
        dbias if need_bias else None,
        dresidual if need_residual else None,
        None,
    )


define(
    "tt_linear(Tensor x, Tensor[] cores, Tensor? bias, Tensor? residual, str? activation) "
    "-> Tensor",
    cpu=_forward,
    cuda=_forward,
    fake=_forward_fake,
    autocast=True,
)
define(
    "tt_linear_backward(Tensor dy, Tensor x, Tensor[] cores, Tensor? bias, Tensor? residual, "
    "str? activation, bool[] needed) -> (Tensor, Tensor[], Tensor, Tensor)",
    cpu=_backward_op,
    cuda=_backward_op,
    fake=_backward_fake,
)
differentiate("tt_linear", _backward, _setup_context)
refuse_gradients("tt_linear_backward", "tt_linear")
