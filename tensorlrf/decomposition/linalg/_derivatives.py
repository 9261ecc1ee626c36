"""Derivatives of a truncation, however it was found.

A truncation of X is P X with the projector P = U U^T on leading left singular vectors. The columns
of U are free to turn among each other where singular values are equal, and turn fast where they are
close; their span is not. So the derivative comes in two steps. The span moves with X: that divides
by differences between singular values kept and left out, and by no others. Then the columns turn
within it, so that they stay singular vectors: that divides by differences between the ones kept,
and concerns only who looks at the factors one by one. A loss of the product does not: for it the
second step is rounding, known as such, and left out.

Second derivatives are those of both steps as functions of a neighbouring X, each by two steps of
Newton's method, which are right to second order.

(Golub & Pereyra 1973 differentiate projectors; Kressner, Steinlechner & Vandereycken 2014 move
factors of a Tucker tensor without turning them.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._output_spectrum import growth
from tensorlrf.errors import UnsupportedError

_ROUNDINGS = 32
"""How many times the rounding of its parts a sum may be, and still be rounding."""

THIRD = (
    "third derivatives of a decomposition are not served; differentiable=True has first and second "
    "ones, so leave create_graph=True out of the second call"
)

NEAR = (
    "second derivatives are not served where singular values that are kept are nearly equal and "
    "not equal, since rounding would be all there is of them; perturb the tensor"
)


def moving_span(matrix: Tensor, basis: Tensor) -> Tensor:
    """`basis` (..., m, r), orthonormal and spanning leading left singular vectors of `matrix`
    (..., m, n), as a function of it.

    It moves at right angles to itself. Where singular values on both sides of the cut are equal to
    rounding no derivative exists, nor for the vectors of values that are zero to rounding: those
    pairs of vectors and those vectors stay.
    """
    if not matrix.requires_grad:
        return basis
    moved: Tensor = _MovingSpan.apply(matrix, basis.detach())  # type: ignore[no-untyped-call]
    return moved


def kept_in_order(
    core: Tensor, bases: Mapping[int, Tensor], grams: Mapping[int, Tensor], eps: float, lead: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """`core` and `bases` (mode -> (..., n_k, r_k)), turned along with X so that `grams` (mode ->
    (..., r_k, r_k)), which are diagonal, stay so.

    `eps` is the relative rounding of the gradients that will come, `lead` counts the leading
    dimensions of `core` that are a batch.
    """
    if not core.requires_grad:
        return core, dict(bases)
    modes = tuple(bases)
    parts = [*(bases[k] for k in modes), *(grams[k] for k in modes)]
    turned = _KeptInOrder.apply(core, eps, lead, modes, *parts)  # type: ignore[no-untyped-call]
    return turned[0], dict(zip(modes, turned[1:], strict=True))


def moving_sides(
    matrix: Tensor, left: Tensor, right: Tensor, eps: float, root: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """left (..., m, r) and right (..., r, n) of a truncated SVD of `matrix` as functions of it.

    With `root` S (n, n) it is the truncation in the metric G = S S^T, see `OutputSpectrum`. `eps`
    as for `kept_in_order`.
    """
    length = torch.linalg.vector_norm(left, dim=-2)
    length = torch.where(length > 0, length, 1)
    # Columns of values that are rounding need not be at right angles to the others.
    basis, upper = torch.linalg.qr(left / length[..., None, :])
    basis = basis * torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1, 1)[..., None, :]
    seen = matrix if root is None else matrix.to(root.dtype) @ root
    basis = moving_span(seen, basis.to(seen.dtype)).to(matrix.dtype)
    core = basis.mT @ matrix
    image = core if root is None else core.to(root.dtype) @ root
    gram = image @ image.mT
    core, bases = kept_in_order(core, {0: basis}, {0: gram}, eps, matrix.ndim - 2)
    image = core if root is None else core.to(root.dtype) @ root
    energies = image.square().sum(-1)
    if root is None:
        # Values that are rounding have no derivative; what their vectors span has.
        noise = max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
        known = energies > noise**2 * energies.amax(-1, keepdim=True)
        share = torch.where(known, torch.where(known, energies, 1).pow(0.25), length)
    else:
        share = growth(energies, seen.square().sum() / matrix.shape[-2]).to(matrix.dtype)
    moved = bases[0] * share[..., None, :], core / share[..., :, None]
    return with_values(left, moved[0]), with_values(right, moved[1])


def with_values(values: Tensor, derivative: Tensor) -> Tensor:
    """`values` with the derivative of another tensor, which agrees with them to rounding."""
    return values + (derivative - derivative.detach())


class _MovingSpan(torch.autograd.Function):
    """U to U: with the triplets (s_i, u_i, v_i) that U spans, dU = sum_i z_i u_i^T U with
    (s_i^2 - R R^T) z_i = (1 - P) (dX v_i s_i + X dX^T u_i), R = (1 - P) X."""

    @staticmethod
    def forward(matrix: Tensor, basis: Tensor) -> Tensor:
        return basis.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        given, basis = ctx.saved_tensors
        around = _Around.of(given, basis)
        if torch.is_grad_enabled():
            back = _pulled_back(lambda x: (around.span(x),), (given,), (gradient,))
            return back[0], None
        u = around.basis
        g = gradient.to(torch.float64)
        z = around.solved(g - u @ (u.mT @ g))
        x = around.matrix
        pulled = z @ (u.mT @ x) + u @ (z.mT @ (x - u @ (u.mT @ x)))
        return pulled.to(given.dtype), None


@dataclass(frozen=True)
class _Around:
    """X (..., m, n) and the basis U of a span of leading left singular vectors, in float64.

    turn            right-hand turn that makes U singular vectors u_i, (..., r, k)
    inverse, share  what solves (s_i^2 - R R^T) z_i = g_i on the left singular `vectors` of R: with
                    1 / gap = (1 + t^2 / gap) / s^2, whose first part serves what R does not reach
    """

    matrix: Tensor
    basis: Tensor
    turn: Tensor
    vectors: Tensor
    inverse: Tensor
    share: Tensor

    @classmethod
    def of(cls, matrix: Tensor, basis: Tensor) -> _Around:
        x, u = (t.detach().to(torch.float64) for t in (matrix, basis))
        inner = u.mT @ x  # (..., r, n)
        turn, s, _ = torch.linalg.svd(inner, full_matrices=False)
        q, t = left_svd(x - u @ inner)
        top = s[..., :1].clamp(min=torch.finfo(torch.float64).tiny)
        eps = torch.finfo(matrix.dtype).eps
        known = s > max(x.shape[-2:]) * eps * top
        s2, t2 = s.square()[..., None, :], t.square()[..., :, None]
        inverse = torch.where(known[..., None, :], 1 / s2.clamp(min=1e-300), 0.0)
        gap = s2 - t2  # (..., q, k)
        tie = gap.abs() <= _ROUNDINGS * eps * (top * s)[..., None, :]
        share = torch.where(tie, -1.0, t2 / torch.where(tie, 1.0, gap))
        return cls(x, u, turn, q, inverse, share)

    def solved(self, off: Tensor) -> Tensor:
        """Z (..., m, r) with Z H - R R^T Z = `off`, where H = U^T X X^T U and U^T off = 0."""
        g = off @ self.turn
        z = (g + self.vectors @ ((self.vectors.mT @ g) * self.share)) * self.inverse
        return z @ self.turn.mT

    def span(self, matrix: Tensor) -> Tensor:
        """U as a function of X nearby, right to second order.

        U + Z with Z at right angles to U spans the same as leading vectors of Y = X + dX where
        Z H - K Z + Z E^T Z = E, all three of Y: E = (1 - P) Y Y^T U, K = (1 - P) Y Y^T (1 - P).
        Newton's steps with the H and K of X find it (Stewart 1973), and each one is right to one
        order more; the square in Z is of third order.
        """
        y, u = matrix.to(torch.float64), self.basis
        inner = u.mT @ y
        rest = y - u @ inner
        off = rest @ inner.mT
        off = off - off.detach()  # rounding
        z = self.solved(off)
        z = z + self.solved(off + rest @ (rest.mT @ z) - z @ (inner @ inner.mT))
        moved = u + z
        return (moved - moved @ (z.mT @ z) / 2).to(matrix.dtype)


class _KeptInOrder(torch.autograd.Function):
    """U_k to U_k (1 + K_k) and the core to its product with 1 - K_k along each mode, K_k
    antisymmetric: (K_k)_ij = dG_ij / (G_jj - G_ii) keeps the Gram G of mode k diagonal."""

    @staticmethod
    def forward(
        core: Tensor, eps: float, lead: int, modes: tuple[int, ...], *parts: Tensor
    ) -> tuple[Tensor, ...]:
        return core.clone(), *(u.clone() for u in parts[: len(modes)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        core, ctx.eps, ctx.lead, ctx.modes, *parts = inputs
        ctx.save_for_backward(core, *parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        given = ctx.saved_tensors
        count, lead, modes = len(ctx.modes), ctx.lead, ctx.modes
        core, *parts = (t.detach().to(torch.float64) for t in given)
        by_core, *by_bases = (t.detach().to(torch.float64) for t in gradients)
        rounding = torch.finfo(given[0].dtype).eps
        near = False
        turnings, gaps, idles, equal = [], [], [], []
        for k, u, gram, g in zip(modes, parts, parts[count:], by_bases, strict=False):
            slices, pulls = (t.movedim(lead + k, lead).flatten(lead + 1) for t in (core, by_core))
            turning = u.mT @ g - pulls @ slices.mT  # what a turn would gain
            length = torch.linalg.vector_norm
            size = length(u, dim=-2)[..., :, None] * length(g, dim=-2)[..., None, :]
            size = size + length(pulls, dim=-1)[..., :, None] * length(slices, dim=-1)[..., None, :]
            turning, size = (turning - turning.mT) / 2, size + size.mT
            energies = gram.diagonal(dim1=-2, dim2=-1)
            gap = _differences(gram)
            larger = torch.maximum(energies[..., None, :], energies[..., :, None])
            unsure = (energies.amax(-1)[..., None, None] * larger).clamp(min=0).sqrt()
            same = gap.abs() <= _ROUNDINGS * rounding * unsure
            idle = same | (turning.abs() <= _ROUNDINGS * ctx.eps * size)
            near |= bool((idle & ~same & (gap.abs() <= rounding ** (1 / 3) * unsure)).any())
            equal.append(same)
            turnings.append(turning)
            gaps.append(gap)
            idles.append(idle)
        if torch.is_grad_enabled() and not near:
            ordered = partial(_in_order, lead=lead, modes=modes, idles=equal)
            back = _pulled_back(ordered, given, gradients)
            return back[0], None, None, None, *back[1:]
        by_grams = (
            torch.where(idle, 0.0, turning / torch.where(idle, 1.0, gap)).to(gram.dtype)
            for turning, gap, idle, gram in zip(
                turnings, gaps, idles, given[1 + count :], strict=True
            )
        )
        found = *gradients, *by_grams
        if torch.is_grad_enabled():
            # Squares of the gap would divide what cancels, and only in part does it show.
            found = tuple(_refused(t, core) for t, core in zip(found, given, strict=True))
        return found[0], None, None, None, *found[1:]


def _differences(gram: Tensor) -> Tensor:
    """G_jj - G_ii at (..., i, j)."""
    energies = gram.diagonal(dim1=-2, dim2=-1)
    return energies[..., None, :] - energies[..., :, None]


def _in_order(
    core: Tensor, *parts: Tensor, lead: int, modes: tuple[int, ...], idles: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The core and the bases, turned so that nearly diagonal Grams become diagonal, right to second
    order: by what turns them to first order, and by what that leaves. `idle` pairs do not turn."""
    bases, grams = parts[: len(modes)], parts[len(modes) :]
    turned = []
    for k, u, given, idle in zip(modes, bases, grams, idles, strict=True):
        gram = given.to(torch.float64)
        gram = gram - (gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))).detach()
        one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        turn = one
        for _ in range(2):
            now = turn.mT @ gram @ turn
            small = torch.where(idle, 0.0, now / torch.where(idle, 1.0, _differences(now)))
            turn = turn @ (one + small + small @ small / 2)
        turn = turn.to(u.dtype)
        turned.append(u @ turn)
        core = (core.movedim(lead + k, -1) @ turn.to(core.dtype)).movedim(-1, lead + k)
    return core, *turned


