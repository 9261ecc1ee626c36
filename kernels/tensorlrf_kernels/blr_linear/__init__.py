"""Linear layers whose weight is a matrix of blocks: low rank, hierarchical, Monarch and BLAST.

Every weight is a right and a left side of panels with an intermediate between them, so that all
formats run in the same two grouped kernels, `shrink` and `expand`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._activation import activate, activate_backward, check_activation
from tensorlrf_kernels._check import check_operands
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.blr_linear import fused, reference
from tensorlrf_kernels.blr_linear.calls import Panels
from tensorlrf_kernels.blr_linear.forms import (
    Form,
    blast_form,
    monarch_form,
    tiling_of,
    words,
)

__all__ = ["blast_linear", "blr_linear", "monarch_linear", "words"]


def blr_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    dense: Tensor,
    blocks: str | Iterable[Sequence[int | None]],
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x W^T + bias)` for blocks of unequal rank that tile W (m, n).

    On a grid or as a tree, in two launches on an NVIDIA GPU, or in one for at most 128 rows.
    Differentiable once, in all tensors; every sum of the gradients is made in a fixed order. Blocks
    are checked the first time that they are met, and only the sizes of tensors after that.

    Parameters
    ----------
    x : Tensor of shape (..., n)
        May have any strides.
    left : Tensor of shape (sum of rows_b r_b,)
        The left panels, each (r_b, rows_b), by rows of blocks.
    right : Tensor of shape (sum of r_b columns_b,)
        The right panels, each (r_b, columns_b), by columns of blocks: ascending (column, columns,
        row, rows). Panels that are not contiguous are copied.
    dense : Tensor of shape (sum of rows_b columns_b,)
        The dense blocks, by rows of blocks.
    blocks : iterable of (row, column, rows, columns, rank), or str
        Ascending (row, rows, column, columns), the rank None for a dense block; or `words` of them,
        which is faster.
    shape : (m, n)
    bias : Tensor of shape (m,), optional
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (..., m)
        Contiguous.

    Raises
    ------
    ValueError
        Where shapes, dtypes, devices, blocks or the activation do not fit together.

    Notes
    -----
    Sums are made in float32, and the intermediate is rounded to the dtype once, or kept in float32
    for float16; float32 operands are multiplied in TF32 where torch's own switch allows it.

    Library products, one a strip of blocks, run in its place on a CPU, in float64, where a side of
    W is below 16 or tiles would be mostly mask, and where the kernel does not compile.

    References
    ----------
    Amestoy et al. 2015; Hackbusch 1999.

    Examples
    --------
    >>> from tensorlrf_kernels.blr_linear import blr_linear
    >>> x, left, right = torch.ones(3, 8), torch.ones(4), torch.ones(4)
    >>> blocks = [(0, 0, 4, 4, None), (0, 4, 4, 4, 1)]
    >>> blr_linear(x, left, right, torch.eye(4).flatten(), blocks, (4, 8))[0]
    tensor([5., 5., 5., 5.])
    """
    text = blocks if isinstance(blocks, str) else words(blocks, shape)
    return _call(x, left, right, dense, bias, f"blr {text}", activation)


