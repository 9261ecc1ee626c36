"""The launches of `blr_linear`, with the tensors that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf_kernels._tables import launch_for
from tensorlrf_kernels.blr_linear.calls import (
    OP,
    Panels,
    chunk_of,
    decode_call,
    expand_call,
    fitted,
    intermediates,
    shrinks,
    weave_call,
)
from tensorlrf_kernels.blr_linear.forms import Form, tiling_of, words
from tensorlrf_kernels.blr_linear.gradient_calls import (
    intermediates_back,
    named,
    panels_calls,
    parts_of,
    unwoven,
    unwoven_bias,
)
from tensorlrf_kernels.blr_linear.launch import MOST_MASKED
from tensorlrf_kernels.blr_linear.tables import (
    expand_table,
    grads_table,
    served,
    shrink_table,
)
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem, execute
from tensorlrf_kernels.lowrank_linear.fused import precision

LEAST_RUN = 8  # ranks that make half a sector of memory in half precision


def problem_of(form: Form, x: Tensor) -> Problem:
    """What is to be computed, as the launches are chosen by it."""
    rows = x.shape[:-1].numel()
    return Problem(rows, *form.shape, form.rank, x.dtype, precision(x.dtype) == "tf32")


def forward(
    form: Form, x: Tensor, panels: Panels, bias: Tensor | None, activation: str | None
) -> Tensor | None:
    """y (M, m) for x (M, n); None where no kernel serves."""
    config = launch_for(OP, "forward", problem_of(form, x), x.device)
    if config is None or not _worthwhile(form, config, False, x.device):
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], Tensor]:
        return forward_calls(config, form, x, panels, bias, activation)

    made: Tensor | None = execute(config, build, op=OP, device=x.device, dtype=x.dtype)
    return made


def backward(
    form: Form,
    dy: Tensor,
    x: Tensor | None,
    panels: Panels,
    bias: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    """Gradients in x (M, n), left, right, third and bias, those that are `needed`, from dy (M, m);
    None where no kernel serves."""
    config = launch_for(OP, "backward", problem_of(form, dy), dy.device)
    if config is None:
        return None
    if not all(_worthwhile(form, config, turned, dy.device) for turned in (False, True)):
        return None
    sizes = config.blocks["BR"], config.blocks["BC"]
    if any(grads_table(form, of, *sizes, dy.device) is None for of in ("left", "right", "dense")):
        return None

    def build(config: LaunchConfig) -> tuple[list[Call], Made]:
        return backward_calls(config, form, dy, x, panels, bias, activation, needed)

    made: Made | None = execute(config, build, op=OP, device=dy.device, dtype=dy.dtype)
    return None if made is None else collect(form, made, panels, needed)


def _worthwhile(form: Form, config: LaunchConfig, transposed: bool, device: torch.device) -> bool:
    """Whether the tables exist and tiles are not mostly mask."""
    work = tile_work(form, config, transposed, device)
    return work is not None and work <= MOST_MASKED * form.work


def tile_work(
    form: Form, config: LaunchConfig, transposed: bool, device: torch.device
) -> int | None:
    """Multiply-adds for a row of x in whole tiles, masked parts and all; None where there can be no
    tables, or not now."""
    if not served(form):
        return None
    blocks = fitted(form, config, transposed)
    into = shrink_table(form, transposed, blocks["BR"], blocks["BK"], device)
    out = expand_table(form, transposed, blocks["BN"], blocks["BE"], device)
    return None if into is None or out is None else into.work + out.work


# ---- forward ------------------------------------------------------------------------------------


def forward_calls(
    config: LaunchConfig,
    form: Form,
    x: Tensor,
    panels: Panels,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[list[Call], Tensor]:
    """The launches that make y (M, m) from x (M, n) of any strides, a chunk of rows after the
    other: what is between the two products of a chunk stays in the L2 cache."""
    M = len(x)
    y = x.new_empty(M, form.shape[0])
    slots = form.left.slots + (form.right.slots if form.name == "blast" else 0)
    rows = chunk_of(config, M, slots, x.dtype)
    t = intermediates(form, x, rows)
    calls: list[Call] = []
    for first in range(0, M, rows):
        part = slice(first, min(first + rows, M))
        calls += _forward_part(config, form, x[part], panels, bias, activation, t, y[part])
    return calls, y


def _forward_part(
    config: LaunchConfig,
    form: Form,
    x: Tensor,
    panels: Panels,
    bias: Tensor | None,
    activation: str | None,
    t: tuple[Tensor, Tensor],
    y: Tensor,
) -> list[Call]:
    if config.cooperative and form.name == "blr":
        return [decode_call(config, form, x, panels, bias, activation, t[0], y)]
    if form.woven and panels.left.shape[3] < LEAST_RUN and not config.cooperative:
        return _woven_part(config, x, panels, bias, activation, t[0], y)
    calls = shrinks(config, form, False, x, panels, t)
    if form.woven:
        slots = form.left.slots // form.woven
        inner = t[1][:, : form.left.slots]
        left = panels.left.flatten(2)
        return [*calls, weave_call(config, inner, left, slots, y, bias, activation)]
    return [*calls, expand_call(config, form, False, x, t[1], panels, bias, activation, y)]


def _woven_part(
    config: LaunchConfig,
    x: Tensor,
    panels: Panels,
    bias: Tensor | None,
    activation: str | None,
    t: Tensor,
    y: Tensor,
) -> list[Call]:
    """A Monarch matrix of small rank: panels of the right side are woven too, since their ranks go
    to places too far apart to be written one by one. t has (q, rank, k) one behind the other."""
    Q, _, K, r = panels.left.shape
    t = t.view(-1)[: len(t) * Q * r * K].view(len(t), -1)
    left = panels.left.transpose(2, 3).flatten(2).contiguous()  # (Q, S, r K)
    right = panels.right.flatten(1, 2)  # (K, Q r, P)
    x = x if x.stride(1) == 1 else x.contiguous()
    return [
        weave_call(config, x, right, right.shape[2], t[: len(x)]),
        weave_call(config, t, left, r * K, y, bias, activation),
    ]


# ---- backward -----------------------------------------------------------------------------------


class Made(NamedTuple):
    """What `backward_calls` fills: dx (M, n), dz (M, columns of the left side), the parts (splits,
    numbers) of each panel tensor by name, and BLAST's intermediates (M, slots) before the scales
    and behind them in the gradient."""

    dx: Tensor | None
    dz: Tensor
    parts: dict[str, Tensor]
    t: Tensor | None
    du: Tensor | None


def backward_calls(
    config: LaunchConfig,
    form: Form,
    dy: Tensor,
    x: Tensor | None,
    panels: Panels,
    bias: Tensor | None,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[list[Call], Made]:
    """The launches that make what is needed of the gradients, a chunk of rows after the other.

    t is made anew from x, and dz = dy activation'(z) from t. The gradient of the intermediate, and
    that of x, are the two products with the transposed matrix.
    """
    need_x, need_left, need_right, need_third, _ = needed
    M, blast = len(dy), form.name == "blast"
    if form.woven:
        # The columns of a strip are put beside each other once, for all that reads them.
        dy, bias = unwoven(form, dy, panels.left), unwoven_bias(form, bias, panels.left)
    active = activation is not None
    dz = torch.empty_like(dy, memory_format=torch.contiguous_format) if active else dy
    want_t = active or need_left or (blast and need_third)
    want_dt = need_x or need_right or (blast and need_third)
    rows = M if blast else chunk_of(config, M, form.left.slots + form.right.slots, dy.dtype)
    t, dt = intermediates(form, dy, rows), intermediates_back(form, dy, rows)
    dx = dy.new_empty(M, form.shape[1]) if need_x else None
    wanted = {"left": need_left, "right": need_right, "dense": need_third and bool(form.dense)}
    parts = {
        name: parts_of(config, form, name, M, rows, panels, x if x is not None else dy)
        for name, want in wanted.items()
        if want and (name == "left" or x is not None)
    }
    calls: list[Call] = []
    for first in range(0, M, rows):
        part = slice(first, min(first + rows, M))
        g, a = dz[part], None if x is None else x[part]
        if want_t and a is not None:
            calls += shrinks(config, form, False, a, panels, t)
            if active:
                calls.append(
                    expand_call(config, form, False, a, t[1], panels, bias, activation, g, dy[part])
                )
        if want_dt:
            calls += shrinks(config, form, True, g, panels, dt)
        if dx is not None:
            calls.append(expand_call(config, form, True, g, dt[1], panels, None, None, dx[part]))
        pairs = {"left": (t[1], g), "right": (dt[1], a), "dense": (g, a)}
        for name, whole in parts.items():
            u, v = pairs[name]
            if v is not None:
                calls += panels_calls(config, form, name, u, v, whole, first, rows)
    return calls, Made(dx, dz, parts, t[0] if blast else None, dt[0] if blast else None)


def collect(
    form: Form, made: Made, panels: Panels, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients out of what `backward_calls` made, its parts added up in a fixed order."""
    _, need_left, need_right, need_third, need_bias = needed

    def summed(name: str) -> Tensor:
        like = named(panels, name)
        if name not in made.parts:
            return torch.zeros_like(like)
        return made.parts[name].sum(0).to(like.dtype).view(like.shape)

    third = dbias = None
    if need_third and made.t is not None and made.du is not None:
        p, q, r = panels.third.shape
        t = torch.unflatten(made.t, 1, (q, -1))[..., :r]
        du = torch.unflatten(made.du, 1, (p, -1))[..., :r]
        third = torch.einsum("npr,nqr->pqr", du, t).to(panels.third.dtype)
    elif need_third:
        third = summed("dense")
    if need_bias:
        dbias = made.dz.sum(0)
        if form.woven:
            dbias = dbias.view(form.woven, -1).T.reshape(-1)[: form.shape[0]].contiguous()
    left = summed("left") if need_left else None
    return made.dx, left, summed("right") if need_right else None, third, dbias


