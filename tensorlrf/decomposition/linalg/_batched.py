"""Many matrices of one shape, decomposed at once (`batch_dims=`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition.linalg._derivatives import moving_sides
from tensorlrf.decomposition.linalg._gram import BLOCK, in_blocks
from tensorlrf.decomposition.linalg._spectrum import FullSVD, ShortSideEigh
from tensorlrf.decomposition.linalg.parallel import over_batch
from tensorlrf.decomposition.rank import Rank, matrix_rank
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import Batch, Factors, LowRank

SOLVERS = ("auto", "exact", "eigh")

NEAR = 1e-4
"""How far above the least possible one an error may be for Grams in float32 to do."""

GRAM_ERROR = 32
"""Relative error of a Gram and its eigenvalues, in units of the rounding of its dtype and
as far as sums of eigenvalues feel it: three times the largest of 12 kinds of matrices, up to
1024 x 20000, of one sign, graded, and of low rank."""


def check_batch_dims(batch_dims: int, order: int) -> None:
    """A whole number, 0 or more, that leaves two modes at least of a tensor's `order`."""
    if isinstance(batch_dims, bool) or not isinstance(batch_dims, int) or batch_dims < 0:
        raise ArgumentError(f"batch_dims={batch_dims!r} must be a whole number, 0 or more")
    if order - batch_dims < 2:
        raise ShapeError(
            f"batch_dims={batch_dims} leaves {max(0, order - batch_dims)} of the {order} modes of "
            f"tensor; at least 2 are needed, so use at most {max(0, order - 2)}"
        )


def check_batched_rank(rank: object) -> None:
    """An estimate is of one tensor."""
    if isinstance(rank, str) and rank == "auto":
        raise UnsupportedError(
            "rank='auto' is not served with batch_dims=; call evbmf_rank for some of the places, "
            "and give an int"
        )


def check_batched_metric(rank: object, gram: object) -> None:
    """What `batch_dims` does not go with; one tensor after the other serves all of it."""
    check_batched_rank(rank)
    if gram is not None:
        raise UnsupportedError(
            "gram= is not served with batch_dims=; decompose the tensors one by one, each with its "
            "gram, and stack them with Batch.stack"
        )


def check_batched_svd(rank: object, solver: str, gram: object) -> None:
    """What `batch_dims` does not go with; one matrix after the other serves all of it."""
    check_batched_metric(rank, gram)
    if solver not in SOLVERS:
        raise UnsupportedError(
            f"solver={solver!r} is not served with batch_dims=; use one of {', '.join(SOLVERS)}"
        )


