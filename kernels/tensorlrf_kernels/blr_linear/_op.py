"""The op behind `blr_linear`, `monarch_linear` and `blast_linear`: which of them a text tells, the
form, as `words` and a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._activation import activate, activate_backward, check_activation
from tensorlrf_kernels._check import check_operands
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.blr_linear import fused, reference
from tensorlrf_kernels.blr_linear.calls import Panels
from tensorlrf_kernels.blr_linear.forms import Form, blast_form, monarch_form, tiling_of


def linear(
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


def form_of(form: str, left: Tensor, right: Tensor) -> Form:
    name, rest = form.split(" ", 1)
    if name == "blr":
        return tiling_of(rest).form
    m, n = map(int, rest.split(" "))
    make = monarch_form if name == "monarch" else blast_form
    return make(tuple(left.shape), tuple(right.shape), (m, n))


def panels_of(left: Tensor, right: Tensor, third: Tensor | None) -> Panels:
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
    z, _ = _products(form, x, left, right, third, shape)
    return activate(z if bias is None else z + bias, activation).contiguous()


def _products(
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
        form_of(form, left, right), rows, panels_of(left, right, third), shift, activation
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
        z, inner = _products(form, rows, left, right, third, shape)
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
        form_of(form, left, right),
        dy.reshape(rows, m),
        None if x is None else x.reshape(rows, columns),
        panels_of(left, right, third),
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