def monarch_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x W^T + bias)` for a Monarch matrix W, in two launches on an NVIDIA GPU.

    `W[(s, q), (k, p)]` is the sum over r of `left[q, s, k, r] right[k, q, r, p]`: row s Q + q,
    column k P + p. The rest is as `blr_linear` has it.

    Parameters
    ----------
    x : Tensor of shape (..., n)
    left : Tensor of shape (Q, S, K, r)
    right : Tensor of shape (K, Q, r, P)
    shape : (m, n)
        S = ceil(m / Q), P = ceil(n / K): what lies beyond is padding.
    bias : Tensor of shape (m,), optional
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (..., m)
        Contiguous.

    Raises
    ------
    ValueError
        As `blr_linear`.

    References
    ----------
    Dao et al. 2022.

    Examples
    --------
    >>> from tensorlrf_kernels.blr_linear import monarch_linear
    >>> f = tensorlrf.monarch(torch.rand(6, 8), 1, blocks=2)
    >>> x = torch.rand(3, 8)
    >>> y = monarch_linear(x, f.left, f.right, f.shape)
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(y, x @ f.to_dense().T, atol=1e-5)
    True
    """
    m, n = map(int, shape)  # a text of symbols cannot be traced
    return _call(x, left, right, None, bias, f"monarch {m} {n}", activation)


def blast_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    scales: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(x W^T + bias)` for W of block (i, j) `left[i] diag(scales[i, j]) right[j]`.

    In three launches on an NVIDIA GPU. The intermediate is rounded to the dtype twice, before the
    scales and behind them. The rest is as `blr_linear` has it.

    Parameters
    ----------
    x : Tensor of shape (..., n)
    left : Tensor of shape (p, mb, r)
    right : Tensor of shape (q, r, nb)
    scales : Tensor of shape (p, q, r)
    shape : (m, n)
        mb = ceil(m / p), nb = ceil(n / q): what lies beyond is padding.
    bias : Tensor of shape (m,), optional
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (..., m)
        Contiguous.

    Raises
    ------
    ValueError
        As `blr_linear`.

    References
    ----------
    Lee et al. 2024, "BLAST", eq. 2.

    Examples
    --------
    >>> from tensorlrf_kernels.blr_linear import blast_linear
    >>> left, right, scales = torch.ones(2, 3, 1), torch.ones(4, 1, 5), torch.ones(2, 4, 1)
    >>> blast_linear(torch.ones(1, 20), left, right, scales, (6, 20))
    tensor([[20., 20., 20., 20., 20., 20.]])
    """
    m, n = map(int, shape)
    return _call(x, left, right, scales, bias, f"blast {m} {n}", activation)


def _call(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    bias: Tensor | None,
    form: str,
    activation: str | None,
) -> Tensor:
    given = (x, left, right, third, bias)
    differentiated = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in given
    )
    op = torch.ops.tensorlrf.blr_linear
    y: Tensor = call(op, *given, form, activation, differentiated=differentiated)
    return y


def _check(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    bias: Tensor | None,
    form: str,
    activation: str | None,
) -> tuple[int, int]:
    """The shape of the weight."""
    name, rest = form.split(" ", 1)
    letters = {
        "blr": ("l", "r", "d"),
        "monarch": ("qskr", "kqrp", ""),
        "blast": ("imr", "jrn", "ijr"),
    }[name]
    third_name = "scales" if name == "blast" else "dense"
    named = {"x": (x, "...c"), "left": (left, letters[0]), "right": (right, letters[1])}
    check_operands(**named, **{third_name: (third, letters[2])}, bias=(bias, "o"))
    check_activation(activation)
    if name == "blr":
        tiling = tiling_of(rest)
        m, n = tiling.shape
        for of, tensor in (("left", left), ("right", right), ("dense", third)):
            if tensor is None or tensor.shape[0] != tiling.sizes[of]:
                found = None if tensor is None else tuple(tensor.shape)
                raise ValueError(f"{of} has shape {found}; blocks need ({tiling.sizes[of]},)")
    else:
        m, n = map(int, rest.split(" "))
        last = 3 if name == "monarch" else 2
        for of, size, panel, each in (("left", m, left, 1), ("right", n, right, last)):
            count = panel.shape[0]
            if panel.shape[each] != -(-size // count):
                raise ValueError(
                    f"{of} has shape {tuple(panel.shape)}; for shape=({m}, {n}) its {count} blocks "
                    f"need dimension {each} to be {-(-size // count)}"
                )
    if x.shape[-1] != n:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be (..., {n}) for shape=({m}, {n})"
        )
    if bias is not None and bias.shape[0] != m:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({m},)")
    return m, n


def _form(form: str, left: Tensor, right: Tensor) -> Form:
    name, rest = form.split(" ", 1)
    if name == "blr":
        return tiling_of(rest).form
    m, n = map(int, rest.split(" "))
    make = monarch_form if name == "monarch" else blast_form
    return make(tuple(left.shape), tuple(right.shape), (m, n))


def _panels(left: Tensor, right: Tensor, third: Tensor | None) -> Panels:
    made = [t.contiguous() for t in (left, right, left if third is None else third)]
    return Panels(*made)


# ---- forward ------------------------------------------------------------------------------------


def _forward_reference(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    bias: Tensor | None,
    form: str,
    activation: str | None,
) -> Tensor:
    shape = _check(x, left, right, third, bias, form, activation)
    z, _ = _linear(form, x, left, right, third, shape)
    return activate(z if bias is None else z + bias, activation).contiguous()


def _linear(
    form: str,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    shape: tuple[int, int],
) -> tuple[Tensor, Any]:
    """x W^T by library products, and what the gradients need of the way."""
    if third is None:
        return reference.monarch(x, left, right, shape)
    if form.startswith("blr "):
        return reference.tiled(tiling_of(form[4:]), x, left, right, third)
    z, *inner = reference.blast(x, left, right, third, shape)
    return z, tuple(inner)


def _forward_cuda(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    bias: Tensor | None,
    form: str,
    activation: str | None,
) -> Tensor:
    m, n = _check(x, left, right, third, bias, form, activation)
    rows = x.reshape(x.shape[:-1].numel(), n)
    shift = None if bias is None else bias.contiguous()
    made = fused.forward(
        _form(form, left, right), rows, _panels(left, right, third), shift, activation
    )
    if made is None:
        return _forward_reference(x, left, right, third, bias, form, activation)
    return made.view(*x.shape[:-1], m)


def _forward_fake(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    bias: Tensor | None,
    form: str,
    activation: str | None,
) -> Tensor:
    m, _ = _check(x, left, right, third, bias, form, activation)
    return x.new_empty((*x.shape[:-1], m))


# ---- backward -----------------------------------------------------------------------------------

Gradients = tuple[Tensor, ...]  # in x, left, right, third and bias


def _backward_reference(
    dy: Tensor,
    x: Tensor | None,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    bias: Tensor | None,
    form: str,
    activation: str | None,
    needed: Sequence[bool],
    columns: int,
) -> Gradients:
    shape = dy.shape[-1], columns
    dz = dy.reshape(dy.shape[:-1].numel(), shape[0])
    rows = None if x is None else x.reshape(len(dz), columns)
    inner = None
    if rows is not None and (activation is not None or needed[1] or needed[3]):
        z, inner = _linear(form, rows, left, right, third, shape)
        if activation is not None:
            dz = activate_backward(dz, z if bias is None else z + bias, activation)
    if third is None:
        found = reference.monarch_backward(dz, rows, inner, left, right, needed[:3])
        found = (*found, None)
    elif form.startswith("blr "):
        panels = (left, right, third)
        tiling = tiling_of(form[4:])
        found = reference.tiled_backward(tiling, dz, rows, inner, *panels, needed[:4])
    else:
        found = reference.blast_backward(dz, rows, inner, left, right, third, needed[:4])
    dx = found[0]
    found = (None if dx is None else dx[:, :columns], *found[1:], dz.sum(0) if needed[4] else None)
    return _shaped(found, dy, columns)


def _backward_cuda(
    dy: Tensor,
    x: Tensor | None,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    bias: Tensor | None,
    form: str,
    activation: str | None,
    needed: Sequence[bool],
    columns: int,
) -> Gradients:
    m = dy.shape[-1]
    rows = dy.shape[:-1].numel()
    found = fused.backward(
        _form(form, left, right),
        dy.reshape(rows, m),
        None if x is None else x.reshape(rows, columns),
        _panels(left, right, third),
        None if bias is None else bias.contiguous(),
        activation,
        needed,
    )
    if found is None:
        return _backward_reference(
            dy, x, left, right, third, bias, form, activation, needed, columns
        )
    return _shaped(found, dy, columns)


def _backward_fake(
    dy: Tensor,
    x: Tensor | None,
    left: Tensor,
    right: Tensor,
    third: Tensor | None,
    bias: Tensor | None,
    form: str,
    activation: str | None,
    needed: Sequence[bool],
    columns: int,
) -> Gradients:
    of_third = (0,) if third is None else third.shape
    shapes = ((*dy.shape[:-1], columns), left.shape, right.shape, of_third, dy.shape[-1:])
    made = (dy.new_empty(size if need else (0,)) for size, need in zip(shapes, needed, strict=True))
    return tuple(made)


def _shaped(found: Sequence[Tensor | None], dy: Tensor, columns: int) -> Gradients:
    """Gradients of rows in the shapes of the operands; nothing stands for what was not needed."""
    dx, *others = found
    dx = None if dx is None else dx.reshape(*dy.shape[:-1], columns)
    return tuple(dy.new_empty(0) if g is None else g.contiguous() for g in (dx, *others))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, left, right, third, bias, ctx.form, ctx.activation = inputs
    ctx.set_materialize_grads(False)
    ctx.columns = x.shape[-1]
    active = ctx.activation is not None
    keeps_x = active or any(ctx.needs_input_grad[1:4])
    ctx.save_for_backward(x if keeps_x else None, left, right, third, bias if active else None)


def _backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    needed = list(ctx.needs_input_grad[:5])
    found = torch.ops.tensorlrf.blr_linear_backward(
        dy, *ctx.saved_tensors, ctx.form, ctx.activation, needed, ctx.columns
    )
    gradients = (g if need else None for g, need in zip(found, needed, strict=True))
    return (*gradients, None, None)


define(
    "blr_linear(Tensor x, Tensor left, Tensor right, Tensor? third, Tensor? bias, str form, "
    "str? activation) -> Tensor",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
    autocast=True,
)
define(
    "blr_linear_backward(Tensor dy, Tensor? x, Tensor left, Tensor right, Tensor? third, "
    "Tensor? bias, str form, str? activation, bool[] needed, SymInt columns) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_reference,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
differentiate("blr_linear", _backward, _setup_context)
refuse_gradients("blr_linear_backward", "blr_linear")
