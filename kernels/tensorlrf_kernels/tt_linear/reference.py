"""The plain torch meaning of `tt_linear`, its gradients included: one product a core.

The state between two products is (..., outer inner columns), and every product multiplies `inner`
by a matrix of one core; nothing is moved between one and the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate, activate_backward
from tensorlrf_kernels.tt_linear.launch import Size


class Step(NamedTuple):
    """One product for each row of x: `outer` times (out, inner) @ (inner, columns), by a core."""

    core: int
    outer: int
    inner: int
    out: int
    columns: int

    @property
    def multiply_adds(self) -> int:
        """Of one row."""
        return self.outer * self.inner * self.out * self.columns


def tt_linear(
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation(x W^T + bias + residual) for W = the TT-matrix of `cores` (r, m, n, r').

    x (..., prod n), bias (prod m,), residual (..., prod m); returns (..., prod m). Begins with the
    first core or with the last, whichever multiplies less.
    """
    t = x
    for step, weight in products(cores):
        t = apply(step, weight, t)
    return epilogue(t, bias, residual, activation)


def tt_linear_backward(
    dy: Tensor,
    x: Tensor,
    cores: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor] | None, Tensor | None, Tensor | None]:
    """Gradients in x, all cores, bias and residual, those that are `needed`, from dy (..., prod m).

    What is between the products is made anew, so that nothing but x is kept for it.
    """
    need_x, need_cores, need_bias, need_residual = needed
    chain = list(products(cores))
    states = [x.reshape(-1, x.shape[-1])]
    # The result itself is wanted by an activation alone.
    for step, weight in chain if activation is not None else chain[:-1]:
        states.append(apply(step, weight, states[-1]))
    dz = dy.reshape(-1, dy.shape[-1])
    if activation is not None:
        terms = None if residual is None else residual.reshape(dz.shape)
        dz = activate_backward(dz, epilogue(states.pop(), bias, terms, None), activation)
    found = [core.new_empty(0) for core in cores]
    dt = dz
    for step, weight in reversed(chain):
        t = states.pop()
        if need_cores:
            dweight = _weight_gradient(step, dt, t)
            found[step.core] = _as_core(dweight, cores, step, chain)
        if step is not chain[0][0] or need_x:
            dt = apply(_turned(step), weight.T, dt)
    return (
        dt.reshape(x.shape) if need_x else None,
        found if need_cores else None,
        dz.sum(0) if need_bias else None,
        dz.reshape(dy.shape) if need_residual else None,
    )


def epilogue(
    z: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None
) -> Tensor:
    """activation(z + bias + residual)."""
    if bias is not None:
        z = z + bias
    return activate(z if residual is None else z + residual, activation)


def apply(step: Step, weight: Tensor, t: Tensor) -> Tensor:
    """weight (out, inner) times every (inner, columns) of t; returns (..., outer out columns).

    Looks at the last dimension alone, so that it can be traced for any others.
    """
    if step.columns == 1:
        return F.linear(torch.unflatten(t, -1, (step.outer, step.inner)), weight).flatten(-2)
    t = torch.unflatten(t, -1, (step.outer, step.inner, step.columns))
    return torch.matmul(weight, t).flatten(-3)


def _weight_gradient(step: Step, dt: Tensor, t: Tensor) -> Tensor:
    """(out, inner), from the gradient behind the product and the state before it."""
    if step.columns == 1:
        return dt.reshape(-1, step.out).T @ t.reshape(-1, step.inner)
    dt = dt.reshape(-1, step.out, step.columns).transpose(0, 1).flatten(1)
    t = t.reshape(-1, step.inner, step.columns).transpose(0, 1).flatten(1)
    return dt @ t.T


def _turned(step: Step) -> Step:
    return step._replace(inner=step.out, out=step.inner)


# ---- the order of the products ------------------------------------------------------------------


def sizes_of(cores: Sequence[Tensor]) -> list[Size]:
    """(r, m, n, r') of every core."""
    return [(c.shape[0], c.shape[1], c.shape[2], c.shape[3]) for c in cores]


def steps(sizes: Sequence[Size]) -> list[Step]:
    """The products, beginning with the first core or with the last, whichever multiplies less."""
    first, last = _from_first(sizes), _from_last(sizes)
    return first if _work(first) <= _work(last) else last


def work(sizes: Sequence[Size]) -> int:
    """Multiply-adds of all products for one row of x."""
    return _work(steps(sizes))


def _work(chain: Sequence[Step]) -> int:
    return sum([step.multiply_adds for step in chain])


def products(cores: Sequence[Tensor]) -> Iterator[tuple[Step, Tensor]]:
    """Every product with its matrix, (out, inner)."""
    order = steps(sizes_of(cores))
    for step in order:
        r, m, n, after = cores[step.core].shape
        if order[0].core == 0:  # (m r', r n): the state is .. m, then r' n_next, then the rest
            yield step, cores[step.core].permute(1, 3, 0, 2).reshape(m * after, r * n)
        else:  # (r m, n r'): the state is the rest, then n_next r, then m ..
            yield step, cores[step.core].reshape(r * m, n * after)


def _as_core(
    dweight: Tensor, cores: Sequence[Tensor], step: Step, chain: Sequence[tuple[Step, Tensor]]
) -> Tensor:
    """The gradient of a matrix in the shape of its core."""
    r, m, n, after = cores[step.core].shape
    if chain[0][0].core == 0:
        return dweight.view(m, after, r, n).permute(2, 0, 3, 1).contiguous()
    return dweight.view(r, m, n, after)


def _from_first(sizes: Sequence[Size]) -> list[Step]:
    found, done, rest = [], 1, math.prod([n for _, _, n, _ in sizes])
    for k, (r, m, n, after) in enumerate(sizes):
        rest //= n
        found.append(Step(k, done, r * n, m * after, rest))
        done *= m
    return found


def _from_last(sizes: Sequence[Size]) -> list[Step]:
    found, done, rest = [], 1, math.prod([n for _, _, n, _ in sizes])
    for k, (r, m, n, after) in reversed(list(enumerate(sizes))):
        rest //= n
        found.append(Step(k, rest, n * after, r * m, done))
        done *= m
    return found


# ---- the halves ---------------------------------------------------------------------------------


def halves(cores: Sequence[Tensor], cut: int) -> tuple[Tensor, Tensor]:
    """a (R, m1, n1) and b (R, m2, n2), the merged cores before `cut` and behind it: the train is
    the sum over R of kron(a, b)."""
    first, second = merged(cores[:cut]), merged(cores[cut:])
    return first[0].permute(2, 0, 1), second[..., 0]


def merged(cores: Sequence[Tensor]) -> Tensor:
    """Neighbouring cores as one, (r, prod m, prod n, r')."""
    whole = cores[0]
    for core in cores[1:]:
        r, m, n, _ = whole.shape
        _, more_m, more_n, after = core.shape
        both = whole.flatten(0, 2) @ core.flatten(1)
        both = both.reshape(r, m, n, more_m, more_n, after).transpose(2, 3)
        whole = both.reshape(r, m * more_m, n * more_n, after)
    return whole
