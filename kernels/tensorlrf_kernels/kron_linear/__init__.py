"""Linear layer whose weight is a sum of Kronecker products: the op, and how it is dispatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._activation import check_activation
from tensorlrf_kernels._check import check_operands, once
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.kron_linear import fused, reference

__all__ = ["kron_linear"]


def kron_linear(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x W^T + bias + residual)` for W a sum over s of `kron(a[s], b[s])`.

    In one kernel on an NVIDIA GPU. Differentiable once, in all five tensors; backward keeps x and
    the factors, and nothing of its own. All its sums have a fixed order.

    Parameters
    ----------
    x : Tensor of shape (..., n1 n2)
    a : Tensor of shape (s, m1, n1)
    b : Tensor of shape (s, m2, n2)
    bias : Tensor of shape (m1 m2,), optional
    residual : Tensor of shape (..., m1 m2), optional
        A further term of the sum.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (..., m1 m2)
        Contiguous: with a row of x as the matrix X (n1, n2), a row of the product is the matrix sum
        of `a[s] X b[s]^T`.

    Raises
    ------
    ValueError
        Where shapes, dtypes, devices or the activation do not fit together.

    Notes
    -----
    The operands may have any strides. Sums are made in float32; float32 operands are multiplied in
    TF32 where torch's own switch allows it. In float16 what lies between the two products may leave
    the dtype's range.

    Library products with all the terms side by side run in its place, in the cheaper of the two
    orders, on a CPU, in float64, for m1, n1, m2 or n2 below 16 or above 128, for more than 16
    terms, and where the kernel does not compile (said once, by a RuntimeWarning). There what lies
    between the products is stored, s times as large as x or y, and rounded to the operands' dtype.

    References
    ----------
    C. F. Van Loan & N. Pitsianis, Approximation with Kronecker products (1993).

    Examples
    --------
    >>> from tensorlrf_kernels.kron_linear import kron_linear
    >>> x, a, b = torch.rand(5, 12), torch.rand(2, 2, 3), torch.rand(2, 6, 4)
    >>> w = torch.kron(a[0], b[0]) + torch.kron(a[1], b[1])
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(kron_linear(x, a, b), x @ w.T, atol=1e-5)
    True
    """
    given = (x, a, b, bias, residual)
    differentiated = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in given
    )
    op = torch.ops.tensorlrf.kron_linear
    y: Tensor = call(op, *given, activation, differentiated=differentiated)
    return y


def _check(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> None:
    for name, factor, sizes in (("a", a, "m1, n1"), ("b", b, "m2, n2")):
        if factor.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(factor.shape)}; it must be (s, {sizes})")
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"b has {b.shape[0]} terms, a {a.shape[0]}; a term is one of both")
    out, inp = a.shape[1] * b.shape[1], a.shape[2] * b.shape[2]
    sizes = f"as a {tuple(a.shape)} and b {tuple(b.shape)} multiply to"
    for name, tensor, size in (("x", x, inp), ("bias", bias, out), ("residual", residual, out)):
        if tensor is not None and (tensor.ndim == 0 or tensor.shape[-1] != size):
            lead = "" if name == "bias" else "..., "
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be ({lead}{size}), {sizes}"
            )
    check_operands(
        x=(x, "...n"), a=(a, "sik"), b=(b, "sjl"), bias=(bias, "m"), residual=(residual, "...m")
    )
    check_activation(activation)


_checked = once(_check)


# ---- forward ------------------------------------------------------------------------------------


def _forward_reference(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> Tensor:
    _check(x, a, b, bias, residual, activation)
    return reference.kron_linear(x, a, b, bias, residual, activation).contiguous()


def _forward_cuda(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> Tensor:
    _checked(x, a, b, bias, residual, activation)
    rows = _flat(x)
    terms = None if residual is None else _flat(residual)
    shift = None if bias is None else bias.contiguous()
    y = fused.forward(rows, a, b, shift, terms, activation)
    if y is None:
        return _forward_reference(x, a, b, bias, residual, activation)
    return y.view(*x.shape[:-1], y.shape[-1])


def _forward_fake(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> Tensor:
    _check(x, a, b, bias, residual, activation)
    return x.new_empty((*x.shape[:-1], a.shape[1] * b.shape[1]))


def _flat(x: Tensor) -> Tensor:
    """x (..., columns) as rows; a view wherever one can be had."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


# ---- backward -----------------------------------------------------------------------------------

Gradients = tuple[Tensor, ...]  # one an operand


def _backward_reference(
    dy: Tensor,
    x: Tensor | None,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> Gradients:
    rows, terms = (None if t is None else _flat(t) for t in (x, residual))
    found = reference.kron_linear_backward(_flat(dy), rows, a, b, bias, terms, activation, needed)
    return _shaped(found, dy)


def _backward_cuda(
    dy: Tensor,
    x: Tensor | None,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> Gradients:
    rows, terms = (None if t is None else _flat(t) for t in (x, residual))
    shift = None if bias is None else bias.contiguous()
    found = fused.backward(_flat(dy), rows, a, b, shift, terms, activation, needed)
    if found is None:
        return _backward_reference(dy, x, a, b, bias, residual, activation, needed)
    return _shaped(found, dy)


def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> Gradients:
    inp = a.shape[2] * b.shape[2]
    shapes = ((*dy.shape[:-1], inp), a.shape, b.shape, dy.shape[-1:], dy.shape)
    made = (dy.new_empty(size if need else (0,)) for size, need in zip(shapes, needed, strict=True))
    return tuple(made)


def _shaped(found: Sequence[Tensor | None], dy: Tensor) -> Gradients:
    """Gradients of rows in the shapes of the operands; nothing stands for what was not needed."""
    dx, da, db, dbias, dresidual = found
    if dx is not None:
        dx = dx.view(*dy.shape[:-1], dx.shape[-1])
    if dresidual is not None:
        # An op returns tensors of its own, and dz may be dy.
        dresidual = dresidual.reshape(dy.shape)
        if dresidual.data_ptr() == dy.data_ptr():
            dresidual = dresidual.clone(memory_format=torch.contiguous_format)
    made = (dx, da, db, dbias, dresidual)
    return tuple(dy.new_empty(0) if g is None else g.contiguous() for g in made)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, a, b, bias, residual, ctx.activation = inputs
    ctx.set_materialize_grads(False)
    _, needs_a, needs_b = ctx.needs_input_grad[:3]
    active = ctx.activation is not None
    ctx.save_for_backward(
        x if needs_a or needs_b or active else None,
        a,
        b,
        bias if active else None,
        residual if active else None,
    )


def _backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    needed = list(ctx.needs_input_grad[:5])
    found = torch.ops.tensorlrf.kron_linear_backward(dy, *ctx.saved_tensors, ctx.activation, needed)
    gradients = (g if need else None for g, need in zip(found, needed, strict=True))
    return (*gradients, None)


define(
    "kron_linear(Tensor x, Tensor a, Tensor b, Tensor? bias, Tensor? residual, "
    "str? activation) -> Tensor",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
    autocast=True,
)
define(
    "kron_linear_backward(Tensor dy, Tensor? x, Tensor a, Tensor b, Tensor? bias, "
    "Tensor? residual, str? activation, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_reference,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
differentiate("kron_linear", _backward, _setup_context)
refuse_gradients("kron_linear_backward", "kron_linear")
