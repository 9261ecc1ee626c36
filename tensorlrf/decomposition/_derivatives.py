"""First derivatives of a truncation, however it was found.

A truncation of X is P X with the projector P = U U^T on leading left singular vectors. The columns
of U are free to turn among each other where singular values are equal, and turn fast where they are
close; their span is not. So the derivative comes in two steps. The span moves with X: that divides
by differences between singular values kept and left out, and by no others. Then the columns turn
within it, so that they stay singular vectors: that divides by differences between the ones kept,
and concerns only who looks at the factors one by one. A loss of the product does not: for it the
second step is rounding, known as such, and left out.

(Golub & Pereyra 1973 differentiate projectors; Kressner, Steinlechner & Vandereycken 2014 move
factors of a Tucker tensor without turning them.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tensorlrf.decomposition._gram_metric import growth

_ROUNDINGS = 32
"""How many times the rounding of its parts a sum may be, and still be rounding."""


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

    With `root` S (n, n) it is the truncation in the metric G = S S^T, see `GramMetric`. `eps` as
    for `kept_in_order`.
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
    energies = gram.diagonal(dim1=-2, dim2=-1)
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
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        given, basis = ctx.saved_tensors
        x, u, g = (t.to(torch.float64) for t in (given, basis, gradient))
        inner = u.mT @ x  # (..., r, n)
        turn, s, right = torch.linalg.svd(inner, full_matrices=False)
        kept = u @ turn  # (..., m, k)
        g = g @ turn
        g = g - u @ (u.mT @ g)
        rest = x - u @ inner
        q, t = left_svd(rest)
        top = s[..., :1].clamp(min=torch.finfo(torch.float64).tiny)
        eps = torch.finfo(given.dtype).eps
        floor = max(x.shape[-2:]) * eps * top
        known = s > floor
        s2, t2 = s.square()[..., None, :], t.square()[..., :, None]
        inverse = torch.where(known[..., None, :], 1 / s2.clamp(min=1e-300), 0.0)
        gap = s2 - t2  # (..., q, k)
        tie = gap.abs() <= _ROUNDINGS * eps * (top * s)[..., None, :]
        # 1 / gap = (1 + t^2 / gap) / s^2, of which the first part serves what R does not reach.
        share = torch.where(tie, -1.0, t2 / torch.where(tie, 1.0, gap))
        z = (g + q @ ((q.mT @ g) * share)) * inverse  # (..., m, k)
        pulled = (z * s[..., None, :]) @ right + kept @ (z.mT @ rest)
        return pulled.to(given.dtype), None


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
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        core, *parts = (t.to(torch.float64) for t in ctx.saved_tensors)
        by_core, *by_bases = (t.to(torch.float64) for t in gradients)
        count = len(ctx.modes)
        rounding = torch.finfo(ctx.saved_tensors[0].dtype).eps
        by_grams = []
        for k, u, gram, g in zip(ctx.modes, parts, parts[count:], by_bases, strict=False):
            slices, pulls = (
                t.movedim(ctx.lead + k, ctx.lead).flatten(ctx.lead + 1) for t in (core, by_core)
            )
            turning = u.mT @ g - pulls @ slices.mT  # what a turn would gain
            length = torch.linalg.vector_norm
            size = length(u, dim=-2)[..., :, None] * length(g, dim=-2)[..., None, :]
            size = size + length(pulls, dim=-1)[..., :, None] * length(slices, dim=-1)[..., None, :]
            turning, size = (turning - turning.mT) / 2, size + size.mT
            energies = gram.diagonal(dim1=-2, dim2=-1)
            gap = energies[..., None, :] - energies[..., :, None]
            larger = torch.maximum(energies[..., None, :], energies[..., :, None])
            unsure = (energies.amax(-1)[..., None, None] * larger).clamp(min=0).sqrt()
            idle = turning.abs() <= _ROUNDINGS * ctx.eps * size
            idle |= gap.abs() <= _ROUNDINGS * rounding * unsure
            by_grams.append(torch.where(idle, 0.0, turning / torch.where(idle, 1.0, gap)))
        given = ctx.saved_tensors[1 + count :]
        back = (g.to(gram.dtype) for g, gram in zip(by_grams, given, strict=True))
        return gradients[0], None, None, None, *gradients[1:], *back


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