# ---- trials -------------------------------------------------------------------------------------


def trial(
    direction: str, config: LaunchConfig, problem: Problem, device: torch.device
) -> list[Call]:
    """The launches for a problem on operands of no account, to be compiled or timed: an even grid
    of low-rank blocks."""
    tiling = tiling_of(uniform_grid(problem.out, problem.inp, problem.rank))

    def some(*size: int) -> Tensor:
        made = torch.empty(size, dtype=problem.dtype, device=device)
        return made.normal_() if device.type == "cuda" else made

    panels = Panels(some(tiling.sizes["left"]), some(tiling.sizes["right"]), some(0))
    x = some(problem.rows, problem.inp)
    if direction == "forward":
        calls, _ = forward_calls(config, tiling.form, x, panels)
    else:
        dy, needed = some(problem.rows, problem.out), [True, True, True, False, False]
        calls, _ = backward_calls(config, tiling.form, dy, x, panels, None, None, needed)
    # The problem says in what float32 is multiplied, whatever the switch of this process.
    precision = {"PRECISION": "tf32" if problem.tf32 else "ieee"}
    return [replace(call, constants={**call.constants, **precision}) for call in calls]


def uniform_grid(out: int, inp: int, rank: int) -> str:
    """An even grid whose rows are made of `rank` ranks: of 16 x 16 blocks, or of fewer."""
    count = next(n for n in (16, 8, 4, 2, 1) if out % n == inp % n == 0 and rank % n == 0)
    b, c = out // count, inp // count
    r = min(rank // count, b, c)
    return words(((i * b, j * c, b, c, r) for i in range(count) for j in range(count)), (out, inp))
