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
from tensorlrf.decomposition.linalg._gram import descending_eigh, thin_svd
from tensorlrf.decomposition.linalg.parallel import over_places
from tensorlrf.decomposition.rank import Rank, matrix_rank
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import Batch, Factors, LowRank

BLOCK = 1 << 21
"""Elements raised to float64 at once: 16 MB."""

METHODS = ("auto", "exact", "eigh")

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


def check_batched_svd(rank: object, method: str, gram: object) -> None:
    """What `batch_dims` does not go with; one matrix after the other serves all of it."""
    check_batched_metric(rank, gram)
    if method not in METHODS:
        raise UnsupportedError(
            f"method={method!r} is not served with batch_dims=; use one of {', '.join(METHODS)}"
        )


class Matrices:
    """Matrices (b, m, n) in their working dtype, each divided by its scale and taken apart.

    "exact" by the SVD, "eigh" by the eigenvectors of the Gram of the short side, computed in
    `grams` throughout, of which no more than `keep` are kept.
    """

    def __init__(
        self,
        stack: Tensor,
        method: str,
        keep: int | None = None,
        grams: torch.dtype = torch.float64,
    ) -> None:
        self.dtype = stack.dtype
        work = stack.to(working_dtype(stack.dtype))
        self.scales = scales_of(work)  # (b,)
        plain = bool((self.scales == 1).all())
        self.moving = work if plain else work / per_place(self.scales, work)
        self.matrices = self.moving.detach()
        self.method = method
        self.wide = work.shape[1] <= work.shape[2]
        self.norms = squares(self.matrices)
        if method == "exact":
            self.left, self.values, self.right = batched_svd(self.matrices)
            self.energies = self.values.to(torch.float64) ** 2
        else:
            energies, self.vectors = short_spectra(self.matrices, keep, work.dtype, grams)
            self.energies = energies.to(torch.float64)

    def split(self, r: int) -> tuple[Tensor, Tensor]:
        """The best left (b, m, r) and right (b, r, n) of the matrices divided by their scales."""
        if self.method == "exact":
            left, values, right = self.left[..., :r], self.values[:, :r], self.right[:, :r]
        elif self.wide:
            left = self.vectors[..., :r]
            right = left.mT @ self.matrices
            values = torch.linalg.vector_norm(right, dim=2)
            right = right / torch.where(values > 0, values, 1)[:, :, None]
        else:
            right = self.vectors[..., :r].mT
            left = self.matrices @ right.mT
            values = torch.linalg.vector_norm(left, dim=1)
            left = left / torch.where(values > 0, values, 1)[:, None]
        roots = values.sqrt()
        return left * roots[:, None], roots[:, :, None] * right

    def cut(self, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """left, right in the dtype and scale of the input, and the relative errors (b,)."""
        root = self.scales.sqrt().to(self.matrices.dtype)[:, None, None]
        sides = self.split(r)
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

        (lost,) = over_places(squared, (self.matrices, left, right), left.numel() * n)
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
    method: str,
    r: int | None,
    error: float,
    whole_of: Callable[[Tensor, Tensor], Batch],
) -> Fit[Batch]:
    """One rank for all of (b, m, n): r, or the smallest for which every error is at most `error`.

    `whole_of` makes the batch of left (b, m, r) and right (b, r, n). Methods as for `Matrices`.
    """
    free = method == "auto"
    method = resolved(stack, method)
    b, m, n = stack.shape
    how = f"method {method!r}, largest error of {b} places"
    if r is not None:

        def single(some: Tensor) -> tuple[Tensor, ...] | None:
            matrices = Matrices(some, method, r, torch.float32)
            left, right, errors = matrices.cut(r)
            if not matrices.near_best(r, errors):
                return None
            return left, right, errors, matrices.norms, matrices.scales

        # Twice as fast, where the first of many says that it will do.
        try_single = free and method == "eigh" and b >= 4 and single(stack[:1]) is not None

        def decomposed(some: Tensor) -> tuple[Tensor, ...]:
            found = single(some) if try_single else None
            if found is not None:
                return found
            matrices = Matrices(some, method, r)
            return *matrices.cut(r), matrices.norms, matrices.scales

        work = 6.0 * stack.numel() * min(m, n)
        left, right, errors, norms, scales = over_places(decomposed, (stack,), work)
        together = relative_to_whole(errors, norms, scales)
        reason = f"rank {r} as asked, {how} {float(errors.max()):.4g}"
        return Fit(whole_of(left, right), (together,), True, reason)

    matrices = Matrices(stack, method)

    def cut(r: int) -> Fit[Batch]:
        left, right, errors = matrices.cut(r)
        together = relative_to_whole(errors, matrices.norms, matrices.scales)
        return Fit(whole_of(left, right), (together, float(errors.max())), True, how)

    worst = matrices.worst_energies()
    fit = search(cut, None, error, min(m, n), stack.dtype, energies=worst)
    reason = f"{fit.reason} {fit.error:.4g}"
    return Fit(fit.factors, fit.errors[:1], fit.converged, reason)


