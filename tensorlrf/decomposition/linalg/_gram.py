"""Grams of unfoldings, and the leading left singular vectors of an unfolding.

For float32 and below a Gram is summed in float64: then singular values are good down to about
1e-8 of the largest one, which is all that float32 factors can hold. Float64 input takes the SVD
itself, since its Gram would lose half of its digits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.parallel import over_batch
from tensorlrf.decomposition.linalg.threads import cores_for, spectrum_work

Choose = Callable[[Tensor], int]
"""From energies (squared singular values, descending, float64) to how many to keep."""

# Elements cast to float64 at once: 4 MB, so that the cast block is read back from the cache.
_BLOCK = 1 << 19

BLOCK = 1 << 21
"""Elements of many places that are raised to float64 at once: 16 MB."""


def left_vectors(
    tensor: Tensor, mode: int, *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Left singular vectors of the mode-`mode` unfolding, and its energies.

    Returns (n_mode, k) with orthonormal columns in the dtype of `tensor`, k = n_mode or the number
    of columns of the unfolding if that is less, and the k energies, descending, in float64. Neither
    has a graph. `dtype` is that of the Gram, where there is one.
    """
    tensor = tensor.detach()
    n = tensor.shape[mode]
    if tensor.dtype == torch.float64 or n > tensor.numel() // n:
        return left_singular(unfold(tensor, mode))
    energies, vectors = descending_eigh(mode_gram(tensor, mode, dtype=dtype))
    return vectors.to(tensor.dtype), energies.to(torch.float64)


def left_singular(matrices: Tensor, keep: int | None = None) -> tuple[Tensor, Tensor]:
    """Left singular vectors (*batch, n, k) of matrices (*batch, n, rest), in their dtype, and the
    energies, descending, in float64; k is the short side, or no less than `keep` of it.

    By Grams of the short side summed in float64, for float64 by the SVD itself. Without a graph.
    """
    matrices = matrices.detach()
    dtype, (n, rest) = matrices.dtype, matrices.shape[-2:]
    if dtype == torch.float64:
        if n < rest:
            # X = (Q R)^T with X^T = Q R: the left vectors of X are those of the small R^T.
            with cores_of(matrices):
                matrices = torch.linalg.qr(matrices.mT, mode="r")[1].mT
        vectors, values, _ = thin_svd(matrices)
        return vectors, values**2
    energies, vectors = short_spectra(matrices, keep, dtype if n <= rest else torch.float64)
    if n > rest:
        # Columns of X V are orthogonal in exact arithmetic; QR makes them so where they are tiny.
        pairs = zip(in_blocks(matrices), in_blocks(vectors, n * rest), strict=True)
        with cores_of(matrices):
            found = [torch.linalg.qr(x.to(torch.float64) @ v)[0] for x, v in pairs]
        vectors = found[0] if len(found) == 1 else torch.cat(found)
    return vectors.to(dtype), energies