class Matrices:
    """Matrices (b, m, n) in their working dtype, each divided by its scale and taken apart.

    "exact" by the SVD, "eigh" by the eigenvectors of the Gram of the short side, computed in
    `grams` throughout, of which no more than `keep` are kept.
    """

    def __init__(
        self,
        stack: Tensor,
        solver: str,
        keep: int | None = None,
        grams: torch.dtype = torch.float64,
    ) -> None:
        self.dtype = stack.dtype
        work = stack.to(working_dtype(stack.dtype))
        self.scales = scales_of(work)  # (b,)
        plain = bool((self.scales == 1).all())
        self.moving = work if plain else work / per_item(self.scales, work)
        self.matrices = self.moving.detach()
        self.norms = squares(self.matrices)
        self.spectrum: FullSVD | ShortSideEigh
        if solver == "exact":
            self.spectrum = FullSVD(self.matrices)
        else:
            self.spectrum = ShortSideEigh(self.matrices, keep, grams)
        self.energies = self.spectrum.energies

    def cut(self, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """left, right in the dtype and scale of the input, and the relative errors (b,)."""
        root = self.scales.sqrt().to(self.matrices.dtype)[:, None, None]
        sides = self.spectrum.split(r)
        if self.moving.requires_grad:
            sides = moving_sides(self.moving, *sides, torch.finfo(self.dtype).eps)
        left, right = ((side * root).to(self.dtype) for side in sides)
        wide = [(side.detach().to(root.dtype) / root) for side in (left, right)]
        return left, right, self.rel_errors(*wide)

    def rel_errors(self, left: Tensor, right: Tensor) -> Tensor:
        """True relative errors (b,), summed in float64; absolute where a matrix is zero."""
        _, m, n = self.matrices.shape
        at_once = max(1, BLOCK // (m * n))

        def squared(*parts: Tensor) -> tuple[Tensor]:
            blocks = zip(*(torch.split(part, at_once) for part in parts), strict=True)
            return (torch.cat([squares(w - u @ v) for w, u, v in blocks]),)

        (lost,) = over_batch(squared, (self.matrices, left, right), left.numel() * n)
        return torch.where(self.norms > 0, lost / self.norms.clamp(min=1e-300), lost).sqrt()

    def near_best(self, r: int, errors: Tensor) -> bool:
        """Whether the errors (b,) of a cut are proven to be the least possible up to `NEAR` each:
        what the r largest eigenvalues leave of the norm is the least possible loss."""
        least = self.norms - self.energies[:, :r].sum(1) - gram_doubt(self.energies, r)
        return bool((errors**2 * self.norms * (1 - NEAR) ** 2 <= least).all())

    def worst_energies(self) -> Tensor:
        """What the worst of the matrices gains at each rank, as energies of one matrix."""
        tails = self.energies.flip(1).cumsum(1).flip(1)
        worst = (tails / tails[:, :1].clamp(min=1e-300)).amax(0)
        return -torch.diff(worst, append=worst.new_zeros(1))


def gram_doubt(energies: Tensor, r: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """By how much the r largest eigenvalues of Grams in `dtype`, of which there are all (b, k), may
    be wrong together: sqrt(r) |D| for an error D of the Gram (Hoffman & Wielandt 1953)."""
    eps = torch.finfo(dtype).eps
    together: Tensor = torch.linalg.vector_norm(energies, dim=1)
    return GRAM_ERROR * eps * math.sqrt(r) * together


def fit_matrices(
    stack: Tensor,
    solver: str,
    r: int | None,
    error: float,
    whole_of: Callable[[Tensor, Tensor], Batch],
) -> Fit[Batch]:
    """One rank for all of (b, m, n): r, or the smallest for which every error is at most `error`.

    `whole_of` makes the batch of left (b, m, r) and right (b, r, n). Methods as for `Matrices`.
    """
    free = solver == "auto"
    solver = resolved(stack, solver)
    b, m, n = stack.shape
    how = f"solver {solver!r}, largest error of {b} places"
    if r is not None:

        def single(some: Tensor) -> tuple[Tensor, ...] | None:
            matrices = Matrices(some, solver, r, torch.float32)
            left, right, errors = matrices.cut(r)
            if not matrices.near_best(r, errors):
                return None
            return left, right, errors, matrices.norms, matrices.scales

        # Twice as fast, where the first of many says that it will do.
        try_single = free and solver == "eigh" and b >= 4 and single(stack[:1]) is not None

        def decomposed(some: Tensor) -> tuple[Tensor, ...]:
            found = single(some) if try_single else None
            if found is not None:
                return found
            matrices = Matrices(some, solver, r)
            return *matrices.cut(r), matrices.norms, matrices.scales

        work = 6.0 * stack.numel() * min(m, n)
        left, right, errors, norms, scales = over_batch(decomposed, (stack,), work)
        together = relative_to_batch(errors, norms, scales)
        reason = f"rank {r} as asked, {how} {float(errors.max()):.4g}"
        return Fit(whole_of(left, right), (together,), True, reason)

    matrices = Matrices(stack, solver)

    def cut(r: int) -> Fit[Batch]:
        left, right, errors = matrices.cut(r)
        together = relative_to_batch(errors, matrices.norms, matrices.scales)
        return Fit(whole_of(left, right), (together, float(errors.max())), True, how)

    worst = matrices.worst_energies()
    fit = search(cut, None, error, min(m, n), stack.dtype, energies=worst)
    reason = f"{fit.reason} {fit.error:.4g}"
    return Fit(fit.factors, fit.errors[:1], fit.converged, reason)


def resolved(stack: Tensor, solver: str) -> str:
    """What "auto" stands for: "exact" for float64, "eigh" else."""
    if solver != "auto":
        return solver
    return "exact" if stack.dtype == torch.float64 else "eigh"


def fit_svd_batched(
    tensor: Tensor, rank: Rank | None, error: float | None, solver: str, batch_dims: int
) -> Fit[Batch]:
    """`fit_svd` of each place of a checked tensor (*batch, m, n_1, ...), one rank for all."""
    batch, shape = tuple(tensor.shape[:batch_dims]), tuple(tensor.shape[batch_dims:])
    stack = tensor.reshape(math.prod(batch), shape[0], -1)
    r = None if rank is None else matrix_rank(rank, stack.shape[1], stack.shape[2])

    def whole(left: Tensor, right: Tensor) -> Batch:
        return as_batch(LowRank, {"left": left, "right": right}, {"shape": list(shape)}, batch)

    return fit_matrices(stack, solver, r, error or 0.0, whole)


def as_batch(
    one: type[Factors], parts: dict[str, Tensor], meta: dict[str, Any], batch: tuple[int, ...]
) -> Batch:
    """Tensors (b, ...) as a batch of the format `one` with the given `meta`."""
    shaped = {name: t.reshape(*batch, *t.shape[1:]).contiguous() for name, t in parts.items()}
    return Batch(shaped, one.format, batch, meta)


def scales_of(stack: Tensor) -> Tensor:
    """For each place of (b, ...) a power of four, float64, as `scale_of` has it for one tensor."""
    largest = stack.detach().flatten(1).abs().amax(1).to(torch.float64)
    exponent = torch.frexp(largest)[1].to(torch.int64)
    limit = 1000 if stack.dtype == torch.float64 else 120
    even = exponent.clamp(-limit, limit).div(2, rounding_mode="floor") * 2
    near_one = (exponent.abs() <= 24) | (largest == 0)
    return torch.where(near_one, 1.0, torch.ldexp(torch.ones_like(largest), even))


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """(b,) shaped and typed to multiply (b, ...)."""
    return values.to(like.dtype).reshape(-1, *(1 for _ in like.shape[1:]))


def relative_to_batch(errors: Tensor, norms: Tensor, scales: Tensor) -> float:
    """The relative error of a batch from those of its places (b,), their squared norms and scales.

    Places that are zero have absolute errors.
    """
    unit = scales / scales.max()
    norm = float((norms * unit**2).sum())
    lost = errors**2 * torch.where(norms > 0, norms, 1.0) * unit**2
    if norm > 0:
        return math.sqrt(float(lost.sum()) / norm)
    return math.sqrt(float(lost.sum())) * float(scales.max())


def squares(stack: Tensor) -> Tensor:
    """Sums of squares (b,) in float64, some places at a time."""
    blocks = in_blocks(stack.detach().flatten(1)[:, None])
    return torch.cat([block.to(torch.float64).square().sum((1, 2)) for block in blocks])