def _pulled_back(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs, with a graph of their own, by what `function` says of them."""
    # One input may have come of another: what is asked for is by each alone.
    alone = [_once_more(t) for t in inputs]
    outputs = function(*alone)
    moving = [t for t in alone if t.requires_grad]
    pairs = [(o, _once_more(g)) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
    results = iter(
        torch.autograd.grad(
            [o for o, _ in pairs],
            moving,
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return tuple(next(results) if t.requires_grad else None for t in alone)


def _once_more(tensor: Tensor) -> Tensor:
    """The same, in a graph of which one derivative can be taken and no other of that."""
    if not tensor.requires_grad:
        return tensor
    once: Tensor = _OnceMore.apply(tensor)  # type: ignore[no-untyped-call]
    return once


def _refused(tensor: Tensor, source: Tensor) -> Tensor:
    """The same, of which there is no derivative by what it came of, or by `source`."""
    same: Tensor = _Refused.apply(tensor, source, NEAR)  # type: ignore[no-untyped-call]
    return same


class _OnceMore(torch.autograd.Function):
    """The identity, whose derivative has none."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        same: Tensor = _Refused.apply(gradient, gradient, THIRD)  # type: ignore[no-untyped-call]
        return same


class _Refused(torch.autograd.Function):
    """A tensor whose derivative, by whatever it came of or by a `source`, is refused."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, source: Tensor, message: str) -> Tensor:
        ctx.message = message
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        raise UnsupportedError(ctx.message)


def left_svd(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (..., m, k) and singular values (..., k), k = min(m, n)."""
    if matrix.shape[-2] < matrix.shape[-1]:
        # X = (Q R)^T with X^T = Q R: the left vectors of X are those of the small R^T.
        matrix = torch.linalg.qr(matrix.mT, mode="r")[1].mT
    try:
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        energies, left = torch.linalg.eigh(matrix @ matrix.mT)
        values = energies.clamp(min=0).sqrt()
    return left, values