def resolved(stack: Tensor, method: str) -> str:
    """What "auto" stands for: "exact" for float64, "eigh" else."""
    if method != "auto":
        return method
    return "exact" if stack.dtype == torch.float64 else "eigh"


def fit_svd_batched(
    tensor: Tensor, rank: Rank | None, error: float | None, method: str, batch_dims: int
) -> Fit[Batch]:
    """`fit_svd` of each place of a checked tensor (*batch, m, n_1, ...), one rank for all."""
    batch, shape = tuple(tensor.shape[:batch_dims]), tuple(tensor.shape[batch_dims:])
    stack = tensor.reshape(math.prod(batch), shape[0], -1)
    r = None if rank is None else matrix_rank(rank, stack.shape[1], stack.shape[2])

    def whole(left: Tensor, right: Tensor) -> Batch:
        return as_batch(LowRank, {"left": left, "right": right}, {"shape": list(shape)}, batch)

    return fit_matrices(stack, method, r, error or 0.0, whole)


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


def per_place(values: Tensor, like: Tensor) -> Tensor:
    """(b,) shaped and typed to multiply (b, ...)."""
    return values.to(like.dtype).reshape(-1, *(1 for _ in like.shape[1:]))


def relative_to_whole(errors: Tensor, norms: Tensor, scales: Tensor) -> float:
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
    flat = stack.detach().flatten(1)
    blocks = torch.split(flat, max(1, BLOCK // max(1, flat.shape[1])))
    return torch.cat([block.to(torch.float64).square().sum(1) for block in blocks])


def short_grams(stack: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The Grams of the short sides of (b, m, n) in `dtype`, (b, k, k) with k = min(m, n)."""
    short = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    blocks = torch.split(short, max(1, BLOCK // short[0].numel()))
    return torch.cat([wide @ wide.mT for wide in (block.to(dtype) for block in blocks)])


def short_spectra(
    stack: Tensor,
    keep: int | None = None,
    dtype: torch.dtype = torch.float64,
    grams: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Eigenvalues (b, k), descending and not below zero, and the first `keep` of the eigenvectors
    (b, k, keep), in `dtype`, of `short_grams(stack, grams)`, which is never there as a whole.
    """
    k, rest = sorted(stack.shape[1:])

    def some_spectra(some: Tensor) -> tuple[Tensor, Tensor]:
        found = [_spectra(block) for block in torch.split(some, max(1, BLOCK // (k * rest)))]
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    def _spectra(block: Tensor) -> tuple[Tensor, Tensor]:
        products = short_grams(block, grams)
        try:
            values, vectors = torch.linalg.eigh(products)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # One of them; which is not said.
            pairs = [descending_eigh(gram) for gram in products]
            energies, vectors = (torch.stack([pair[i] for pair in pairs]) for i in range(2))
        else:
            energies, vectors = values.flip(1).clamp(min=0), vectors.flip(2)
        return energies, vectors[..., :keep].to(dtype)

    energies, vectors = over_places(some_spectra, (stack,), stack.shape[0] * k * k * (rest + 4 * k))
    return energies, vectors


def batched_svd(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`thin_svd` of matrices (b, m, n): (b, m, k), (b, k), (b, k, n)."""

    def svd(some: Tensor) -> tuple[Tensor, ...]:
        try:
            return tuple(torch.linalg.svd(some, full_matrices=False))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            parts = [thin_svd(matrix) for matrix in some]
            return tuple(torch.stack([p[i] for p in parts]) for i in range(3))

    left, values, right = over_places(svd, (stack,), 6 * stack.numel() * min(stack.shape[1:]))
    return left, values, right