def leading_vectors(tensor: Tensor, mode: int, choose: Choose) -> Tensor:
    """The first r left singular vectors (n_mode, r), r from `choose` on the energies.

    Where r exceeds the number of columns of the unfolding they are completed.
    """
    vectors, energies = left_vectors(tensor, mode)
    r = choose(energies)
    return complete(vectors[:, :r], r)


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Mode-`mode` unfolding (n_mode, product of the others, C order)."""
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def mode_gram(tensor: Tensor, mode: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """X_(mode) X_(mode)^T in `dtype`, (n_mode, n_mode), without a copy of the unfolding.

    Blocks of the tensor as it lies are cast, turned while they are cast, and multiplied.
    """
    n = tensor.shape[mode]
    before = math.prod(tensor.shape[:mode])
    after = math.prod(tensor.shape[mode + 1 :])
    with cores_for("product", n * tensor.numel()):
        return _blocked_gram(tensor.reshape(before, n, after), dtype)


def _blocked_gram(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first mode of X X^T for the slices X (n, after) of a stack."""
    before, n, after = stack.shape
    gram = torch.zeros(n, n, dtype=dtype, device=stack.device)
    if before == 1:
        matrix = stack[0]
        for columns in torch.split(matrix, max(1, _BLOCK // n), dim=1):
            block = columns.to(dtype)  # (n, some)
            gram.addmm_(block, block.T)
        return gram
    for slab in torch.split(stack, max(1, _BLOCK // (n * after))):
        if after == 1:
            block = slab[:, :, 0].to(dtype).T  # (n, some)
        else:
            turned = slab.transpose(0, 1)  # (n, some, after)
            block = turned.to(dtype, memory_format=torch.contiguous_format).reshape(n, -1)
        gram.addmm_(block, block.T)
    return gram


def short_gram(matrices: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The Grams (*batch, k, k), in `dtype`, of the short sides of (*batch, m, n), k = min(m, n)."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    if matrices.ndim == 2:
        return mode_gram(matrices, 0 if wide else 1, dtype=dtype)
    short = matrices if wide else matrices.mT
    return torch.cat([x @ x.mT for x in (some.to(dtype) for some in in_blocks(short))])


def short_spectra(
    matrices: Tensor,
    keep: int | None = None,
    dtype: torch.dtype = torch.float64,
    grams: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Eigenvalues (*batch, k), descending and not below zero, and the first `keep` of the
    eigenvectors (*batch, k, keep), in `dtype`, of `short_gram(matrices, grams)`, which is never
    there as a whole where there are many.
    """
    if matrices.ndim == 2:
        energies, vectors = descending_eigh(short_gram(matrices, grams))
        return energies, (vectors if keep is None else vectors[:, :keep]).to(dtype)

    def some_spectra(some: Tensor) -> tuple[Tensor, Tensor]:
        found = [_eigh(short_gram(block, grams)) for block in in_blocks(some)]
        values = torch.cat([energies for energies, _ in found])
        return values, torch.cat([vectors[..., :keep].to(dtype) for _, vectors in found])

    k, rest = sorted(matrices.shape[1:])
    work = len(matrices) * k * k * (rest + 4 * k)
    energies, vectors = over_batch(some_spectra, (matrices,), work)
    return energies, vectors


def in_blocks(stack: Tensor, each: int | None = None) -> Sequence[Tensor]:
    """Some of (b, ...) at a time, of as many elements together as are raised to float64 at once;
    `each` of one place, if it is not that of the stack. A single matrix is its own block."""
    if stack.ndim == 2:
        return (stack,)
    return torch.split(stack, max(1, BLOCK // max(1, each or stack[0].numel())))


def descending_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (*batch, n), descending and not below zero, and eigenvectors (*batch, n, n) of
    positive semidefinite matrices.

    LAPACK may give up on a matrix with many equal eigenvalues; the SVD of a positive semidefinite
    matrix is the same decomposition by another algorithm.
    """
    if matrices.ndim > 2:
        work = 4 * matrices.numel() * matrices.shape[-1]
        values, vectors = over_batch(_eigh, (matrices,), work)
        return values, vectors
    with cores_of(matrices):
        return _eigh(matrices)


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if matrices.ndim > 2:  # one of them; which is not said
            values, vectors = _each(_eigh, matrices)
        else:
            vectors, values, _ = torch.linalg.svd(matrices)
        return values, vectors
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def thin_svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (*batch, m, k), S (*batch, k) descending, V^T (*batch, k, n) with k = min(m, n).

    The divide-and-conquer driver can fail to converge on finite input; then the singular vectors
    of the short side come from its Gram and those of the long side from a QR factorisation.
    """
    if matrices.ndim > 2:
        work = 6 * matrices.numel() * min(matrices.shape[-2:])
        left, values, right = over_batch(_svd, (matrices,), work)
        return left, values, right
    with cores_of(matrices):
        return _svd(matrices)


def _svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    try:
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if matrices.ndim > 2:
            left, values, right = _each(_svd, matrices)
        elif matrices.shape[0] < matrices.shape[1]:
            right, values, left = _svd_by_qr(matrices.T)
            return left.T, values, right.T
        else:
            left, values, right = _svd_by_qr(matrices)
    return left, values, right


def _each(function: Callable[[Tensor], tuple[Tensor, ...]], stack: Tensor) -> tuple[Tensor, ...]:
    """Of one matrix after the other."""
    found = [function(matrix) for matrix in stack]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


def cores_of(matrices: Tensor) -> contextlib.AbstractContextManager[None]:
    """The threads for a spectrum of one matrix; of many they are as they are."""
    if matrices.ndim > 2:
        return contextlib.nullcontext()
    return cores_for("spectrum", spectrum_work(*matrices.shape))


def _svd_by_qr(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for m >= n, in float64, by eigenvectors of the Gram and a QR factorisation."""
    wide = matrix.to(torch.float64)
    _, vectors = descending_eigh(wide.T @ wide)
    left, upper = torch.linalg.qr(wide @ vectors)
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(wide)
    return (
        (left * signs).to(matrix.dtype),
        upper.diagonal().abs().to(matrix.dtype),
        vectors.T.to(matrix.dtype),
    )


def identity(n: int, like: Tensor) -> Tensor:
    """(n, n) in the dtype and on the device of `like`, whatever torch's defaults are."""
    return torch.eye(n, dtype=like.dtype, device=like.device)


def complete(vectors: Tensor, r: int) -> Tensor:
    """`vectors` (*batch, n, k) with orthonormal columns, completed to (*batch, n, r) if k < r."""
    *batch, n, k = vectors.shape
    if k >= r:
        return vectors
    # Householder's Q is orthogonal whatever it factors, so columns of zeros become a complement.
    padded = torch.cat([vectors, vectors.new_zeros(*batch, n, r - k)], dim=-1)
    return torch.cat([vectors, torch.linalg.qr(padded)[0][..., k:]], dim=-1)


def keep(r: int) -> Choose:
    """Keep r, whatever the energies."""
    return lambda energies: r


def keep_within(budget: float) -> Choose:
    """Keep the fewest, at least one, so that the energies left out sum to at most `budget`."""

    def choose(energies: Tensor) -> int:
        tails = energies.flip(0).cumsum(0).flip(0)  # tails[i] = sum of energies[i:]
        return max(1, int((tails > budget).sum()))

    return choose


def scale_of(tensor: Tensor, largest: float | None = None) -> float:
    """A power of four near max |tensor|, `largest` if known, where that is far from one, else one.

    Dividing by it is exact and keeps squares away from overflow and underflow; its root is exact.
    """
    if largest is None:
        low, high = tensor.detach().aminmax()  # without a copy of the tensor
        largest = max(-float(low), float(high))
    if largest == 0.0:
        return 1.0
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= 24:
        return 1.0
    limit = 1000 if tensor.dtype == torch.float64 else 120
    return float(2.0 ** (2 * (max(-limit, min(limit, exponent)) // 2)))
